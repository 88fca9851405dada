//! Rows of the experts back to their tokens.
//!
//! Letters: n rows, t tokens, a active experts per token, d width.

use super::wide;
use crate::Float;

/// Which rows belong to a token, and how much of each.
#[derive(Debug, Clone, Copy)]
pub struct Slots<'a, W> {
    /// a.
    pub active: usize,
    /// [t, a]. One that is no row makes what is summed over it NaN.
    pub row_of_slot: &'a [i32],
    /// [t, a]; all 1 where there are none.
    pub weights: Option<&'a [W]>,
}

impl<W: Float> Slots<'_, W> {
    fn weight(&self, slot: usize) -> f64 {
        self.weights.map_or(1.0, |weights| wide(weights[slot]))
    }

    /// The row of a slot, if it is one of `rows`.
    fn row<'a, T>(&self, slot: usize, rows: &'a [T], width: usize) -> Option<&'a [T]> {
        let first = usize::try_from(self.row_of_slot[slot]).ok()?.checked_mul(width)?;
        rows.get(first..first + width)
    }
}

/// For each token, its rows times their weights, summed.
///
/// # Shapes
/// `rows` [n, d], `width` d; gives [t, d].
///
/// # Panics
/// When `active` is 0, or there are fewer weights than slots.
#[must_use]
pub fn combine<T: Float, W: Float>(rows: &[T], slots: Slots<'_, W>, width: usize) -> Vec<f64> {
    let tokens = slots.row_of_slot.len() / slots.active;
    let mut out = vec![0.0; tokens * width];
    for slot in 0..slots.row_of_slot.len() {
        let token = slot / slots.active * width;
        for column in 0..width {
            out[token + column] += slots.row(slot, rows, width).map_or(f64::NAN, |row| wide(row[column]) * slots.weight(slot));
        }
    }
    out
}

/// The gradients of rows and weights: the weight times the token's gradient, and the row times it, summed over the width. A row that no slot
/// names has none.
///
/// # Shapes
/// `rows` [n, d], `gradient` (of the output) [t, d]; gives [n, d] and [t, a].
///
/// # Panics
/// As [`combine`].
#[must_use]
pub fn combine_backward<T: Float, W: Float>(rows: &[T], slots: Slots<'_, W>, width: usize, gradient: &[T]) -> (Vec<Option<f64>>, Vec<f64>) {
    let mut of_rows = vec![None; rows.len()];
    let mut of_weights = Vec::with_capacity(slots.row_of_slot.len());
    for (slot, &index) in slots.row_of_slot.iter().enumerate() {
        let gradient = &gradient[slot / slots.active * width..][..width];
        let Some(row) = slots.row(slot, rows, width) else {
            of_weights.push(f64::NAN);
            continue;
        };
        of_weights.push(row.iter().zip(gradient).map(|(&value, &gradient)| wide(value) * wide(gradient)).sum());
        // It is a row, and so no less than 0.
        let first = index.unsigned_abs() as usize * width;
        for (of_row, &gradient) in of_rows[first..].iter_mut().zip(gradient) {
            *of_row = Some(slots.weight(slot) * wide(gradient));
        }
    }
    (of_rows, of_weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_get_their_rows_and_rows_their_gradients() {
        // Three rows of two, two tokens with one expert each; nobody names row 1.
        let rows = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let slots = Slots { active: 1, row_of_slot: &[2, 0], weights: Some(&[0.5f32, 2.0]) };
        assert_eq!(combine(&rows, slots, 2), [2.5, 3.0, 2.0, 4.0]);
        let (of_rows, of_weights) = combine_backward(&rows, slots, 2, &[1.0, -1.0, 10.0, 1.0]);
        assert_eq!(of_rows, [Some(20.0), Some(2.0), None, None, Some(0.5), Some(-0.5)]);
        assert_eq!(of_weights, [-1.0, 12.0]);
    }

    #[test]
    fn slots_of_a_token_are_summed_and_no_row_is_no_number() {
        let rows = [1.0f32, 2.0, 4.0];
        let slots = Slots::<f32> { active: 2, row_of_slot: &[2, 0, 1, 3, -1, 0], weights: None };
        let out = combine(&rows, slots, 1);
        assert!(out[0] == 5.0 && out[1].is_nan() && out[2].is_nan(), "{out:?}");
        let (of_rows, of_weights) = combine_backward(&rows, slots, 1, &[1.0, 1.0, 1.0]);
        assert_eq!(of_rows, [Some(1.0); 3]);
        assert!(of_weights[3].is_nan() && of_weights[4].is_nan() && of_weights[5] == 1.0, "{of_weights:?}");
    }
}
