//! Q6_K: the lower four bits of 256 codes, their upper two, sixteen scales of eight bits, then the f16 unit of the scales; 32
//! stands for zero.

use super::block::{self, Block, K_BLOCK_ELEMENTS};
use super::lanes::{self, Lanes};
use super::{nibbles, rounding};
use crate::error::Error;

/// Parts of a block, each with a scale of its own.
const PARTS: usize = 16;

/// Elements of a part.
const PART_ELEMENTS: usize = K_BLOCK_ELEMENTS / PARTS;

/// Where each field begins. Source: ggml `ggml-common.h`, `block_q6_K`.
const UPPER: usize = K_BLOCK_ELEMENTS / 2;
const SCALES: usize = UPPER + K_BLOCK_ELEMENTS / 4;
const UNIT: usize = SCALES + PARTS;
pub(super) const BLOCK_BYTES: usize = UNIT + 2;

/// Half of a block has its codes in bytes of its own.
const HALF: usize = K_BLOCK_ELEMENTS / 2;

/// What code 0 stands for, in units of the scale.
const LOWEST: i32 = -32;

/// Parts without a larger magnitude are all zeros. Source: ggml `ggml-quants.c`, `GROUP_MAX_EPS`.
const LEAST_PEAK: f32 = 1e-15;

/// What the peak is taken to: -32 units in the first try, then those from -31.1 to -32.9 without it. Source: ggml `ggml-quants.c`,
/// `make_qx_quants`.
const PEAKS: [f32; 19] = {
    let mut peaks = [LOWEST as f32; 19];
    let mut index = 1;
    while index < peaks.len() {
        let tenths = if index < 10 { index as f32 - 10.0 } else { index as f32 - 9.0 };
        peaks[index] = -(32.0 + 0.1 * tenths);
        index += 1;
    }
    peaks
};

type Parts = Lanes<PARTS>;

pub(super) struct Q6K;

/// The scale of least squared error among those that fit the codes of each try, every square weighted by the value's own, and what
/// the values are multiplied with for those codes. Both are 0 for a part of zeros.
///
/// The parts go side by side. Source: ggml `ggml-quants.c`, `make_qx_quants`.
#[inline(always)]
fn search(values: &[Parts; PART_ELEMENTS]) -> (Parts, Parts) {
    let (mut peak, mut magnitude) = (Parts::ZERO, Parts::ZERO);
    for &value in values {
        peak = value.where_less(magnitude, value.abs(), peak);
        magnitude = value.abs().where_less(magnitude, value.abs(), magnitude);
    }
    let (mut scale, mut best, mut inverse) = (Parts::ZERO, Parts::ZERO, Parts::ZERO);
    for (index, units) in PEAKS.into_iter().enumerate() {
        let tried = peak.map(|peak| units / peak);
        let (mut along, mut square) = (Parts::ZERO, Parts::ZERO);
        for &value in values {
            let code = (tried * value).codes(LOWEST, -LOWEST - 1);
            let weight = value * value;
            along += weight * value * code;
            square += weight * code * code;
        }
        let fitted = along / square;
        if index == 0 {
            // Squares that are all too small for f32 leave no scale.
            scale = square.zip_map(fitted, |square, fitted| if square == 0.0 { 0.0 } else { fitted });
            (best, inverse) = (scale * along, tried);
            continue;
        }
        let limit = (best * square).zip_map(square, |limit, square| if square > 0.0 { limit } else { f32::INFINITY });
        let gain = along * along;
        scale = fitted.where_less(limit, gain, scale);
        inverse = tried.where_less(limit, gain, inverse);
        best = (fitted * along).where_less(limit, gain, best);
    }
    let least = Lanes([LEAST_PEAK; PARTS]);
    (Parts::ZERO.where_less(magnitude, least, scale), Parts::ZERO.where_less(magnitude, least, inverse))
}

impl Block<K_BLOCK_ELEMENTS, BLOCK_BYTES> for Q6K {
    /// Twice what the largest unit, scale and code stand for. From about 1e11 on the sums of the search overflow, and ggml writes
    /// zeros.
    const LARGEST: f32 = 2.0 * 65504.0 * 128.0 * 32.0;

    #[inline(always)]
    fn quantize(values: &[f32; K_BLOCK_ELEMENTS], _largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let (scales, inverses) = search(&lanes::transposed(values));
        let (mut largest, mut magnitude) = (0.0, 0.0);
        for scale in scales.0 {
            if scale.abs() > magnitude {
                (largest, magnitude) = (scale, scale.abs());
            }
        }
        block.fill(0);
        if magnitude < LEAST_PEAK {
            return;
        }
        let inverse = -128.0 / largest;
        let unit = rounding::to_f16(1.0 / inverse);
        block[UNIT..].copy_from_slice(&unit.to_le_bytes());

        let mut codes = [0; K_BLOCK_ELEMENTS];
        let parts = values.as_chunks::<PART_ELEMENTS>().0.iter().zip(codes.as_chunks_mut::<PART_ELEMENTS>().0);
        for (part, (values, codes)) in parts.enumerate() {
            let scale = rounding::nearest(inverse * scales.0[part]).min(127) as i8;
            block[SCALES + part] = scale.cast_unsigned();
            let scale = unit.to_f32() * f32::from(scale);
            let code = |units: f32| (rounding::nearest(units).clamp(LOWEST, -LOWEST - 1) - LOWEST) as u8;
            // A part whose scale is rounded to zero keeps the codes of the search, which stand for nothing.
            if scale != 0.0 {
                *codes = values.map(|value| code(value / scale));
            } else if inverses.0[part] != 0.0 {
                *codes = values.map(|value| code(inverses.0[part] * value));
            }
        }
        pack(&codes, block);
    }

    #[inline(always)]
    fn check(index: usize, block: &[u8; BLOCK_BYTES]) -> Result<(), Error> {
        block::check_scale(index, block::read_f16(&block[UNIT..]))
    }

    #[inline(always)]
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; K_BLOCK_ELEMENTS]) {
        let unit = block::read_f16(&block[UNIT..]).to_f32();
        let codes = unpack(block);
        let parts = values.as_chunks_mut::<PART_ELEMENTS>().0.iter_mut().zip(codes.as_chunks::<PART_ELEMENTS>().0);
        for ((values, codes), scale) in parts.zip(&block[SCALES..UNIT]) {
            let scale = unit * f32::from(scale.cast_signed());
            for (value, code) in values.iter_mut().zip(codes) {
                *value = scale * f32::from(code.cast_signed() + LOWEST as i8);
            }
        }
    }
}

/// Writes both fields of the codes. Their upper bits lie four to a byte, those of elements a fourth of a half apart.
///
/// Source: ggml `ggml-quants.c`, `dequantize_row_q6_K`.
#[inline(always)]
fn pack(codes: &[u8; K_BLOCK_ELEMENTS], block: &mut [u8; BLOCK_BYTES]) {
    for (half, codes) in codes.as_chunks::<HALF>().0.iter().enumerate() {
        nibbles::pack(codes, &mut block[half * HALF / 2..][..HALF / 2]);
        let upper = &mut block[UPPER + half * HALF / 4..][..HALF / 4];
        for (fourth, codes) in codes.as_chunks::<{ HALF / 4 }>().0.iter().enumerate() {
            for (bits, code) in upper.iter_mut().zip(codes) {
                *bits |= code >> 4 << (2 * fourth);
            }
        }
    }
}

/// The codes of [`pack`], 0..64.
#[inline(always)]
fn unpack(block: &[u8; BLOCK_BYTES]) -> [u8; K_BLOCK_ELEMENTS] {
    let mut codes = [0; K_BLOCK_ELEMENTS];
    for (half, codes) in codes.as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
        *codes = nibbles::unpack(&block[half * HALF / 2..][..HALF / 2]);
        let upper = &block[UPPER + half * HALF / 4..][..HALF / 4];
        for (fourth, codes) in codes.as_chunks_mut::<{ HALF / 4 }>().0.iter_mut().enumerate() {
            for (code, bits) in codes.iter_mut().zip(upper) {
                *code |= (bits >> (2 * fourth) & 3) << 4;
            }
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_codes_come_back(codes in proptest::collection::vec(0..64_u8, K_BLOCK_ELEMENTS)) {
            let codes = <[u8; K_BLOCK_ELEMENTS]>::try_from(codes).unwrap();
            let mut block = [0; BLOCK_BYTES];
            pack(&codes, &mut block);
            prop_assert_eq!(unpack(&block), codes);
        }
    }

    #[test]
    fn tries_are_a_tenth_of_a_unit_apart() {
        assert_eq!(PEAKS[..3], [-32.0, -31.1, -31.2]);
        assert_eq!(PEAKS[9..12], [-31.9, -32.1, -32.2]);
        assert_eq!(PEAKS[18], -32.9);
    }
}
