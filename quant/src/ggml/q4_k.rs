//! Q4_K: eight parts with a scale and a minimum each, then 256 codes of four bits.

use super::affine::{self, HEADER_BYTES, PART_ELEMENTS, Search};
use super::block::{Block, K_BLOCK_ELEMENTS};
use super::nibbles;
use crate::error::Error;

/// Source: ggml `ggml-common.h`, `block_q4_K`.
pub(super) const BLOCK_BYTES: usize = HEADER_BYTES + K_BLOCK_ELEMENTS / 2;

/// Source: ggml `ggml-quants.c`, `quantize_row_q4_K_ref`.
const SEARCH: Search = Search { largest_code: 15, first: -1.0, tries: 21 };

/// Two parts share their bytes, the first in the low halves.
const PAIR: usize = 2 * PART_ELEMENTS;

pub(super) struct Q4K;

impl Block<K_BLOCK_ELEMENTS, BLOCK_BYTES> for Q4K {
    #[inline(always)]
    fn quantize(values: &[f32; K_BLOCK_ELEMENTS], _largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let (header, bytes) = block.split_at_mut(HEADER_BYTES);
        let codes = affine::quantize(values, SEARCH, header);
        for (codes, bytes) in codes.as_chunks::<PAIR>().0.iter().zip(bytes.as_chunks_mut::<{ PAIR / 2 }>().0) {
            nibbles::pack(codes, bytes);
        }
    }

    #[inline(always)]
    fn check(index: usize, block: &[u8; BLOCK_BYTES]) -> Result<(), Error> {
        affine::check(index, block)
    }

    #[inline(always)]
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; K_BLOCK_ELEMENTS]) {
        let (header, bytes) = block.split_at(HEADER_BYTES);
        let mut codes = [0; K_BLOCK_ELEMENTS];
        for (codes, bytes) in codes.as_chunks_mut::<PAIR>().0.iter_mut().zip(bytes.as_chunks::<{ PAIR / 2 }>().0) {
            *codes = nibbles::unpack(bytes);
        }
        affine::dequantize(header, &codes, values);
    }
}
