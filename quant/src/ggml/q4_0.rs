//! Q4_0: an f16 scale, then 32 codes of four bits, 8 standing for zero.

use super::block::{self, BLOCK_ELEMENTS, Block};
use super::{nibbles, rounding};

/// Source: ggml `ggml-common.h`, `block_q4_0`.
pub(super) const BLOCK_BYTES: usize = 2 + nibbles::BYTES;

/// What code 0 stands for, in units of the scale.
const LOWEST: i8 = -8;

pub(super) struct Q4_0;

impl Block<BLOCK_ELEMENTS, BLOCK_BYTES> for Q4_0 {
    #[inline(always)]
    fn quantize(values: &[f32; BLOCK_ELEMENTS], largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let (scale, codes) = block::codes_from_peak(values, largest, LOWEST);
        block[..2].copy_from_slice(&rounding::to_f16(scale).to_le_bytes());
        nibbles::pack(&codes, &mut block[2..]);
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
