//! Blocks along the columns: plain checkpoints store an expert as [in, out], and a block is 32 inputs of one output.
//!
//! Lanes are outputs, so that a block's largest value, its scale and its codes need no step across lanes. Work is cut so that both sides
//! are touched in whole cache lines: 32 outputs of 16 bits, four blocks of 16 bytes.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::choice::{Measured, chosen_scales};
use super::lanes::{
    LANES, MAGNITUDE, NORMAL_SCALES, NOT_FINITE, Rule, SMALLEST_SCALE, add_errors_above_zero, code, copy_lanes, in_squared_units, offset,
    start_scale, value_bits, with_rule,
};
use super::rows::{packed_with_care, refused, streams, unpacked_with_care};
use super::vectors::{Vectors, for_each_level};
use super::{BLOCK_BYTES, BLOCK_ELEMENTS, Packing, Rounding, ScaleRule, check_length, scale, tile};
use crate::error::Error;
use crate::float::Float;
use crate::processor::Level;

/// Outputs that a thread packs at a time.
const CHUNK_OUTPUTS: usize = 256;

/// Blocks of an output that are worked on together: a cache line.
const STRIP_BLOCKS: usize = 4;

/// Tiles of f32 that are read together: of every row so much that the processor fetches it ahead.
const WIDE_TILES: usize = 4;

/// Outputs whose blocks are gathered before their values are written row by row.
const GATHERED_OUTPUTS: usize = 512;

/// Words of a block, eight codes each.
const WORDS: usize = BLOCK_BYTES / 4;

/// The values of 32 inputs of some outputs; what lies beyond the last output is zero.
type Tile = [[u16; LANES]; BLOCK_ELEMENTS];

/// Packs a matrix whose blocks lie along its columns, with the threads of the current rayon pool.
///
/// # Shapes
/// `values` [in, out] with `outputs` as out and in = 32 s; `blocks` [out, s, 16], `scales` and `hints` [out, s].
///
/// # Errors
/// As [`super::pack`], with the indices of `values` and of `hints`; [`Error::PartialBlock`] names the number of inputs.
pub fn pack_transposed<T: Float>(
    values: &[T],
    outputs: usize,
    packing: Packing,
    hints: Option<&[u8]>,
    blocks: &mut [u8],
    scales: &mut [u8],
) -> Result<(), Error> {
    pack_transposed_at(Level::best(), values, outputs, packing, hints, blocks, scales)
}

pub(super) fn pack_transposed_at<T: Float>(
    level: Level,
    values: &[T],
    outputs: usize,
    packing: Packing,
    hints: Option<&[u8]>,
    blocks: &mut [u8],
    scales: &mut [u8],
) -> Result<(), Error> {
    let inputs = values.len().checked_div(outputs).unwrap_or(0);
    check_length("values", inputs * outputs, values.len())?;
    if !inputs.is_multiple_of(BLOCK_ELEMENTS) {
        return Err(Error::PartialBlock { block: BLOCK_ELEMENTS, found: inputs });
    }
    check_length("blocks", values.len() / 2, blocks.len())?;
    check_length("scales", values.len() / BLOCK_ELEMENTS, scales.len())?;
    let (packing, hints) = packing.with_hints(hints, scales.len())?;
    if values.is_empty() {
        return Ok(());
    }
    let row_blocks = inputs / BLOCK_ELEMENTS;
    let pack_chunk = |(chunk, (blocks, scales)): (usize, (&mut [u8], &mut [u8]))| {
        let first = chunk * CHUNK_OUTPUTS;
        let hints = hints.map(|hints| &hints[first * row_blocks..][..scales.len()]);
        let mut output = PackedOutputs { first, row_blocks, blocks: blocks.as_chunks_mut().0, scales, hints };
        match T::bf16_bits(values) {
            Some(bits) => with_rule!(packing.rounding, R => pack_outputs::<R>(level, bits, outputs, packing, &mut output)),
            None => with_rule!(packing.rounding, R => pack_tiles::<T, R>(level, values, outputs, packing, &mut output)),
        }
    };
    let chunk_blocks = CHUNK_OUTPUTS * row_blocks;
    let chunks = blocks.par_chunks_mut(chunk_blocks * BLOCK_BYTES).zip(scales.par_chunks_mut(chunk_blocks));
    let is_packed = chunks.enumerate().map(pack_chunk).reduce(|| true, |left, right| left && right);
    if is_packed {
        return Ok(());
    }
    // Chunks are not in the order of the values.
    let index = values.iter().position(|value| !value.to_f32().is_finite()).unwrap_or(0);
    Err(Error::NotFinite { index })
}

/// Unpacks a matrix and transposes it, with the threads of the current rayon pool.
///
/// # Shapes
/// `blocks` [out, s, 16] and `scales` [out, s] with `outputs` as out to `values` [32 s, out].
///
/// # Errors
/// As [`super::unpack`].
pub fn unpack_transposed(blocks: &[u8], scales: &[u8], outputs: usize, values: &mut [bf16]) -> Result<(), Error> {
    unpack_transposed_at(Level::best(), blocks, scales, outputs, values)
}

/// Unpacks some blocks of every output as [`unpack_transposed`] does, on the calling thread alone: for callers who share the work out among
/// threads of their own.
///
/// # Shapes
/// `blocks` [out, s, 16] and `scales` [out, s] with `outputs` as out to `values` [32 n, out]: blocks `first..first + n` of each output.
///
/// # Errors
/// [`Error::Length`] when the slices do not fit each other; for blocks that cannot be unpacked what [`unpack_transposed`] says of the matrix.
pub fn unpack_transposed_on_this_thread(
    blocks: &[u8],
    scales: &[u8],
    outputs: usize,
    first: usize,
    values: &mut [bf16],
) -> Result<(), Error> {
    let row_blocks = scales.len().checked_div(outputs).unwrap_or(0);
    let num_blocks = values.len().checked_div(outputs * BLOCK_ELEMENTS).unwrap_or(0);
    check_length("scales", row_blocks * outputs, scales.len())?;
    check_length("blocks", scales.len() * BLOCK_BYTES, blocks.len())?;
    check_length("values", num_blocks.min(row_blocks.saturating_sub(first)) * outputs * BLOCK_ELEMENTS, values.len())?;
    if values.is_empty() {
        return Ok(());
    }
    let blocks = blocks.as_chunks().0;
    let strips = values.reinterpret_cast_mut().chunks_mut(STRIP_BLOCKS * BLOCK_ELEMENTS * outputs);
    let is_unpacked = strips.enumerate().all(|(strip, values)| {
        let matrix = PackedMatrix { blocks, scales, row_blocks, first: first + strip * STRIP_BLOCKS, outputs };
        unpack_strip::<super::lanes::Even>(Level::best(), &matrix, values, false)
    });
    if is_unpacked { Ok(()) } else { Err(first_refused(blocks, scales)) }
}

pub(super) fn unpack_transposed_at(level: Level, blocks: &[u8], scales: &[u8], outputs: usize, values: &mut [bf16]) -> Result<(), Error> {
    let row_blocks = scales.len().checked_div(outputs).unwrap_or(0);
    check_length("scales", row_blocks * outputs, scales.len())?;
    check_length("blocks", scales.len() * BLOCK_BYTES, blocks.len())?;
    check_length("values", scales.len() * BLOCK_ELEMENTS, values.len())?;
    if scales.is_empty() {
        return Ok(());
    }
    let (blocks, values) = (blocks.as_chunks().0, values.reinterpret_cast_mut());
    let streams = streams(values) && outputs.is_multiple_of(LANES);
    let unpack_strip = |(strip, values): (usize, &mut [u16])| {
        let first = strip * STRIP_BLOCKS;
        let matrix = PackedMatrix { blocks, scales, row_blocks, first, outputs };
        unpack_strip::<super::lanes::Even>(level, &matrix, values, streams)
    };
    let strips = values.par_chunks_mut(STRIP_BLOCKS * BLOCK_ELEMENTS * outputs);
    let is_unpacked = strips.enumerate().map(unpack_strip).reduce(|| true, |left, right| left && right);
    if is_unpacked {
        return Ok(());
    }
    Err(first_refused(blocks, scales))
}

/// The error of the first block that cannot be unpacked; strips are not in the order of the scales.
#[cold]
fn first_refused(blocks: &[[u8; BLOCK_BYTES]], scales: &[u8]) -> Error {
    let mut packed = blocks.iter().zip(scales);
    let index = packed.position(|(block, &scale)| unpacked_with_care(block, scale).is_none()).unwrap_or(0);
    refused(blocks, scales, index, 0)
}

/// Where the blocks of some outputs go.
struct PackedOutputs<'a> {
    /// The first output.
    first: usize,
    row_blocks: usize,
    blocks: &'a mut [[u8; BLOCK_BYTES]],
    scales: &'a mut [u8],
    hints: Option<&'a [u8]>,
}

for_each_level! {
    /// False when a value is no number.
    fn pack_outputs<R>(values: &[u16], outputs: usize, packing: Packing, output: &mut PackedOutputs<'_>) -> bool = pack_outputs_kernel;
}

#[inline(always)]
fn pack_outputs_kernel<V: Vectors, R: Rule>(values: &[u16], outputs: usize, packing: Packing, output: &mut PackedOutputs<'_>) -> bool {
    let (row_blocks, count) = (output.row_blocks, output.scales.len() / output.row_blocks);
    for strip in (0..row_blocks).step_by(STRIP_BLOCKS) {
        let strip_blocks = STRIP_BLOCKS.min(row_blocks - strip);
        for first in (0..count).step_by(LANES) {
            let lanes = LANES.min(count - first);
            // All rows are asked for before the first is needed.
            let mut tiles = [[[0; LANES]; BLOCK_ELEMENTS]; STRIP_BLOCKS];
            for (row, tile) in tiles[..strip_blocks].as_flattened_mut().iter_mut().enumerate() {
                let start = (strip * BLOCK_ELEMENTS + row) * outputs + output.first + first;
                copy_lanes(&values[start..start + lanes], tile);
            }
            for (block, tile) in (strip..strip + strip_blocks).zip(&tiles) {
                let places = (first..first + lanes).map(|output| output * row_blocks + block);
                if !pack_tile::<R>(tile, packing, output, places) {
                    return false;
                }
            }
        }
    }
    true
}

/// Packs the blocks of a tile; `places` are those of its outputs.
#[inline(always)]
fn pack_tile<R: Rule>(tile: &Tile, packing: Packing, output: &mut PackedOutputs<'_>, places: impl Iterator<Item = usize> + Clone) -> bool {
    let mut largest = [0; LANES];
    for row in tile {
        for (largest, value) in largest.iter_mut().zip(row) {
            *largest = (*largest).max(value & MAGNITUDE);
        }
    }
    let (mut start, mut needs_care) = ([0; LANES], [false; LANES]);
    for lane in 0..LANES {
        start[lane] = start_scale(packing.rule, largest[lane]);
        needs_care[lane] = start[lane] <= SMALLEST_SCALE || largest[lane] >= NOT_FINITE;
    }
    let mut hints = None;
    if let Some(all) = output.hints {
        let hints = hints.insert([0; LANES]);
        for (lane, place) in places.clone().enumerate() {
            hints[lane] = all[place];
            needs_care[lane] |= all[place] > scale::LARGEST;
        }
    }
    let scales = match packing.rule {
        ScaleRule::Hint | ScaleRule::Mse => chosen_scales::<R, Tile>(tile, &start, hints.as_ref()),
        _ => start,
    };
    let words = packed_words::<R>(tile, &scales);
    for (lane, place) in places.clone().enumerate() {
        output.scales[place] = scales[lane];
        for (bytes, words) in output.blocks[place].as_chunks_mut::<4>().0.iter_mut().zip(&words) {
            *bytes = words[lane].to_le_bytes();
        }
    }
    if needs_care != [false; LANES] {
        for (lane, place) in places.enumerate().filter(|&(lane, _)| needs_care[lane]) {
            let values = std::array::from_fn(|row| tile[row][lane]);
            let Ok(packed) = packed_with_care(&values, packing, hints.map(|hints| hints[lane])) else { return false };
            (output.blocks[place], output.scales[place]) = packed;
        }
    }
    true
}

/// The codes of each output, eight to a word, under its scale.
#[inline(always)]
fn packed_words<R: Rule>(tile: &Tile, scales: &[u8; LANES]) -> [[u32; LANES]; WORDS] {
    let offsets = offsets(scales);
    let mut words = [[0; LANES]; WORDS];
    for (words, rows) in words.iter_mut().zip(tile.as_chunks::<8>().0) {
        // Four codes fill a lane of 16 bits, in which they were computed.
        let mut halves = [[0u16; LANES]; 2];
        for (halves, rows) in halves.iter_mut().zip(rows.as_chunks::<4>().0) {
            for (index, row) in rows.iter().enumerate() {
                for lane in 0..LANES {
                    halves[lane] |= code::<R>(row[lane], offsets[lane]) << (4 * index);
                }
            }
        }
        for lane in 0..LANES {
            words[lane] = u32::from(halves[0][lane]) | u32::from(halves[1][lane]) << 16;
        }
    }
    words
}

impl Measured for Tile {
    type Error = f32;

    #[inline(always)]
    fn errors<R: Rule>(&self, scales: &[u8; LANES], start: &[u8; LANES]) -> [f32; LANES] {
        let offsets = offsets(scales);
        let mut errors = [0.0; LANES];
        for row in self {
            add_errors_above_zero::<R, LANES>(&mut errors, row, &offsets);
        }
        for lane in 0..LANES {
            errors[lane] *= in_squared_units(scales[lane], start[lane]);
        }
        errors
    }
}

#[inline(always)]
fn offsets(scales: &[u8; LANES]) -> [i16; LANES] {
    let mut offsets = [0; LANES];
    for lane in 0..LANES {
        offsets[lane] = offset(scales[lane]);
    }
    offsets
}

/// The way of f16 and f32; false when a value is no number.
fn pack_tiles<T: Float, R: Rule>(level: Level, values: &[T], outputs: usize, packing: Packing, output: &mut PackedOutputs<'_>) -> bool {
    let (row_blocks, count) = (output.row_blocks, output.scales.len() / output.row_blocks);
    // What lies beyond the last output or the last block of a strip is never looked at.
    let mut tiles: [[tile::Tile; WIDE_TILES]; STRIP_BLOCKS] = [[[[0.0; LANES]; BLOCK_ELEMENTS]; WIDE_TILES]; STRIP_BLOCKS];
    for strip in (0..row_blocks).step_by(STRIP_BLOCKS) {
        let strip_blocks = STRIP_BLOCKS.min(row_blocks - strip);
        for first in (0..count).step_by(WIDE_TILES * LANES) {
            let width = count.min(first + WIDE_TILES * LANES) - first;
            for row in 0..strip_blocks * BLOCK_ELEMENTS {
                let start = (strip * BLOCK_ELEMENTS + row) * outputs + output.first + first;
                let tiles = &mut tiles[row / BLOCK_ELEMENTS];
                for (tile, values) in tiles.iter_mut().zip(values[start..start + width].chunks(LANES)) {
                    T::widen_into(values, &mut tile[row % BLOCK_ELEMENTS]);
                }
            }
            for (block, tiles) in (strip..strip + strip_blocks).zip(&tiles) {
                for (first, tile) in (first..first + width).step_by(LANES).zip(tiles) {
                    let places = (first..count.min(first + LANES)).map(|output| output * row_blocks + block);
                    if !pack_wide_tile::<R>(level, tile, packing, output, places) {
                        return false;
                    }
                }
            }
        }
    }
    true
}

/// Packs the blocks of a tile; `places` are those of its outputs.
fn pack_wide_tile<R: Rule>(
    level: Level,
    tile: &tile::Tile,
    packing: Packing,
    output: &mut PackedOutputs<'_>,
    places: impl Iterator<Item = usize> + Clone,
) -> bool {
    let hints = output.hints.map(|all| {
        let mut hints = [0; LANES];
        hints.iter_mut().zip(places.clone()).for_each(|(hint, place)| *hint = all[place]);
        hints
    });
    let packed = tile::pack_columns::<R>(level, tile, packing, hints.as_ref());
    for (lane, place) in places.enumerate() {
        (output.blocks[place], output.scales[place]) = (packed.blocks[lane], packed.scales[lane]);
        if packed.needs_care[lane] {
            let hint = hints.map(|hints| hints[lane]);
            let Ok(packed) = tile::packed_with_care(&tile.map(|row| row[lane]), packing, hint) else { return false };
            (output.blocks[place], output.scales[place]) = packed;
        }
    }
    true
}

/// Some blocks of every output.
struct PackedMatrix<'a> {
    blocks: &'a [[u8; BLOCK_BYTES]],
    scales: &'a [u8],
    row_blocks: usize,
    /// The first block of an output that is meant.
    first: usize,
    outputs: usize,
}

for_each_level! {
    /// False when a block cannot be unpacked.
    fn unpack_strip<R>(matrix: &PackedMatrix<'_>, values: &mut [u16], streams: bool) -> bool = unpack_strip_kernel;
}

#[inline(always)]
fn unpack_strip_kernel<V: Vectors, R: Rule>(matrix: &PackedMatrix<'_>, values: &mut [u16], streams: bool) -> bool {
    let outputs = matrix.outputs;
    let strip_blocks = values.len() / (outputs * BLOCK_ELEMENTS);
    for first in (0..outputs).step_by(GATHERED_OUTPUTS) {
        let width = GATHERED_OUTPUTS.min(outputs - first);
        let mut words = [[[0u32; GATHERED_OUTPUTS]; WORDS]; STRIP_BLOCKS];
        let mut offsets = [[0i16; GATHERED_OUTPUTS]; STRIP_BLOCKS];
        let mut is_normal = true;
        for lane in 0..width {
            let start = (first + lane) * matrix.row_blocks + matrix.first;
            for block in 0..strip_blocks {
                let scale = matrix.scales[start + block];
                is_normal &= NORMAL_SCALES.contains(&scale);
                offsets[block][lane] = offset(scale);
                for (words, bytes) in words[block].iter_mut().zip(matrix.blocks[start + block].as_chunks().0) {
                    words[lane] = u32::from_le_bytes(*bytes);
                }
            }
        }
        for (row, values) in values.chunks_exact_mut(outputs).enumerate() {
            let (block, row) = (row / BLOCK_ELEMENTS, row % BLOCK_ELEMENTS);
            let (words, shift) = (&words[block][row / 8], 4 * (row % 8));
            let values = &mut values[first..first + width];
            let (whole, rest) = values.as_chunks_mut::<LANES>();
            for (index, values) in whole.iter_mut().enumerate() {
                let lanes = index * LANES..(index + 1) * LANES;
                let (words, offsets) = (&words[lanes.clone()], &offsets[block][lanes]);
                let mut unpacked = [0; LANES];
                for lane in 0..LANES {
                    unpacked[lane] = value_bits((words[lane] >> shift) as u16 & 0xf, offsets[lane]);
                }
                if streams {
                    V::stream(&unpacked, values);
                } else {
                    *values = unpacked;
                }
            }
            let done = width - rest.len();
            for (lane, value) in rest.iter_mut().enumerate() {
                *value = value_bits((words[done + lane] >> shift) as u16 & 0xf, offsets[block][done + lane]);
            }
        }
        if !is_normal && !correct_rare_scales(matrix, values, first..first + width) {
            return false;
        }
    }
    if streams {
        V::finish_streaming();
    }
    true
}

/// Unpacks again what does not have a normal scale; false when it cannot be unpacked.
#[cold]
fn correct_rare_scales(matrix: &PackedMatrix<'_>, values: &mut [u16], outputs: std::ops::Range<usize>) -> bool {
    let strip_blocks = values.len() / (matrix.outputs * BLOCK_ELEMENTS);
    for output in outputs {
        for block in 0..strip_blocks {
            let place = output * matrix.row_blocks + matrix.first + block;
            let scale = matrix.scales[place];
            if NORMAL_SCALES.contains(&scale) {
                continue;
            }
            let Some(unpacked) = unpacked_with_care(&matrix.blocks[place], scale) else { return false };
            for (row, value) in unpacked.into_iter().enumerate() {
                values[(block * BLOCK_ELEMENTS + row) * matrix.outputs + output] = value;
            }
        }
    }
    true
}
