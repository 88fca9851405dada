//! Arithmetic on several numbers side by side, a lane for each part of a block: what the compiler turns into vectors.
//!
//! Sums over the elements of a part run in their order, whatever the vectors hold. Source: ggml `ggml-quants.c`, whose sums are
//! plain loops.

use std::ops::{Add, AddAssign, Div, Mul, Sub};

use super::block::K_BLOCK_ELEMENTS;
use super::rounding;

/// A number for each of `N` parts.
#[derive(Clone, Copy)]
pub(super) struct Lanes<const N: usize>(pub(super) [f32; N]);

impl<const N: usize> Lanes<N> {
    pub(super) const ZERO: Self = Self([0.0; N]);

    #[inline(always)]
    pub(super) fn map(mut self, work: impl Fn(f32) -> f32) -> Self {
        for lane in &mut self.0 {
            *lane = work(*lane);
        }
        self
    }

    #[inline(always)]
    pub(super) fn zip_map(mut self, other: Self, work: impl Fn(f32, f32) -> f32) -> Self {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = work(*lane, other);
        }
        self
    }

    #[inline(always)]
    pub(super) fn abs(self) -> Self {
        self.map(f32::abs)
    }

    /// The nearest codes from `least` to `most`: see [`rounding::nearest`].
    #[inline(always)]
    pub(super) fn codes(self, least: i32, most: i32) -> Self {
        self.map(|units| rounding::nearest(units).clamp(least, most) as f32)
    }

    /// `self` in the lanes where `low` is less than `high`, `other` in the rest.
    #[inline(always)]
    pub(super) fn where_less(mut self, low: Self, high: Self, other: Self) -> Self {
        for (((lane, low), high), other) in self.0.iter_mut().zip(low.0).zip(high.0).zip(other.0) {
            *lane = if low < high { *lane } else { other };
        }
        self
    }
}

/// Number i of every part together.
#[inline(always)]
pub(super) fn transposed<const N: usize, const ELEMENTS: usize>(values: &[f32; K_BLOCK_ELEMENTS]) -> [Lanes<N>; ELEMENTS] {
    let mut columns = [Lanes::ZERO; ELEMENTS];
    for (part, values) in values.as_chunks::<ELEMENTS>().0.iter().enumerate() {
        for (column, value) in columns.iter_mut().zip(values) {
            column.0[part] = *value;
        }
    }
    columns
}

macro_rules! lane_by_lane {
    ($trait:ident, $method:ident) => {
        impl<const N: usize> $trait for Lanes<N> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                self.zip_map(other, f32::$method)
            }
        }
    };
}

lane_by_lane!(Add, add);
lane_by_lane!(Sub, sub);
lane_by_lane!(Mul, mul);
lane_by_lane!(Div, div);

impl<const N: usize> AddAssign for Lanes<N> {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_lanes() {
        let values = std::array::from_fn(|index| index as f32);
        let columns: [Lanes<8>; 32] = transposed(&values);
        assert_eq!(columns[5].0, [5.0, 37.0, 69.0, 101.0, 133.0, 165.0, 197.0, 229.0]);
    }

    #[test]
    fn lanes_choose_for_themselves() {
        let (low, high) = (Lanes([1.0, 2.0, f32::NAN, 3.0]), Lanes([2.0, 2.0, 2.0, f32::INFINITY]));
        assert_eq!(Lanes([1.0; 4]).where_less(low, high, Lanes([0.0; 4])).0, [1.0, 0.0, 0.0, 1.0]);
    }
}
