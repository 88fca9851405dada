//! From the rows of experts back to tokens, and the gradients on that way, in one pass over memory each.
//!
//! Letters: t tokens, a rows of a token, d width.

use super::dispatch::for_each_instruction_set;
use super::element::Element;
use super::parallel::{Shared, for_each_range};

/// Tokens that one thread takes at least.
const GRAIN: usize = 4;

/// Elements that are summed over a token's rows at a time.
const STRIP: usize = 64;

/// Independent partial sums of a dot product, so that the order of additions does not depend on the vector width.
const LANES: usize = 32;

/// Where the rows of each token are.
#[derive(Debug, Clone, Copy)]
pub struct TokenRows<'a> {
    /// Row of each (token, a): a permutation of 0..t a.
    pub row_of_slot: &'a [i32],
    /// a.
    pub num_active: usize,
    /// d.
    pub width: usize,
}

impl TokenRows<'_> {
    fn num_tokens(&self) -> usize {
        self.row_of_slot.len() / self.num_active.max(1)
    }

    /// First element of the row of slot `slot`.
    fn start(&self, slot: usize) -> usize {
        usize::try_from(self.row_of_slot[slot]).unwrap_or(usize::MAX).saturating_mul(self.width)
    }

    fn check(&self, rows: usize, tokens: usize) {
        let slots = self.row_of_slot.len();
        assert!(rows == slots * self.width && tokens == self.num_tokens() * self.width, "{rows} and {tokens} elements for {slots} rows");
    }
}

/// `tokens[t] = sum over a of weights[t, a] rows[row_of_slot[t, a]]`, in the order of a, summed in f32; weights of 1 where there are none.
///
/// # Panics
/// When the lengths do not fit, or a row is none of `rows`: the caller's mistake.
pub fn combine_rows<T: Element>(at: TokenRows<'_>, rows: &[T], weights: Option<&[T]>, tokens: &mut [T]) {
    at.check(rows.len(), tokens.len());
    assert!(weights.is_none_or(|weights| weights.len() == at.row_of_slot.len()), "a weight for each row");
    let shared = Shared::new(tokens);
    for_each_range(at.num_tokens(), GRAIN, |range| {
        for token in range {
            // SAFETY: each token is visited once.
            let output = unsafe { shared.part(token * at.width..(token + 1) * at.width) };
            combine(&at, token, rows, weights, output);
        }
    });
}

/// The gradients of [`combine_rows`]: `row_gradient[row_of_slot[t, a]] = weights[t, a] gradient[t]`, and
/// `weight_gradient[t, a] = rows[row_of_slot[t, a]] . gradient[t]`.
///
/// # Panics
/// As [`combine_rows`].
pub fn spread_rows<T: Element>(
    at: TokenRows<'_>,
    rows: &[T],
    weights: &[T],
    gradient: &[T],
    row_gradient: &mut [T],
    weight_gradient: &mut [T],
) {
    at.check(rows.len(), gradient.len());
    assert!(row_gradient.len() == rows.len() && weight_gradient.len() == weights.len(), "a gradient for each row and weight");
    let (row_gradient, weight_gradient) = (Shared::new(row_gradient), Shared::new(weight_gradient));
    for_each_range(at.num_tokens(), GRAIN, |range| {
        for token in range {
            let gradient = &gradient[token * at.width..(token + 1) * at.width];
            let slots = token * at.num_active..(token + 1) * at.num_active;
            for (slot, &weight) in slots.clone().zip(&weights[slots]) {
                let row = at.start(slot)..at.start(slot) + at.width;
                // SAFETY: each slot is visited once, and no two have the same row.
                let (output, dot) = unsafe { (row_gradient.part(row.clone()), weight_gradient.part(slot..slot + 1)) };
                spread(&rows[row], weight, gradient, output, &mut dot[0]);
            }
        }
    });
}

for_each_instruction_set! {
    fn combine<T: Element>(at: &TokenRows<'_>, token: usize, rows: &[T], weights: Option<&[T]>, output: &mut [T]) {
        let slots = token * at.num_active..(token + 1) * at.num_active;
        for (strip, output) in output.chunks_mut(STRIP).enumerate() {
            let mut sums = [0f32; STRIP];
            for slot in slots.clone() {
                let weight = weights.map_or(1.0, |weights| weights[slot].to_f32());
                let start = at.start(slot) + strip * STRIP;
                for (sum, element) in sums.iter_mut().zip(&rows[start..start + output.len()]) {
                    *sum += weight * element.to_f32();
                }
            }
            for (output, sum) in output.iter_mut().zip(sums) {
                *output = T::from_f32(sum);
            }
        }
    }
}

for_each_instruction_set! {
    fn spread<T: Element>(row: &[T], weight: T, gradient: &[T], output: &mut [T], dot: &mut T) {
        let mut lanes = [0f32; LANES];
        let weight = weight.to_f32();
        for ((row, gradient), output) in row.chunks(LANES).zip(gradient.chunks(LANES)).zip(output.chunks_mut(LANES)) {
            for (((lane, row), gradient), output) in lanes.iter_mut().zip(row).zip(gradient).zip(output) {
                *lane += row.to_f32() * gradient.to_f32();
                *output = T::from_f32(weight * gradient.to_f32());
            }
        }
        *dot = T::from_f32(lanes.iter().sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_gradients_are_those_of_the_definition() {
        let (tokens, num_active, width) = (7, 3, STRIP + 5);
        let slots = tokens * num_active;
        let row_of_slot: Vec<i32> = (0..slots).map(|slot| i32::try_from(slot * 8 % slots).unwrap()).collect();
        let number = |index: usize| ((index * 37) % 101) as f32 / 50.0 - 1.0;
        let rows: Vec<f32> = (0..slots * width).map(number).collect();
        let weights: Vec<f32> = (0..slots).map(|slot| number(slot + 5)).collect();
        let gradient: Vec<f32> = (0..tokens * width).map(|index| number(index + 11)).collect();
        let at = TokenRows { row_of_slot: &row_of_slot, num_active, width };
        let row = |slot: usize| usize::try_from(row_of_slot[slot]).unwrap() * width;

        let mut combined = vec![f32::NAN; tokens * width];
        combine_rows(at, &rows, Some(&weights), &mut combined);
        let mut summed = vec![f32::NAN; tokens * width];
        combine_rows(at, &rows, None, &mut summed);
        for (token, column) in (0..tokens).flat_map(|token| (0..width).map(move |column| (token, column))) {
            let slots = || token * num_active..(token + 1) * num_active;
            let expected: f32 = slots().map(|slot| weights[slot] * rows[row(slot) + column]).sum();
            assert!((combined[token * width + column] - expected).abs() < 1e-5);
            let expected: f32 = slots().map(|slot| rows[row(slot) + column]).sum();
            assert!((summed[token * width + column] - expected).abs() < 1e-5);
        }

        let (mut row_gradient, mut weight_gradient) = (vec![f32::NAN; rows.len()], vec![f32::NAN; slots]);
        spread_rows(at, &rows, &weights, &gradient, &mut row_gradient, &mut weight_gradient);
        for slot in 0..slots {
            let of_token = &gradient[slot / num_active * width..][..width];
            let expected: f32 = (0..width).map(|column| rows[row(slot) + column] * of_token[column]).sum();
            assert!((weight_gradient[slot] - expected).abs() < 1e-4);
            assert!((0..width).all(|column| row_gradient[row(slot) + column] == weights[slot] * of_token[column]));
        }
    }

    #[test]
    #[should_panic(expected = "elements for")]
    fn lengths_that_do_not_fit_are_refused() {
        combine_rows(TokenRows { row_of_slot: &[0, 1], num_active: 2, width: 3 }, &[0f32; 5], None, &mut [0f32; 3]);
    }
}
