//! Q5_K: eight parts with a scale and a minimum each, the fifth bits of 256 codes, then their lower four.

use super::affine::{self, HEADER_BYTES, PART_ELEMENTS, Search};
use super::block::{Block, K_BLOCK_ELEMENTS};
use super::nibbles;
use crate::error::Error;

/// Bytes of the fifth bits: bit i of byte j is that of element j of part i.
const FIFTH_BYTES: usize = PART_ELEMENTS;

/// Source: ggml `ggml-common.h`, `block_q5_K`.
pub(super) const BLOCK_BYTES: usize = HEADER_BYTES + FIFTH_BYTES + K_BLOCK_ELEMENTS / 2;

/// Source: ggml `ggml-quants.c`, `quantize_row_q5_K_ref`.
const SEARCH: Search = Search { largest_code: 31, first: -0.5, tries: 16 };

/// Two parts share their bytes, the first in the low halves.
const PAIR: usize = 2 * PART_ELEMENTS;

pub(super) struct Q5K;

impl Block<K_BLOCK_ELEMENTS, BLOCK_BYTES> for Q5K {
    #[inline(always)]
    fn quantize(values: &[f32; K_BLOCK_ELEMENTS], _largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let (header, bytes) = block.split_at_mut(HEADER_BYTES);
        let (fifth_bits, bytes) = bytes.split_at_mut(FIFTH_BYTES);
        let codes = affine::quantize(values, SEARCH, header);
        for (codes, bytes) in codes.as_chunks::<PAIR>().0.iter().zip(bytes.as_chunks_mut::<{ PAIR / 2 }>().0) {
            nibbles::pack(codes, bytes);
        }
        fifth_bits.fill(0);
        for (part, codes) in codes.as_chunks::<PART_ELEMENTS>().0.iter().enumerate() {
            for (bits, code) in fifth_bits.iter_mut().zip(codes) {
                *bits |= code >> 4 << part;
            }
        }
    }

    #[inline(always)]
    fn check(index: usize, block: &[u8; BLOCK_BYTES]) -> Result<(), Error> {
        affine::check(index, block)
    }

    #[inline(always)]
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; K_BLOCK_ELEMENTS]) {
        let (header, bytes) = block.split_at(HEADER_BYTES);
        let (fifth_bits, bytes) = bytes.split_at(FIFTH_BYTES);
        let mut codes = [0; K_BLOCK_ELEMENTS];
        for (codes, bytes) in codes.as_chunks_mut::<PAIR>().0.iter_mut().zip(bytes.as_chunks::<{ PAIR / 2 }>().0) {
            *codes = nibbles::unpack(bytes);
        }
        for (part, codes) in codes.as_chunks_mut::<PART_ELEMENTS>().0.iter_mut().enumerate() {
            for (code, bits) in codes.iter_mut().zip(fifth_bits) {
                *code |= (bits >> part & 1) << 4;
            }
        }
        affine::dequantize(header, &codes, values);
    }
}
