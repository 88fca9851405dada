//! MXFP4 as ggml stores it: the scale byte of OCP MX, then 32 E2M1 codes, those of the second half in the high nibbles.
//!
//! The codes and scales are those of [`crate::mxfp4`]; the rule for the scale and the rounding are ggml's own.

use super::block::{BLOCK_ELEMENTS, Block};
use super::nibbles;
use crate::error::Error;

/// Source: ggml `ggml-common.h`, `block_mxfp4`.
pub(super) const BLOCK_BYTES: usize = 1 + nibbles::BYTES;

/// The scale byte that stands for NaN. Source: OCP MX 1.0, section 5.4.1.
pub(super) const RESERVED: u8 = 255;

/// Twice the value of each code, without the sign of -0. Source: ggml `ggml-common.h`, `kvalues_mxfp4`.
const DOUBLED: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Where each step of [`DOUBLED`] begins: half the way, which itself still belongs to the smaller magnitude. Source: ggml
/// `ggml-quants.c`, `best_index_mxfp4`, whose comparison keeps the earlier of two equals.
const MIDPOINTS: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];

/// ggml takes the floor of a logarithm that is rounded to f32: a number just below a power of two counts as that power when its
/// logarithm rounds up to the exponent. Where the logarithm has magnitude 2^i to 2^(i + 1), that holds for 2^i ln 2 steps of f32.
/// Source: ggml `ggml-quants.c`, `quantize_row_mxfp4_ref`.
const STEPS_THAT_ROUND_UP: [u32; 7] = [0, 1, 2, 5, 11, 22, 44];

pub(super) struct Mxfp4;

/// The scale byte of a block: the floor of the rounded logarithm of its largest magnitude, less 2.
#[inline(always)]
fn scale_byte(largest: f32) -> u8 {
    let bits = largest.to_bits();
    let biased = bits >> 23;
    let steps_below = 0x80_0000 - (bits & 0x7f_ffff);
    // The exponent of the next power of two, and the integer part of the logarithms just below it, towards zero.
    let above = biased.cast_signed() - 126;
    let size = if above > 0 { above - 1 } else { -above };
    let rounds_up = size.checked_ilog2().is_some_and(|binade| steps_below <= STEPS_THAT_ROUND_UP[binade as usize % 7]);
    (biased + u32::from(rounds_up)).saturating_sub(2) as u8
}

/// Half of what a scale byte stands for, the factor of [`DOUBLED`]: 2^(byte - 128). The byte is not 255.
#[inline(always)]
fn half_scale(byte: u8) -> f32 {
    // The two least are subnormal.
    if byte < 2 { f32::from_bits(0x20_0000 << byte) } else { f32::from_bits((u32::from(byte) - 1) << 23) }
}

/// The largest code that f32 holds under a scale: 4 * 2^(253 - 127) and 2 * 2^(254 - 127) are too large.
#[inline(always)]
fn largest_code(scale: u8) -> u8 {
    match scale {
        0..=252 => 7,
        253 => 5,
        _ => 3,
    }
}

impl Block<BLOCK_ELEMENTS, BLOCK_BYTES> for Mxfp4 {
    #[inline(always)]
    fn quantize(values: &[f32; BLOCK_ELEMENTS], largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let scale = scale_byte(largest);
        let limit = largest_code(scale);
        let midpoints = MIDPOINTS.map(|midpoint| midpoint * half_scale(scale));
        let mut codes = [0; BLOCK_ELEMENTS];
        for (code, value) in codes.iter_mut().zip(values) {
            let magnitude = midpoints.iter().fold(0, |code, &midpoint| code + u8::from(value.abs() > midpoint)).min(limit);
            *code = magnitude | u8::from(*value < 0.0 && magnitude > 0) << 3;
        }
        block[0] = scale;
        nibbles::pack(&codes, &mut block[1..]);
    }

    #[inline(always)]
    fn check(index: usize, block: &[u8; BLOCK_BYTES]) -> Result<(), Error> {
        let scale = block[0];
        if scale == RESERVED {
            return Err(Error::ReservedScale { index });
        }
        if scale > 252 && nibbles::unpack::<BLOCK_ELEMENTS>(&block[1..]).iter().any(|code| code & 7 > largest_code(scale)) {
            return Err(Error::Overflow { index, scale });
        }
        Ok(())
    }

    #[inline(always)]
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_ELEMENTS]) {
        let scale = half_scale(block[0]);
        let levels = DOUBLED.map(|doubled| doubled * scale);
        let codes: [u8; BLOCK_ELEMENTS] = nibbles::unpack(&block[1..]);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = levels[usize::from(code & 0xf)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula of ggml, with a logarithm that is exact enough to be rounded.
    fn definition(largest: f32) -> u8 {
        let logarithm = f64::from(largest).log2() as f32;
        (logarithm.floor() + 125.0).max(0.0) as u8
    }

    #[test]
    fn the_scale_is_the_floor_of_the_rounded_logarithm() {
        for exponent in 0..255_u32 {
            let steps = (0..100).chain(0x7f_ff00..0x80_0000).chain((0..0x80_0000).step_by(0x1_2345));
            for largest in steps.map(|step| f32::from_bits(exponent << 23 | step)).filter(|&largest| largest > 0.0) {
                assert_eq!(scale_byte(largest), definition(largest), "{largest:e}");
            }
        }
        assert_eq!(scale_byte(0.0), 0);
    }

    fn quantized(values: &[f32; BLOCK_ELEMENTS]) -> [u8; BLOCK_BYTES] {
        let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        let mut block = [0; BLOCK_BYTES];
        Mxfp4::quantize(values, largest, &mut block);
        block
    }

    #[test]
    fn midpoints_go_towards_zero_and_zeros_lose_their_sign() {
        let mut values = [0.0; BLOCK_ELEMENTS];
        values[..6].copy_from_slice(&[4.0, 0.25, -0.25, 5.0, -5.0, -0.0]);
        values[16..19].copy_from_slice(&[0.75, -2.5, 0.251]);
        let block = quantized(&values);
        assert_eq!(block[..7], [127, 0x16, 0xc0, 0x10, 0x06, 0x0e, 0x00]);
    }

    #[test]
    fn the_largest_numbers_are_held_by_a_scale_whose_larger_codes_are_infinite() {
        let block = quantized(&[f32::MAX; BLOCK_ELEMENTS]);
        assert_eq!(block[..2], [253, 0x55]);
        assert_eq!(Mxfp4::check(0, &block), Ok(()));
        let mut values = [0.0; BLOCK_ELEMENTS];
        Mxfp4::dequantize(&block, &mut values);
        assert_eq!(values, [3.0 * 126_f32.exp2(); BLOCK_ELEMENTS]);
    }

    #[test]
    fn codes_that_f32_cannot_hold_are_refused() {
        for scale in 250..255 {
            for code in 0..16_u8 {
                let mut block = [code; BLOCK_BYTES];
                block[0] = scale;
                let value = f64::from(DOUBLED[usize::from(code)]) * f64::from(i32::from(scale) - 128).exp2();
                let expected = if value.abs() > f64::from(f32::MAX) { Err(Error::Overflow { index: 7, scale }) } else { Ok(()) };
                assert_eq!(Mxfp4::check(7, &block), expected, "code {code} under scale {scale}");
            }
        }
    }
}
