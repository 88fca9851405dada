//! The bias of each row's expert.
//!
//! Letters: r rows sorted by expert, o width, e experts.

use crate::Float;

/// A bias for each expert, and the rows that each owns.
#[derive(Debug, Clone, Copy)]
pub struct BiasByExpert<'a, T> {
    /// [e, o].
    pub bias: &'a [T],
    /// [e], rising: expert k owns the rows from the end before its own, or 0, to its own. The last one owns what lies beyond all ends.
    pub ends: &'a [i32],
}

impl<T: Copy> BiasByExpert<'_, T> {
    /// What is added to the element at `place` of [r, o].
    pub(super) fn of(&self, place: usize, width: usize) -> T {
        let row = place / width;
        let is_owner = |&end: &i32| usize::try_from(end).is_ok_and(|end| row < end);
        let expert = self.ends.iter().position(is_owner).unwrap_or(self.ends.len() - 1);
        self.bias[expert * width + place % width]
    }
}

/// Adds to each row the bias of its expert, in f32, rounded to the element type.
///
/// # Shapes
/// `rows` [r, o], `width` o.
///
/// # Panics
/// When there is no expert, or the bias is shorter than [e, o].
pub fn add_expert_bias<T: Float>(rows: &mut [T], width: usize, bias: BiasByExpert<'_, T>) {
    for (place, value) in rows.iter_mut().enumerate() {
        *value = T::rounded(value.to_f32() + bias.of(place, width).to_f32());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_without_rows_are_passed_over_and_the_last_owns_the_rest() {
        let mut rows = [0.5f32; 10];
        let bias = BiasByExpert { bias: &[10.0, 11.0, 20.0, 21.0, 30.0, 31.0, 40.0, 41.0], ends: &[0, 1, 1, 3] };
        add_expert_bias(&mut rows, 2, bias);
        assert_eq!(rows, [20.5, 21.5, 40.5, 41.5, 40.5, 41.5, 40.5, 41.5, 40.5, 41.5]);
    }
}
