//! From one block to many, compiled once for each level of vector instructions.

use half::f16;

use crate::error::Error;
use crate::processor::{Instructions, Level};

/// Elements of a block, the same for every type here. Source: ggml `ggml-common.h`, `QK8_0` and its like.
pub const BLOCK_ELEMENTS: usize = 32;

/// A type's way with one block. All of it is inlined into the loops below, which is what vectorizes it.
pub(super) trait Block<const BLOCK_BYTES: usize> {
    /// Writes the block of finite values whose largest magnitude is `largest`.
    fn quantize(values: &[f32; BLOCK_ELEMENTS], largest: f32, block: &mut [u8; BLOCK_BYTES]);

    /// Refuses block number `index` if it stands for no numbers.
    fn check(index: usize, block: &[u8; BLOCK_BYTES]) -> Result<(), Error>;

    /// Writes the values of a block that [`Block::check`] accepts.
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_ELEMENTS]);
}

pub(super) fn check_lengths(elements: usize, bytes: usize, block_bytes: usize) -> Result<(), Error> {
    if !elements.is_multiple_of(BLOCK_ELEMENTS) {
        return Err(Error::PartialBlock { block: BLOCK_ELEMENTS, found: elements });
    }
    let expected = elements / BLOCK_ELEMENTS * block_bytes;
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

/// The first value that is as wanted, or 0: out of line, since it is seldom asked for and its steps cannot be vectors.
#[cold]
#[inline(never)]
pub(super) fn first(values: &[f32; BLOCK_ELEMENTS], is_wanted: impl Fn(f32) -> bool) -> f32 {
    values.iter().copied().find(|&value| is_wanted(value)).unwrap_or(0.0)
}

#[cold]
#[inline(never)]
fn not_finite(index: usize, values: &[f32; BLOCK_ELEMENTS]) -> Error {
    let offset = values.iter().take_while(|value| value.is_finite()).count();
    Error::NotFinite { index: index * BLOCK_ELEMENTS + offset }
}

/// 1 / `scale`, and 0 for a scale of 0. Infinite for scales below 2^-128.
#[inline(always)]
pub(super) fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[inline(always)]
fn quantize_blocks<B: Block<BLOCK_BYTES>, const BLOCK_BYTES: usize>(values: &[f32], blocks: &mut [u8]) -> Result<(), Error> {
    let mut checked = Ok(());
    let (values, blocks) = (values.as_chunks().0, blocks.as_chunks_mut().0);
    for (index, (values, block)) in values.iter().zip(blocks).enumerate() {
        // Without the sign, the bits of finite numbers are in the order of their magnitudes, and below those of the others.
        let largest = values.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            return Err(not_finite(index, values));
        }
        B::quantize(values, largest, block);
        checked = checked.and_then(|()| B::check(index, block));
    }
    checked
}

#[inline(always)]
fn dequantize_blocks<B: Block<BLOCK_BYTES>, const BLOCK_BYTES: usize>(blocks: &[u8], values: &mut [f32]) -> Result<(), Error> {
    let (blocks, values) = (blocks.as_chunks().0, values.as_chunks_mut().0);
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
        fn $name<B: Block<BLOCK_BYTES>, const BLOCK_BYTES: usize>(level: Level, from: &$from, to: &mut $to) -> Result<(), Error> {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,f16c")]
            fn avx512<B: Block<BLOCK_BYTES>, const BLOCK_BYTES: usize>(from: &$from, to: &mut $to) -> Result<(), Error> {
                $body::<B, BLOCK_BYTES>(from, to)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi2,f16c")]
            fn avx2<B: Block<BLOCK_BYTES>, const BLOCK_BYTES: usize>(from: &$from, to: &mut $to) -> Result<(), Error> {
                $body::<B, BLOCK_BYTES>(from, to)
            }
            match level.instructions() {
                // SAFETY: a level is only made where the processor has its instructions.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => unsafe { avx512::<B, BLOCK_BYTES>(from, to) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => unsafe { avx2::<B, BLOCK_BYTES>(from, to) },
                Instructions::Portable => $body::<B, BLOCK_BYTES>(from, to),
            }
        }
    };
}

for_each_level!(fn quantize_at(from: &[f32], to: &mut [u8]) = quantize_blocks);
for_each_level!(fn dequantize_at(from: &[u8], to: &mut [f32]) = dequantize_blocks);

/// Writes the blocks of `values`; the slices fit each other.
pub(super) fn quantize<B: Block<BLOCK_BYTES>, const BLOCK_BYTES: usize>(values: &[f32], blocks: &mut [u8]) -> Result<(), Error> {
    quantize_at::<B, BLOCK_BYTES>(Level::best(), values, blocks)
}

/// Writes the values of `blocks`; the slices fit each other.
pub(super) fn dequantize<B: Block<BLOCK_BYTES>, const BLOCK_BYTES: usize>(blocks: &[u8], values: &mut [f32]) -> Result<(), Error> {
    dequantize_at::<B, BLOCK_BYTES>(Level::best(), blocks, values)
}

#[cfg(test)]
mod tests {
    use super::super::{iq4_nl, mxfp4, q4_0, q5_0, q5_1, q8_0};
    use super::*;
    use proptest::prelude::*;

    fn compare_levels<B: Block<BLOCK_BYTES>, const BLOCK_BYTES: usize>(values: &[f32]) {
        let mut outcomes = Level::available().map(|level| {
            let mut blocks = vec![0; values.len() / BLOCK_ELEMENTS * BLOCK_BYTES];
            let quantized = quantize_at::<B, BLOCK_BYTES>(level, values, &mut blocks);
            let mut back = vec![0.0_f32; values.len()];
            let dequantized = dequantize_at::<B, BLOCK_BYTES>(level, &blocks, &mut back);
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
            values in proptest::collection::vec(-1.0..1.0_f32, 4 * BLOCK_ELEMENTS),
            exponents in proptest::array::uniform4(-149..40_i32),
        ) {
            let scaled = values.chunks_exact(BLOCK_ELEMENTS).zip(exponents);
            let values: Vec<f32> = scaled.flat_map(|(values, exponent)| values.iter().map(move |value| value * (exponent as f32).exp2())).collect();
            compare_levels::<q4_0::Q4_0, { q4_0::BLOCK_BYTES }>(&values);
            compare_levels::<q5_0::Q5_0, { q5_0::BLOCK_BYTES }>(&values);
            compare_levels::<q5_1::Q5_1, { q5_1::BLOCK_BYTES }>(&values);
            compare_levels::<q8_0::Q8_0, { q8_0::BLOCK_BYTES }>(&values);
            compare_levels::<iq4_nl::Iq4Nl, { iq4_nl::BLOCK_BYTES }>(&values);
            compare_levels::<mxfp4::Mxfp4, { mxfp4::BLOCK_BYTES }>(&values);
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
