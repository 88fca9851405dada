//! What AVX2 and AVX-512 do better than the compiler finds by itself.
//!
//! The methods are inlined into functions that are compiled for these instructions (`vectors::for_each_level`) and called from nowhere
//! else, which is what makes them sound.

use std::arch::x86_64::*;

use super::element::VALUES;
use super::lanes::{LANES, MAGNITUDE, Rule};
use super::vectors::{Portable, Vectors};
use super::{BLOCK_BYTES, BLOCK_ELEMENTS};

pub(super) struct Avx2;

impl Vectors for Avx2 {
    #[inline(always)]
    fn largest(values: &[u16; BLOCK_ELEMENTS]) -> u16 {
        Portable::largest(values)
    }

    #[inline(always)]
    fn pack<R: Rule>(values: &[u16; BLOCK_ELEMENTS], offset: i16) -> [u8; BLOCK_BYTES] {
        Portable::pack::<R>(values, offset)
    }

    #[inline(always)]
    fn unpack(block: &[u8; BLOCK_BYTES], offset: i16) -> [u16; BLOCK_ELEMENTS] {
        Portable::unpack(block, offset)
    }

    #[inline(always)]
    fn stream(values: &[u16; LANES], out: &mut [u16; LANES]) {
        let (from, to) = (values.as_ptr().cast::<__m256i>(), out.as_mut_ptr().cast::<__m256i>());
        // SAFETY: AVX2 is there (module doc); both arrays have 64 bytes, and the caller streams only to multiples of 64.
        unsafe {
            _mm256_stream_si256(to, _mm256_loadu_si256(from));
            _mm256_stream_si256(to.add(1), _mm256_loadu_si256(from.add(1)));
        }
    }

    #[inline(always)]
    fn finish_streaming() {
        // SAFETY: SSE is part of x86-64.
        unsafe { _mm_sfence() }
    }
}

pub(super) struct Avx512;

/// The values of the codes in bf16, twice: an index of five bits looks up its lower four.
const TABLE: [u16; 32] = {
    let mut table = [0; 32];
    let mut index = 0;
    while index < 32 {
        // Every value is exact in the upper half of its f32.
        table[index] = (VALUES[index % 16].to_bits() >> 16) as u16;
        index += 1;
    }
    table
};

impl Vectors for Avx512 {
    #[inline(always)]
    fn largest(values: &[u16; BLOCK_ELEMENTS]) -> u16 {
        // SAFETY: AVX-512 F and BW are there (module doc); the array has 64 bytes.
        unsafe {
            let magnitudes = _mm512_and_si512(_mm512_loadu_si512(values.as_ptr().cast()), _mm512_set1_epi16(MAGNITUDE.cast_signed()));
            let half = _mm256_max_epu16(_mm512_castsi512_si256(magnitudes), _mm512_extracti64x4_epi64(magnitudes, 1));
            let quarter = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
            // There is only an instruction for the smallest.
            let smallest = _mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1)));
            !(_mm_extract_epi16(smallest, 0) as u16)
        }
    }

    #[inline(always)]
    fn pack<R: Rule>(values: &[u16; BLOCK_ELEMENTS], offset: i16) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        // SAFETY: AVX-512 F and BW are there (module doc); the arrays have 64 and 16 bytes.
        unsafe {
            let codes = codes::<R>(_mm512_loadu_si512(values.as_ptr().cast()), _mm512_set1_epi16(offset));
            let pairs = _mm512_or_si512(codes, _mm512_srli_epi32(codes, 12));
            _mm_storeu_si128(block.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(pairs));
        }
        block
    }

    #[inline(always)]
    fn unpack(block: &[u8; BLOCK_BYTES], offset: i16) -> [u16; BLOCK_ELEMENTS] {
        let mut values = [0; BLOCK_ELEMENTS];
        // SAFETY: AVX-512 F and BW are there (module doc); the arrays have 16 and 64 bytes.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.as_ptr().cast()));
            // The low nibble of a byte in the low half, the high one in the high half, where the low four bits count.
            let codes = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
            let is_not_zero = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(7));
            let units = _mm512_permutexvar_epi16(codes, _mm512_loadu_si512(TABLE.as_ptr().cast()));
            let scaled = _mm512_mask_add_epi16(units, is_not_zero, units, _mm512_set1_epi16(offset));
            _mm512_storeu_si512(values.as_mut_ptr().cast(), scaled);
        }
        values
    }

    #[inline(always)]
    fn stream(values: &[u16; LANES], out: &mut [u16; LANES]) {
        // SAFETY: AVX-512 F is there (module doc); both arrays have 64 bytes, and the caller streams only to multiples of 64.
        unsafe { _mm512_stream_si512(out.as_mut_ptr().cast(), _mm512_loadu_si512(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn finish_streaming() {
        Avx2::finish_streaming();
    }
}

/// The codes of 32 elements: `lanes::code`, instruction by instruction.
///
/// # Safety
/// AVX-512 F and BW are there.
#[inline(always)]
unsafe fn codes<R: Rule>(values: __m512i, offset: __m512i) -> __m512i {
    // SAFETY: as the caller says.
    unsafe {
        let constant = |value: i16| _mm512_set1_epi16(value);
        let units = _mm512_sub_epi16(_mm512_and_si512(values, constant(MAGNITUDE.cast_signed())), offset);
        let mut rounded = _mm512_add_epi16(units, constant(0x1f - 0x3f00));
        if R::IS_EVEN {
            rounded = _mm512_add_epi16(rounded, _mm512_and_si512(_mm512_srli_epi16(units, 6), constant(1)));
        }
        let rounded = _mm512_min_epi16(_mm512_max_epi16(_mm512_srai_epi16(rounded, 6), constant(2)), constant(7));
        let from_one = _mm512_cmpgt_epi16_mask(units, constant(if R::IS_EVEN { 0x3f3f } else { 0x3f40 }));
        let from_half = _mm512_cmpgt_epi16_mask(units, constant(0x3e80));
        let magnitudes = _mm512_mask_mov_epi16(_mm512_maskz_set1_epi16(from_half, 1), from_one, rounded);
        let signs = _mm512_and_si512(_mm512_srli_epi16(values, 12), constant(8));
        if R::IS_EVEN {
            _mm512_or_si512(magnitudes, signs)
        } else {
            // Only what is not zero keeps its sign.
            _mm512_or_si512(magnitudes, _mm512_maskz_mov_epi16(from_half, signs))
        }
    }
}
