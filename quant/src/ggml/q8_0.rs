//! Q8_0: an f16 scale, then 32 signed bytes.

use super::block::{self, BLOCK_ELEMENTS, Block};
use super::rounding;

/// Source: ggml `ggml-common.h`, `block_q8_0`.
pub(super) const BLOCK_BYTES: usize = 2 + BLOCK_ELEMENTS;

/// Code of the largest magnitude. Source: ggml `ggml-quants.c`, `quantize_row_q8_0_ref`.
const LARGEST_CODE: f32 = 127.0;

pub(super) struct Q8_0;

/// The nearest integer to a number of magnitude below 127.5, halves away from zero, as C's `roundf` has it.
///
/// The largest number below a half does not carry what is below a half over the next integer, as a half itself would.
#[inline(always)]
fn round(value: f32) -> i8 {
    let magnitude = rounding::floor(value.abs() + 0.5_f32.next_down()).cast_signed();
    if value < 0.0 { magnitude.wrapping_neg() } else { magnitude }
}

impl Block<BLOCK_ELEMENTS, BLOCK_BYTES> for Q8_0 {
    #[inline(always)]
    fn quantize(values: &[f32; BLOCK_ELEMENTS], largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let scale = largest / LARGEST_CODE;
        let inverse = block::inverse(scale);
        // Under an infinite inverse every product is out of range or NaN, which x86-64 turns into code 0.
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        block[..2].copy_from_slice(&rounding::to_f16(scale).to_le_bytes());
        for (code, value) in block[2..].iter_mut().zip(values) {
            *code = round(value * inverse).cast_unsigned();
        }
    }

    #[inline(always)]
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_ELEMENTS]) {
        let scale = block::read_f16(block).to_f32();
        for (value, code) in values.iter_mut().zip(&block[2..]) {
            *value = f32::from(code.cast_signed()) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_standard_library() {
        for quarter in -508..=508 {
            let value = quarter as f32 / 4.0;
            for value in [value.next_down(), value, value.next_up()] {
                assert_eq!(round(value), value.round() as i8, "{value}");
            }
        }
    }
}
