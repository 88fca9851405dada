//! Q5_0: an f16 scale, the fifth bits of 32 codes, then their lower four; 16 stands for zero.

use super::block::{self, BLOCK_ELEMENTS, Block};
use super::{nibbles, rounding};

/// Source: ggml `ggml-common.h`, `block_q5_0`.
pub(super) const BLOCK_BYTES: usize = 6 + nibbles::BYTES;

/// What code 0 stands for, in units of the scale.
const LOWEST: i8 = -16;

pub(super) struct Q5_0;

impl Block<BLOCK_ELEMENTS, BLOCK_BYTES> for Q5_0 {
    #[inline(always)]
    fn quantize(values: &[f32; BLOCK_ELEMENTS], largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let (scale, codes) = block::codes_from_peak(values, largest, LOWEST);
        block[..2].copy_from_slice(&rounding::to_f16(scale).to_le_bytes());
        block[2..6].copy_from_slice(&nibbles::fifth_bits(&codes).to_le_bytes());
        nibbles::pack(&codes, &mut block[6..]);
    }

    #[inline(always)]
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_ELEMENTS]) {
        let scale = block::read_f16(block).to_f32();
        let fifth_bits = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        let codes = nibbles::unpack_with_fifth_bits(&block[6..], fifth_bits);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = f32::from(code.cast_signed() + LOWEST) * scale;
        }
    }
}
