//! Q5_1: an f16 scale, an f16 minimum, the fifth bits of 32 codes, then their lower four.

use super::block::{self, BLOCK_ELEMENTS, Block};
use super::{nibbles, rounding};
use crate::error::Error;

/// Source: ggml `ggml-common.h`, `block_q5_1`.
pub(super) const BLOCK_BYTES: usize = 8 + nibbles::BYTES;

/// Code of the largest value; that of the smallest is 0. Source: ggml `ggml-quants.c`, `quantize_row_q5_1_ref`.
const LARGEST_CODE: f32 = 31.0;

/// The sign of an f32.
const SIGN: u32 = 1 << 31;

pub(super) struct Q5_1;

/// The smallest and the largest value. Of zeros, the first gives the minimum its sign.
#[inline(always)]
fn bounds(values: &[f32; BLOCK_ELEMENTS], largest: f32) -> (f32, f32) {
    // The peak is one of them; seen with its sign turned to plus, the other is the smallest.
    let peak = block::peak(values, largest);
    let turned = peak.to_bits() & SIGN;
    // With every bit flipped below zero and the sign alone above, numbers are in their own order as integers.
    let key = |bits: u32| bits ^ ((bits.cast_signed() >> 31).cast_unsigned() | SIGN);
    let least = values.iter().fold(u32::MAX, |least, value| least.min(key(value.to_bits() ^ turned)));
    let other = f32::from_bits(turned ^ if least & SIGN == 0 { !least } else { least ^ SIGN });
    if other == 0.0 && turned == 0 {
        return (block::first(values, |value| value == 0.0), peak);
    }
    // No branch on the sign, which nothing foretells.
    if other < peak { (other, peak) } else { (peak, other) }
}

impl Block<BLOCK_ELEMENTS, BLOCK_BYTES> for Q5_1 {
    #[inline(always)]
    fn quantize(values: &[f32; BLOCK_ELEMENTS], largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let (smallest, largest) = bounds(values, largest);
        let scale = (largest - smallest) / LARGEST_CODE;
        let inverse = block::inverse(scale);
        block[..2].copy_from_slice(&rounding::to_f16(scale).to_le_bytes());
        block[2..4].copy_from_slice(&rounding::to_f16(smallest).to_le_bytes());
        let mut codes = [0; BLOCK_ELEMENTS];
        // Otherwise every product is out of range or NaN, which x86-64 turns into code 0.
        if inverse.is_finite() && scale.is_finite() {
            for (code, value) in codes.iter_mut().zip(values) {
                *code = rounding::floor((value - smallest) * inverse + 0.5);
            }
        }
        block[4..8].copy_from_slice(&nibbles::fifth_bits(&codes).to_le_bytes());
        nibbles::pack(&codes, &mut block[8..]);
    }

    #[inline(always)]
    fn check(index: usize, block: &[u8; BLOCK_BYTES]) -> Result<(), Error> {
        block::check_scale(index, block::read_f16(block))?;
        block::check_scale(index, block::read_f16(&block[2..]))
    }

    #[inline(always)]
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_ELEMENTS]) {
        let (scale, smallest) = (block::read_f16(block).to_f32(), block::read_f16(&block[2..]).to_f32());
        let fifth_bits = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
        let codes = nibbles::unpack_with_fifth_bits(&block[8..], fifth_bits);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = f32::from(code) * scale + smallest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(values: &[f32; BLOCK_ELEMENTS]) -> [u32; 2] {
        let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        let (smallest, largest) = bounds(values, largest);
        [smallest.to_bits(), largest.to_bits()]
    }

    #[test]
    fn the_first_zero_gives_the_minimum_its_sign() {
        let mut values = [1.0; BLOCK_ELEMENTS];
        (values[3], values[9]) = (0.0, -0.0);
        assert_eq!(bits(&values), [0.0, 1.0].map(f32::to_bits));
        values.swap(3, 9);
        assert_eq!(bits(&values), [-0.0, 1.0].map(f32::to_bits));
    }

    #[test]
    fn bounds_are_in_the_order_of_numbers() {
        let mut values = [-1.0; BLOCK_ELEMENTS];
        (values[5], values[30]) = (-3e38, -1e-40);
        assert_eq!(bits(&values), [-3e38, -1e-40].map(f32::to_bits));
        (values[6], values[7]) = (2.5, 3e38);
        assert_eq!(bits(&values), [-3e38, 3e38].map(f32::to_bits));
        values[5] = -4.0;
        assert_eq!(bits(&values), [-4.0, 3e38].map(f32::to_bits));
        assert_eq!(bits(&[7.0; BLOCK_ELEMENTS]), [7.0, 7.0].map(f32::to_bits));
    }
}
