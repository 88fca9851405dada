//! Q4_0: an f16 scale, then 32 codes of four bits, 8 standing for zero.

use super::block::{self, BLOCK_ELEMENTS, Block};
use super::{nibbles, rounding};
use crate::error::Error;

/// Source: ggml `ggml-common.h`, `block_q4_0`.
pub(super) const BLOCK_BYTES: usize = 2 + nibbles::BYTES;

/// What code 0 stands for, in units of the scale: the scale has the sign that gives it to the peak. Source: ggml `ggml-quants.c`,
/// `quantize_row_q4_0_ref`.
const LOWEST: i8 = -8;

pub(super) struct Q4_0;

impl Block<BLOCK_ELEMENTS, BLOCK_BYTES> for Q4_0 {
    #[inline(always)]
    fn quantize(values: &[f32; BLOCK_ELEMENTS], largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let scale = block::peak(values, largest) / f32::from(LOWEST);
        let inverse = block::inverse(scale);
        block[..2].copy_from_slice(&rounding::to_f16(scale).to_le_bytes());
        let mut codes = [0; BLOCK_ELEMENTS];
        // Under an infinite inverse every product is out of range or NaN, which x86-64 turns into code 0.
        if inverse.is_finite() {
            for (code, value) in codes.iter_mut().zip(values) {
                *code = rounding::floor(value * inverse + 8.5).min(15);
            }
        }
        nibbles::pack(&codes, &mut block[2..]);
    }

    #[inline(always)]
    fn check(index: usize, block: &[u8; BLOCK_BYTES]) -> Result<(), Error> {
        block::check_scale(index, block::read_f16(block))
    }

    #[inline(always)]
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_ELEMENTS]) {
        let scale = block::read_f16(block).to_f32();
        let codes: [u8; BLOCK_ELEMENTS] = nibbles::unpack(&block[2..]);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = f32::from(code.cast_signed() + LOWEST) * scale;
        }
    }
}
