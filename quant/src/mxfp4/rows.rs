//! Blocks along the rows: 32 neighbouring values are a block.

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::lanes::{
    LANES, NORMAL_SCALES, NOT_FINITE, Rule, SMALLEST_SCALE, add_errors_above_zero, can_win, float, in_squared_units, offset, start_scale,
    with_rule,
};
use super::vectors::{Vectors, for_each_level};
use super::{BLOCK_BYTES, BLOCK_ELEMENTS, Packing, Rounding, ScaleRule, check_length, reference, scale, tile};
use crate::error::Error;
use crate::float::Float;
use crate::processor::Level;

/// Blocks that a thread takes at a time.
const CHUNK_BLOCKS: usize = 1 << 13;

/// Bytes of output from which on it is written past the caches.
const STREAMED_BYTES: usize = 16 << 20;

/// Unpacks blocks to bf16, which holds every value exactly, with the threads of the current rayon pool.
///
/// # Shapes
/// With n blocks: `blocks` has 16 n bytes, `scales` n, `out` 32 n elements.
///
/// # Errors
/// [`Error::Length`] when the slices do not fit each other, [`Error::ReservedScale`] for a scale byte of 255,
/// [`Error::Overflow`] where bf16 cannot hold the value, each for the first such scale; `out` is then partly written.
pub fn unpack(blocks: &[u8], scales: &[u8], out: &mut [bf16]) -> Result<(), Error> {
    unpack_at(Level::best(), blocks, scales, out)
}

pub(super) fn unpack_at(level: Level, blocks: &[u8], scales: &[u8], out: &mut [bf16]) -> Result<(), Error> {
    check_length("blocks", scales.len() * BLOCK_BYTES, blocks.len())?;
    check_length("out", scales.len() * BLOCK_ELEMENTS, out.len())?;
    let out = out.reinterpret_cast_mut();
    let streams = streams(out);
    let chunks = blocks.par_chunks(CHUNK_BLOCKS * BLOCK_BYTES).zip(scales.par_chunks(CHUNK_BLOCKS));
    let results = chunks.zip(out.par_chunks_mut(CHUNK_BLOCKS * BLOCK_ELEMENTS)).enumerate().map(|(chunk, ((blocks, scales), out))| {
        let (blocks, out) = (blocks.as_chunks().0, out.as_chunks_mut().0);
        let unpacked = unpack_blocks::<super::lanes::Even>(level, blocks, scales, out, streams);
        unpacked.map_err(|index| refused(blocks, scales, index, chunk * CHUNK_BLOCKS))
    });
    first_error(results)
}

/// Packs values into blocks, each element rounded to the nearest code, with the threads of the current rayon pool.
///
/// `hints` are the scales to start from under [`ScaleRule::Hint`]; the other rules do not look at them.
///
/// # Shapes
/// With n blocks: `values` has 32 n elements, `hints` and `scales` n, `blocks` 16 n bytes.
///
/// # Errors
/// [`Error::PartialBlock`] or [`Error::Length`] when the slices do not fit each other, [`Error::NotFinite`] for the first NaN or
/// infinity, [`Error::ReservedScale`] for a hint of 255; `blocks` and `scales` are then partly written.
pub fn pack<T: Float>(values: &[T], packing: Packing, hints: Option<&[u8]>, blocks: &mut [u8], scales: &mut [u8]) -> Result<(), Error> {
    pack_at(Level::best(), values, packing, hints, blocks, scales)
}

pub(super) fn pack_at<T: Float>(
    level: Level,
    values: &[T],
    packing: Packing,
    hints: Option<&[u8]>,
    blocks: &mut [u8],
    scales: &mut [u8],
) -> Result<(), Error> {
    if !values.len().is_multiple_of(BLOCK_ELEMENTS) {
        return Err(Error::PartialBlock { block: BLOCK_ELEMENTS, found: values.len() });
    }
    check_length("blocks", values.len() / 2, blocks.len())?;
    check_length("scales", values.len() / BLOCK_ELEMENTS, scales.len())?;
    let (packing, hints) = packing.with_hints(hints, scales.len())?;
    let pack_chunk = |(chunk, (blocks, scales)): (usize, (&mut [u8], &mut [u8]))| {
        let range = chunk * CHUNK_BLOCKS..chunk * CHUNK_BLOCKS + scales.len();
        let hints = hints.map(|hints| &hints[range.clone()]);
        let values = &values[elements(&range)];
        let blocks = blocks.as_chunks_mut().0;
        let packed = match T::bf16_bits(values) {
            Some(bits) => with_rule!(packing.rounding, R => pack_blocks::<R>(level, bits.as_chunks().0, packing, hints, blocks, scales)),
            None => with_rule!(packing.rounding, R => pack_tiles::<T, R>(level, values.as_chunks().0, packing, hints, blocks, scales)),
        };
        packed.map_err(|index| Error::NotFinite { index: elements(&range).start + index })
    };
    let chunks = blocks.par_chunks_mut(CHUNK_BLOCKS * BLOCK_BYTES).zip(scales.par_chunks_mut(CHUNK_BLOCKS));
    first_error(chunks.enumerate().map(pack_chunk))
}

/// Of several errors the first, whatever the threads do.
pub(super) fn first_error(results: impl IndexedParallelIterator<Item = Result<(), Error>>) -> Result<(), Error> {
    results.collect::<Vec<_>>().into_iter().collect()
}

/// Whether `out` is too large for the caches and lies so that it can be written past them.
pub(super) fn streams(out: &[u16]) -> bool {
    size_of_val(out) >= STREAMED_BYTES && out.as_ptr().addr().is_multiple_of(64)
}

/// Why block `index` of these cannot be unpacked; `first` is the index of the first one.
pub(super) fn refused(blocks: &[[u8; BLOCK_BYTES]], scales: &[u8], index: usize, first: usize) -> Error {
    let (index, scale) = (first + index, scales[index]);
    debug_assert!(unpacked_with_care(&blocks[index - first], scale).is_none());
    if scale == scale::RESERVED { Error::ReservedScale { index } } else { Error::Overflow { index, scale } }
}

/// The bits of a block's values under whatever scale; nothing where they are no numbers.
#[cold]
pub(super) fn unpacked_with_care(block: &[u8; BLOCK_BYTES], scale: u8) -> Option<[u16; BLOCK_ELEMENTS]> {
    let values = (scale != scale::RESERVED).then(|| reference::unpack_block(block, scale))?;
    values.iter().all(|value| value.is_finite()).then(|| values.map(bf16::to_bits))
}

fn elements(blocks: &Range<usize>) -> Range<usize> {
    blocks.start * BLOCK_ELEMENTS..blocks.end * BLOCK_ELEMENTS
}

for_each_level! {
    /// The index of the first block that cannot be unpacked is the error.
    fn unpack_blocks<R>(
        blocks: &[[u8; BLOCK_BYTES]], scales: &[u8], out: &mut [[u16; BLOCK_ELEMENTS]], streams: bool,
    ) -> Result<(), usize> = unpack_kernel;
}

#[inline(always)]
fn unpack_kernel<V: Vectors, R: Rule>(
    blocks: &[[u8; BLOCK_BYTES]],
    scales: &[u8],
    out: &mut [[u16; BLOCK_ELEMENTS]],
    streams: bool,
) -> Result<(), usize> {
    for (index, ((block, &scale), out)) in blocks.iter().zip(scales).zip(out).enumerate() {
        if !NORMAL_SCALES.contains(&scale) {
            *out = unpacked_with_care(block, scale).ok_or(index)?;
        } else if streams {
            V::stream(&V::unpack(block, offset(scale)), out);
        } else {
            *out = V::unpack(block, offset(scale));
        }
    }
    if streams {
        V::finish_streaming();
    }
    Ok(())
}

for_each_level! {
    /// The index of the first value that is no number is the error.
    fn pack_blocks<R>(
        values: &[[u16; BLOCK_ELEMENTS]], packing: Packing, hints: Option<&[u8]>, blocks: &mut [[u8; BLOCK_BYTES]], scales: &mut [u8],
    ) -> Result<(), usize> = pack_kernel;
}

/// Blocks whose largest values are found before the first is packed: the processor then has several chains to work on.
const GROUP: usize = 8;

#[inline(always)]
fn pack_kernel<V: Vectors, R: Rule>(
    values: &[[u16; BLOCK_ELEMENTS]],
    packing: Packing,
    hints: Option<&[u8]>,
    blocks: &mut [[u8; BLOCK_BYTES]],
    scales: &mut [u8],
) -> Result<(), usize> {
    let groups = values.chunks(GROUP).zip(blocks.chunks_mut(GROUP)).zip(scales.chunks_mut(GROUP));
    for (group, ((values, blocks), scales)) in groups.enumerate() {
        let first = group * GROUP;
        let mut largest = [0; GROUP];
        for (largest, values) in largest.iter_mut().zip(values) {
            *largest = V::largest(values);
        }
        for (index, ((values, block), scale)) in values.iter().zip(blocks).zip(scales).enumerate() {
            let hint = hints.map(|hints| hints[first + index]);
            let start = start_scale(packing.rule, largest[index]);
            if largest[index] >= NOT_FINITE || start <= SMALLEST_SCALE || hint.is_some_and(|hint| hint > scale::LARGEST) {
                let packed = packed_with_care(values, packing, hint);
                (*block, *scale) = packed.map_err(|element| (first + index) * BLOCK_ELEMENTS + element)?;
                continue;
            }
            *scale = match packing.rule {
                ScaleRule::Hint | ScaleRule::Mse => chosen_scale::<R>(values, start, hint),
                _ => start,
            };
            *block = V::pack::<R>(values, offset(*scale));
        }
    }
    Ok(())
}

/// Of the hint, `start` and the scale above it the first with the smallest error.
#[inline(always)]
fn chosen_scale<R: Rule>(values: &[u16; BLOCK_ELEMENTS], start: u8, hint: Option<u8>) -> u8 {
    let next = (start + 1).min(scale::LARGEST);
    let (of_start, of_next) = (error::<R>(values, start, start), error::<R>(values, next, start));
    let (best, least) = if of_next < of_start { (next, of_next) } else { (start, of_start) };
    match hint {
        Some(hint) if hint == next && of_next == least => hint,
        Some(hint) if hint != start && hint != next && can_win(hint, start) && error::<R>(values, hint, start) <= least => hint,
        _ => best,
    }
}

/// The squared error under `scale` less that of packing zeros, in units of `start` squared. The sum is exact, whatever its order.
#[inline(always)]
fn error<R: Rule>(values: &[u16; BLOCK_ELEMENTS], scale: u8, start: u8) -> f32 {
    let mut sums = [0.0; LANES];
    add_errors_above_zero::<R, LANES>(&mut sums, values, &[offset(scale); LANES]);
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0] * in_squared_units(scale, start)
}

/// Packs a block of which some step has to be watched: tiny values, large hints, and what is no number, whose index is the error.
#[cold]
pub(super) fn packed_with_care(
    values: &[u16; BLOCK_ELEMENTS],
    packing: Packing,
    hint: Option<u8>,
) -> Result<([u8; BLOCK_BYTES], u8), usize> {
    tile::packed_with_care(&values.map(float), packing, hint)
}

/// The way of f16 and f32; the index of the first value that is no number is the error.
fn pack_tiles<T: Float, R: Rule>(
    level: Level,
    values: &[[T; BLOCK_ELEMENTS]],
    packing: Packing,
    hints: Option<&[u8]>,
    blocks: &mut [[u8; BLOCK_BYTES]],
    scales: &mut [u8],
) -> Result<(), usize> {
    let mut rows: tile::Blocks = [[0.0; BLOCK_ELEMENTS]; LANES];
    let tiles = values.chunks(LANES).zip(blocks.chunks_mut(LANES)).zip(scales.chunks_mut(LANES));
    for (index, ((values, blocks), scales)) in tiles.enumerate() {
        T::widen_into(values.as_flattened(), rows[..values.len()].as_flattened_mut());
        let first = index * LANES;
        let hints = hints.map(|hints| std::array::from_fn(|lane| hints.get(first + lane).copied().unwrap_or(0)));
        let packed = tile::pack_rows::<R>(level, &rows, packing, hints.as_ref());
        blocks.copy_from_slice(&packed.blocks[..blocks.len()]);
        scales.copy_from_slice(&packed.scales[..scales.len()]);
        if packed.needs_care != [false; LANES] {
            for lane in (0..scales.len()).filter(|&lane| packed.needs_care[lane]) {
                let packed = tile::packed_with_care(&rows[lane], packing, hints.map(|hints| hints[lane]));
                (blocks[lane], scales[lane]) = packed.map_err(|element| (first + lane) * BLOCK_ELEMENTS + element)?;
            }
        }
    }
    Ok(())
}
