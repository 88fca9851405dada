//! The numbers that one byte can stand for when a moment of AdamW is kept in 8 bits.

use std::sync::LazyLock;

/// The byte that stands for 0 in [`CodeMap::signed`].
pub const SIGNED_ZERO: u8 = 127;

/// Powers of ten that a byte tells apart.
const DECADES: usize = 7;

/// Magnitudes that share the upper half of their bits are a cell. The first holds all below 2^-22, the last all from 1 on.
const CELLS: usize = (LAST_CELL - FIRST_CELL + 1) as usize;
const FIRST_CELL: u32 = ((127 - 22) << 7) - 1;
const LAST_CELL: u32 = 1f32.to_bits() >> 16;

/// 256 numbers from -1 to 1 in ascending order, each the meaning of its index, and where one ends and the next begins.
///
/// Source: the dynamic tree quantization of Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861), section 1.3:
/// a byte is a sign, z zeros that stand for 10^-z, a one, and the rest of the bits, which number equal parts of [0.1, 1], whose middles are
/// meant. For what has no sign, section 2.2, one more bit numbers parts. Zero and one take the bytes that are left.
#[derive(Debug)]
pub struct CodeMap {
    values: [f32; 256],
    boundaries: [f32; 255],
    /// The same, and infinity.
    steps: [f32; 256],
    /// For each cell, those of negative numbers last, the byte of its lowest number; at most one boundary lies in a cell.
    starts: [u8; 2 * CELLS],
}

static SIGNED: LazyLock<CodeMap> = LazyLock::new(|| {
    let mut values = [0.0; 256];
    let zero = usize::from(SIGNED_ZERO);
    for (index, value) in magnitudes(0).into_iter().enumerate() {
        values[zero + 1 + index] = value;
        values[zero - 1 - index] = -value;
    }
    values[255] = 1.0;
    CodeMap::new(values, boundaries(&values))
});

static UNSIGNED: LazyLock<CodeMap> = LazyLock::new(|| {
    let mut values = [0.0; 256];
    values[1..255].copy_from_slice(&magnitudes(1));
    values[255] = 1.0;
    let mut boundaries = boundaries(&values);
    // What is not zero does not become zero: see `CodeMap::unsigned`.
    boundaries[0] = 0.0;
    CodeMap::new(values, boundaries)
});

impl CodeMap {
    fn new(values: [f32; 256], boundaries: [f32; 255]) -> Self {
        let mut steps = [f32::INFINITY; 256];
        steps[..255].copy_from_slice(&boundaries);
        #[expect(clippy::cast_possible_truncation, reason = "cells have 15 bits, and counts go to 255")]
        let starts = std::array::from_fn(|index| {
            let cell = FIRST_CELL + (index % CELLS) as u32;
            let lowest = match (index < CELLS, cell) {
                (true, FIRST_CELL) => 0.0,
                (true, _) => f32::from_bits(cell << 16),
                (false, _) => -f32::from_bits((cell << 16) | 0xFFFF),
            };
            boundaries.iter().filter(|&&boundary| boundary < lowest).count() as u8
        });
        Self { values, boundaries, steps, starts }
    }

    /// For the first moment: 127 numbers below zero, zero, and 128 above it.
    #[must_use]
    pub fn signed() -> &'static Self {
        &SIGNED
    }

    /// For the second moment: zero and 255 numbers above it.
    ///
    /// Anything above zero stands for a number above zero: a second moment that was lost, beside a first that was not, would make a step of
    /// first / epsilon, hundreds of times too long, as soon as a gradient is zero.
    #[must_use]
    pub fn unsigned() -> &'static Self {
        &UNSIGNED
    }

    /// What each byte stands for, in ascending order.
    #[must_use]
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The byte of a number is the count of these that are below it.
    #[must_use]
    pub fn boundaries(&self) -> &[f32; 255] {
        &self.boundaries
    }

    /// The byte whose meaning is nearest to `number`; of two that are equally near, that of the smaller magnitude.
    #[inline(always)]
    #[must_use]
    pub fn code(&self, number: f32) -> u8 {
        let bits = number.to_bits();
        let cell = ((bits >> 16) & 0x7FFF).clamp(FIRST_CELL, LAST_CELL) - FIRST_CELL;
        let start = self.starts[(bits >> 31) as usize * CELLS + cell as usize];
        start + u8::from(self.steps[usize::from(start)] < number)
    }

    /// What `code` stands for.
    #[inline(always)]
    #[must_use]
    pub fn value(&self, code: u8) -> f32 {
        self.values[usize::from(code)]
    }
}

/// The numbers between 0 and 1: 2^(decade + more_bits) to each decade, as a fraction of whole numbers, rounded once.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "whole numbers far below 2^52, and a rounding to f32 that is meant"
)]
fn magnitudes(more_bits: usize) -> Vec<f32> {
    let in_decade = |decade: usize| {
        let parts = 1u64 << (decade + more_bits);
        let power = 10u64.pow((DECADES - 1 - decade) as u32);
        // Part i of [0.1, 1] has its middle at 0.1 + 0.9 (2 i + 1) / (2 parts).
        (0..parts).map(move |part| ((2 * parts + 9 * (2 * part + 1)) as f64 / (20 * parts * power) as f64) as f32)
    };
    (0..DECADES).flat_map(in_decade).collect()
}

/// For each two neighbours the largest f32 that belongs to the lower one.
fn boundaries(values: &[f32; 256]) -> [f32; 255] {
    std::array::from_fn(|index| {
        let middle = f64::midpoint(values[index].into(), values[index + 1].into());
        #[expect(clippy::cast_possible_truncation, reason = "the f32 beside the middle is what is looked for")]
        let nearest = middle as f32;
        let found = f64::from(nearest);
        // The middle itself goes to the smaller magnitude: the lower neighbour above zero, the upper one below it.
        let is_upper = if middle > 0.0 { found > middle } else { found >= middle };
        if is_upper { nearest.next_down() } else { nearest }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper's reading of a byte, bit by bit.
    fn tree(byte: u8, has_sign: bool) -> f64 {
        let (sign, bits, count) = if has_sign { (byte >> 7, byte & 0x7F, 7) } else { (0, byte, 8) };
        let zeros = bits.leading_zeros() as i32 - (8 - count);
        let fraction_bits = count - 1 - zeros;
        if zeros > 6 {
            // No room for the one of the last decade, or no one at all: two bytes that are left, for zero and one.
            return if sign == 1 || bits == 1 { 1.0 } else { 0.0 };
        }
        let part = f64::from(bits & ((1 << fraction_bits) - 1));
        let width = 0.9 / f64::from(1 << fraction_bits);
        let low = 0.1 + width * part;
        (1.0 - 2.0 * f64::from(sign)) * 10f64.powi(-zeros) * (low + low + width) / 2.0
    }

    #[test]
    fn the_maps_are_the_trees_of_the_paper() {
        for (map, has_sign) in [(CodeMap::signed(), true), (CodeMap::unsigned(), false)] {
            let mut expected: Vec<f64> = (0..=255).map(|byte| tree(byte, has_sign)).collect();
            expected.sort_by(f64::total_cmp);
            for (&found, expected) in map.values().iter().zip(expected) {
                assert!((f64::from(found) - expected).abs() <= expected.abs() * f64::from(f32::EPSILON), "{found} {expected}");
            }
            assert!(map.values().is_sorted_by(|left, right| left < right));
        }
        assert_eq!(CodeMap::signed().value(SIGNED_ZERO), 0.0);
        // 10^-6 (0.1 + 0.9 / 2) and 10^-6 (0.1 + 0.9 / 4), and next to the end 1 - 0.45 / 64 and 1 - 0.45 / 128.
        assert_eq!((CodeMap::signed().value(128), CodeMap::unsigned().value(1)), (5.5e-7, 3.25e-7));
        assert_eq!((CodeMap::signed().value(254), CodeMap::unsigned().value(254)), (0.992_968_75, 0.996_484_4));
        assert_eq!((CodeMap::signed().value(0), CodeMap::unsigned().value(0)), (-0.992_968_75, 0.0));
    }

    /// The nearest by looking at all; `None` where two are equally near.
    fn nearest(map: &CodeMap, number: f32) -> Option<u8> {
        let distance = |code: u8| (f64::from(map.value(code)) - f64::from(number)).abs();
        let best = (0..=255).min_by(|&left, &right| distance(left).total_cmp(&distance(right))).unwrap();
        let ties = (0..=255u8).filter(|&code| distance(code) == distance(best)).count();
        (ties == 1).then_some(best)
    }

    #[test]
    fn the_code_is_that_of_the_nearest_number() {
        let near = |number: f32| [number.next_down(), number, number.next_up()];
        for map in [CodeMap::signed(), CodeMap::unsigned()] {
            let spread = (0..20_000).map(|index| (index as f32 / 19_999.0).powi(5));
            let numbers: Vec<f32> =
                map.boundaries().iter().copied().flat_map(near).chain(map.values().iter().copied().flat_map(near)).chain(spread).collect();
            let is_signed = map.value(0) < 0.0;
            let numbers = numbers.iter().flat_map(|&number| if is_signed { vec![number, -number] } else { vec![number.max(0.0)] });
            for number in numbers {
                let code = map.code(number);
                if !is_signed && number > 0.0 && number < 2e-7 {
                    assert_eq!(code, 1, "{number} must not be lost");
                } else if let Some(expected) = nearest(map, number) {
                    assert_eq!(code, expected, "{number}");
                }
            }
        }
    }

    #[test]
    fn the_byte_of_any_number_is_the_count_of_boundaries_below_it() {
        for map in [CodeMap::signed(), CodeMap::unsigned()] {
            // Each end of each cell, and numbers within, beyond what is ever asked for.
            for magnitude in (0..=1.1f32.to_bits())
                .step_by(0x5555)
                .chain([0x8000, 0xFFFF, 0].into_iter().flat_map(|low| (FIRST_CELL - 3..=LAST_CELL).map(move |cell| (cell << 16) | low)))
            {
                for number in [f32::from_bits(magnitude), -f32::from_bits(magnitude)] {
                    let below = map.boundaries().partition_point(|&boundary| boundary < number);
                    assert_eq!(usize::from(map.code(number)), below, "{number}");
                }
            }
        }
    }

    #[test]
    fn the_middle_goes_to_the_smaller_magnitude() {
        let map = CodeMap::signed();
        let mut found = 0;
        for code in 128..254 {
            let middle = f64::midpoint(map.value(code).into(), map.value(code + 1).into());
            let number = middle as f32;
            // Some of the middles are numbers of f32.
            if f64::from(number) == middle {
                assert_eq!((map.code(number), map.code(number.next_up())), (code, code + 1));
                assert_eq!((map.code(-number), map.code((-number).next_down())), (254 - code, 253 - code));
                found += 1;
            }
        }
        assert!(found > 10, "{found}");
    }

    #[test]
    fn every_number_comes_back_as_itself() {
        for map in [CodeMap::signed(), CodeMap::unsigned()] {
            for code in 0..=255 {
                assert_eq!(map.code(map.value(code)), code);
            }
        }
    }
}
