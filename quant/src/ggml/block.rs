//! From one block to many, compiled once for each level of vector instructions.

use half::f16;

use super::{Type, rounding};
use crate::error::Error;
use crate::processor::{Instructions, Level};

/// Elements of a block of the types with one scale. Source: ggml `ggml-common.h`, `QK8_0` and its like.
pub(super) const BLOCK_ELEMENTS: usize = 32;

/// Elements of a block of the K types, whose parts have scales of their own. Source: ggml `ggml-common.h`, `QK_K`.
pub(super) const K_BLOCK_ELEMENTS: usize = 256;

/// A type's way with one block. All of it is inlined into the loops below, which is what vectorizes it.
pub(super) trait Block<const ELEMENTS: usize, const BYTES: usize> {
    /// Larger magnitudes are reported, even where the block that ggml writes for them stands for numbers.
    const LARGEST: f32 = f32::MAX;

    /// Writes the block of finite values whose largest magnitude is `largest`.
    fn quantize(values: &[f32; ELEMENTS], largest: f32, block: &mut [u8; BYTES]);

    /// Refuses block number `index` if it stands for no numbers: where a scale comes first and is all that can be none, by that.
    #[inline(always)]
    fn check(index: usize, block: &[u8; BYTES]) -> Result<(), Error> {
        check_scale(index, read_f16(block))
    }

    /// Writes the values of a block that [`Block::check`] accepts.
    fn dequantize(block: &[u8; BYTES], values: &mut [f32; ELEMENTS]);
}

pub(super) fn check_lengths(kind: Type, elements: usize, bytes: usize) -> Result<(), Error> {
    let block = kind.block_elements();
    if !elements.is_multiple_of(block) {
        return Err(Error::PartialBlock { block, found: elements });
    }
    let expected = elements / block * kind.block_bytes();
    if bytes == expected { Ok(()) } else { Err(Error::Length { slice: "blocks", expected, found: bytes }) }
}

/// The f16 at the start of `bytes`, which hold two at least.
#[inline(always)]
pub(super) fn read_f16(bytes: &[u8]) -> f16 {
    f16::from_le_bytes([bytes[0], bytes[1]])
}

/// Refuses an f16 that is NaN or infinite, as the scale of block number `index`.
#[inline(always)]
pub(super) fn check_scale(index: usize, scale: f16) -> Result<(), Error> {
    if scale.is_finite() { Ok(()) } else { Err(Error::ScaleNotFinite { index }) }
}

/// The value of largest magnitude, the first of them if there are several, or +0 if all are zeros.
#[inline(always)]
pub(super) fn peak(values: &[f32; BLOCK_ELEMENTS], largest: f32) -> f32 {
    let is_there = values.iter().fold(false, |found, value| found | (*value == largest));
    // With the sign as their lowest bit, numbers are in the order of their magnitudes, and negative ones come last.
    let negative = values.iter().fold(0, |most: u32, value| most.max(value.to_bits().rotate_left(1))) & 1 == 1;
    // No branch on the sign, which nothing foretells.
    if is_there & negative {
        return if largest == 0.0 { 0.0 } else { first(values, |value| value.abs() == largest) };
    }
    f32::from_bits(largest.to_bits() | u32::from(negative) << 31)
}

/// Codes from 0 up of which the lowest stands for the peak, and their scale, which has the sign that makes it so: `lowest` is what code 0 stands
/// for in units of the scale.
///
/// Source: ggml `ggml-quants.c`, `quantize_row_q4_0_ref` and `quantize_row_q5_0_ref`.
#[inline(always)]
pub(super) fn codes_from_peak(values: &[f32; BLOCK_ELEMENTS], largest: f32, lowest: i8) -> (f32, [u8; BLOCK_ELEMENTS]) {
    let scale = peak(values, largest) / f32::from(lowest);
    let inverse = inverse(scale);
    let mut codes = [0; BLOCK_ELEMENTS];
    // Under an infinite inverse every product is out of range or NaN, which x86-64 turns into code 0.
    if inverse.is_finite() {
        for (code, value) in codes.iter_mut().zip(values) {
            *code = rounding::floor(value * inverse + (0.5 - f32::from(lowest))).min((-2 * lowest - 1).cast_unsigned());
        }
    }
    (scale, codes)
}

/// The first value that is as wanted, or 0: out of line, since it is seldom asked for and its steps cannot be vectors.
#[cold]
#[inline(never)]
pub(super) fn first(values: &[f32; BLOCK_ELEMENTS], is_wanted: impl Fn(f32) -> bool) -> f32 {
    values.iter().copied().find(|&value| is_wanted(value)).unwrap_or(0.0)
}

#[cold]
#[inline(never)]
fn not_finite(index: usize, values: &[f32]) -> Error {
    let offset = values.iter().take_while(|value| value.is_finite()).count();
    Error::NotFinite { index: index * values.len() + offset }
}

/// 1 / `scale`, and 0 for a scale of 0. Infinite for scales below 2^-128.
#[inline(always)]
pub(super) fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[inline(always)]
fn quantize_blocks<B: Block<ELEMENTS, BYTES>, const ELEMENTS: usize, const BYTES: usize>(
    values: &[f32],
    blocks: &mut [u8],
) -> Result<(), Error> {
    let mut checked = Ok(());
    let (values, blocks) = (values.as_chunks::<ELEMENTS>().0, blocks.as_chunks_mut::<BYTES>().0);
    for (index, (values, block)) in values.iter().zip(blocks).enumerate() {
        // Without the sign, the bits of finite numbers are in the order of their magnitudes, and below those of the others.
        let largest = values.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            return Err(not_finite(index, values));
        }
        B::quantize(values, largest, block);
        let is_held = largest <= B::LARGEST;
        checked = checked.and_then(|()| if is_held { B::check(index, block) } else { Err(Error::ScaleNotFinite { index }) });
    }
    checked
}

#[inline(always)]
fn dequantize_blocks<B: Block<ELEMENTS, BYTES>, const ELEMENTS: usize, const BYTES: usize>(
    blocks: &[u8],
    values: &mut [f32],
) -> Result<(), Error> {
    let (blocks, values) = (blocks.as_chunks::<BYTES>().0, values.as_chunks_mut::<ELEMENTS>().0);
    for (index, (block, values)) in blocks.iter().zip(values).enumerate() {
        B::check(index, block)?;
        B::dequantize(block, values);
    }
    Ok(())
}

/// Defines `$name`, which runs `$body` compiled for a level.
///
/// Rust never fuses a multiplication with an addition by itself, so that all levels compute the same.
macro_rules! for_each_level {
    (fn $name:ident(from: &$from:ty, to: &mut $to:ty) = $body:ident) => {
        fn $name<B: Block<ELEMENTS, BYTES>, const ELEMENTS: usize, const BYTES: usize>(
            level: Level,
            from: &$from,
            to: &mut $to,
        ) -> Result<(), Error> {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,f16c")]
            fn avx512<B: Block<ELEMENTS, BYTES>, const ELEMENTS: usize, const BYTES: usize>(
                from: &$from,
                to: &mut $to,
            ) -> Result<(), Error> {
                $body::<B, ELEMENTS, BYTES>(from, to)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi2,f16c")]
            fn avx2<B: Block<ELEMENTS, BYTES>, const ELEMENTS: usize, const BYTES: usize>(from: &$from, to: &mut $to) -> Result<(), Error> {
                $body::<B, ELEMENTS, BYTES>(from, to)
            }
            match level.instructions() {
                // SAFETY: a level is only made where the processor has its instructions.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => unsafe { avx512::<B, ELEMENTS, BYTES>(from, to) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => unsafe { avx2::<B, ELEMENTS, BYTES>(from, to) },
                Instructions::Portable => $body::<B, ELEMENTS, BYTES>(from, to),
            }
        }
    };
}

for_each_level!(fn quantize_at(from: &[f32], to: &mut [u8]) = quantize_blocks);
for_each_level!(fn dequantize_at(from: &[u8], to: &mut [f32]) = dequantize_blocks);

/// Writes the blocks of `values`; the slices fit each other.
pub(super) fn quantize<B: Block<ELEMENTS, BYTES>, const ELEMENTS: usize, const BYTES: usize>(
    values: &[f32],
    blocks: &mut [u8],
) -> Result<(), Error> {
    quantize_at::<B, ELEMENTS, BYTES>(Level::best(), values, blocks)
}

/// Writes the values of `blocks`; the slices fit each other.
pub(super) fn dequantize<B: Block<ELEMENTS, BYTES>, const ELEMENTS: usize, const BYTES: usize>(
    blocks: &[u8],
    values: &mut [f32],
) -> Result<(), Error> {
    dequantize_at::<B, ELEMENTS, BYTES>(Level::best(), blocks, values)
}

#[cfg(test)]
mod tests {
    use super::super::{iq4_nl, mxfp4, q4_0, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};
    use super::*;
    use proptest::prelude::*;

    fn compare_levels<B: Block<ELEMENTS, BYTES>, const ELEMENTS: usize, const BYTES: usize>(values: &[f32]) {
        let mut outcomes = Level::available().map(|level| {
            let mut blocks = vec![0; values.len() / ELEMENTS * BYTES];
            let quantized = quantize_at::<B, ELEMENTS, BYTES>(level, values, &mut blocks);
            let mut back = vec![0.0_f32; values.len()];
            let dequantized = dequantize_at::<B, ELEMENTS, BYTES>(level, &blocks, &mut back);
            (quantized, blocks, dequantized, back.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        let portable = outcomes.next().expect("plain code always runs");
        for other in outcomes {
            assert_eq!(portable, other);
        }
    }

    proptest! {
        #[test]
        fn every_level_of_instructions_gives_the_same(
            values in proptest::collection::vec(-1.0..1.0_f32, 2 * K_BLOCK_ELEMENTS),
            exponents in proptest::array::uniform16(-149..40_i32),
        ) {
            let scaled = values.chunks_exact(BLOCK_ELEMENTS).zip(exponents);
            let values: Vec<f32> = scaled.flat_map(|(values, exponent)| values.iter().map(move |value| value * (exponent as f32).exp2())).collect();
            compare_levels::<q4_0::Q4_0, _, _>(&values);
            compare_levels::<q5_0::Q5_0, _, _>(&values);
            compare_levels::<q5_1::Q5_1, _, _>(&values);
            compare_levels::<q8_0::Q8_0, _, _>(&values);
            compare_levels::<q4_k::Q4K, _, _>(&values);
            compare_levels::<q5_k::Q5K, _, _>(&values);
            compare_levels::<q6_k::Q6K, _, _>(&values);
            compare_levels::<iq4_nl::Iq4Nl, _, _>(&values);
            compare_levels::<mxfp4::Mxfp4, _, _>(&values);
        }
    }

    #[test]
    fn the_peak_is_the_first_of_equals() {
        let mut values = [0.5; BLOCK_ELEMENTS];
        values[7] = -2.0;
        assert_eq!(peak(&values, 2.0), -2.0);
        values[30] = 2.0;
        assert_eq!(peak(&values, 2.0), -2.0);
        values[3] = 2.0;
        assert_eq!(peak(&values, 2.0), 2.0);
        assert_eq!(peak(&[-0.0; BLOCK_ELEMENTS], 0.0).to_bits(), 0);
    }
}
