//! Measuring blocks against the values that they stand for, 32 at a time.

use super::lanes::{Even, LANES, Rule, copy_lanes, float, value_bits};
use super::tile::{self, Tile};
use super::vectors::{Vectors, for_each_level};
use super::{BLOCK_BYTES, BLOCK_ELEMENTS, check_length, scale};
use crate::error::Error;
use crate::float::Float;
use crate::processor::Level;

/// A matrix [in, out] of values and the blocks [out, s, 16] of some of its outputs.
pub(crate) struct Columns<'a, T> {
    pub(crate) values: &'a [T],
    /// out.
    pub(crate) outputs: usize,
    /// The first output whose blocks these are.
    pub(crate) first: usize,
    /// s.
    pub(crate) row_blocks: usize,
    pub(crate) blocks: &'a [[u8; BLOCK_BYTES]],
    pub(crate) scales: &'a [u8],
}

/// What is known of each of 32 blocks, in units of its scale.
pub(crate) struct Sums {
    pub(crate) signal: [f32; LANES],
    pub(crate) noise: [f32; LANES],
    pub(crate) packed_signal: [f32; LANES],
    pub(crate) product: [f32; LANES],
    pub(crate) largest_error: [f32; LANES],
    pub(crate) largest_value: [f32; LANES],
    pub(crate) clipped: [u32; LANES],
    pub(crate) flushed: [u32; LANES],
    /// Without the sign.
    pub(crate) largest_code: [u16; LANES],
}

/// The bits of the values of 32 blocks, a block to a lane.
type Bits = [[u16; LANES]; BLOCK_ELEMENTS];

/// Their bytes.
type Blocks = [[u8; BLOCK_BYTES]; LANES];

/// Refuses slices that do not fit each other.
pub(crate) fn check(values: usize, outputs: usize, blocks: usize, scales: usize) -> Result<(), Error> {
    let inputs = values.checked_div(outputs).unwrap_or(0);
    check_length("values", inputs * outputs, values)?;
    if !inputs.is_multiple_of(BLOCK_ELEMENTS) {
        return Err(Error::PartialBlock { block: BLOCK_ELEMENTS, found: inputs });
    }
    check_length("blocks", values / 2, blocks)?;
    check_length("scales", values / BLOCK_ELEMENTS, scales)
}

/// Calls `add` with the sums of up to 32 blocks, their number, and the scale's value for each.
pub(crate) fn measure<T: Float>(columns: &Columns<'_, T>, add: &mut dyn FnMut(&Sums, &[f64])) {
    let count = columns.scales.len() / columns.row_blocks;
    let level = Level::best();
    for block in 0..columns.row_blocks {
        for first in (0..count).step_by(LANES) {
            let lanes = LANES.min(count - first);
            let (mut units, mut blocks): ([f64; LANES], Blocks) = ([1.0; LANES], [[0; BLOCK_BYTES]; LANES]);
            let mut inverses = [0.0; LANES];
            for lane in 0..lanes {
                let place = (first + lane) * columns.row_blocks + block;
                blocks[lane] = columns.blocks[place];
                units[lane] = f64::from(scale::value(columns.scales[place]));
                inverses[lane] = scale::inverse(columns.scales[place]);
            }
            let starts = (0..BLOCK_ELEMENTS).map(|row| (block * BLOCK_ELEMENTS + row) * columns.outputs + columns.first + first);
            let mut values: Tile = [[0.0; LANES]; BLOCK_ELEMENTS];
            if let Some(bits) = T::bf16_bits(columns.values) {
                let mut tile = [[0; LANES]; BLOCK_ELEMENTS];
                tile.iter_mut().zip(starts).for_each(|(tile, start)| copy_lanes(&bits[start..start + lanes], tile));
                widen::<Even>(level, &tile, &mut values);
            } else {
                for (values, start) in values.iter_mut().zip(starts) {
                    T::widen_into(&columns.values[start..start + lanes], values);
                }
            }
            add(&sums::<Even>(level, &values, &inverses, &blocks), &units[..lanes]);
        }
    }
}

/// The same for blocks along the rows, whose `values` are neighbours.
pub(crate) fn measure_rows<T: Float>(
    values: &[[T; BLOCK_ELEMENTS]],
    blocks: &[[u8; BLOCK_BYTES]],
    scales: &[u8],
    add: &mut dyn FnMut(&Sums, &[f64]),
) {
    let level = Level::best();
    for ((values, found), scales) in values.chunks(LANES).zip(blocks.chunks(LANES)).zip(scales.chunks(LANES)) {
        let (mut rows, mut blocks): (tile::Blocks, Blocks) = ([[0.0; BLOCK_ELEMENTS]; LANES], [[0; BLOCK_BYTES]; LANES]);
        let (mut units, mut inverses) = ([1.0; LANES], [0.0; LANES]);
        T::widen_into(values.as_flattened(), rows.as_flattened_mut());
        for (lane, (block, &scale)) in found.iter().zip(scales).enumerate() {
            blocks[lane] = *block;
            units[lane] = f64::from(scale::value(scale));
            inverses[lane] = scale::inverse(scale);
        }
        add(&row_sums::<Even>(level, &rows, &inverses, &blocks), &units[..scales.len()]);
    }
}

for_each_level! {
    /// The values of bf16 bits.
    fn widen<R>(bits: &Bits, values: &mut Tile) = widen_kernel;
}

#[inline(always)]
fn widen_kernel<V: Vectors, R: Rule>(bits: &Bits, values: &mut Tile) {
    for (values, bits) in values.iter_mut().zip(bits) {
        for lane in 0..LANES {
            values[lane] = float(bits[lane]);
        }
    }
}

for_each_level! {
    /// The sums of 32 blocks in units of their scales, by whose inverses `values` are multiplied.
    fn sums<R>(values: &Tile, inverses: &[f32; LANES], blocks: &Blocks) -> Sums = sums_kernel;
}

for_each_level! {
    /// The same of blocks that lie in rows.
    fn row_sums<R>(rows: &tile::Blocks, inverses: &[f32; LANES], blocks: &Blocks) -> Sums = row_sums_kernel;
}

#[inline(always)]
fn row_sums_kernel<V: Vectors, R: Rule>(rows: &tile::Blocks, inverses: &[f32; LANES], blocks: &Blocks) -> Sums {
    sums_kernel::<V, R>(&tile::transposed(rows), inverses, blocks)
}

#[inline(always)]
fn sums_kernel<V: Vectors, R: Rule>(values: &Tile, inverses: &[f32; LANES], blocks: &Blocks) -> Sums {
    let mut sums = Sums {
        signal: [0.0; LANES],
        noise: [0.0; LANES],
        packed_signal: [0.0; LANES],
        product: [0.0; LANES],
        largest_error: [0.0; LANES],
        largest_value: [0.0; LANES],
        clipped: [0; LANES],
        flushed: [0; LANES],
        largest_code: [0; LANES],
    };
    for (byte, pair) in values.as_chunks::<2>().0.iter().enumerate() {
        let mut bytes = [0; LANES];
        for lane in 0..LANES {
            bytes[lane] = u16::from(blocks[lane][byte]);
        }
        for (half, values) in pair.iter().enumerate() {
            for lane in 0..LANES {
                let code = bytes[lane] >> (4 * half) & 0xf;
                let (given, packed) = (values[lane], float(value_bits(code, 0)));
                let scaled = given * inverses[lane];
                // What is so small that it cannot be told in units is still not zero.
                let value = if scaled == 0.0 && given != 0.0 { f32::from_bits(1) } else { scaled };
                let error = value - packed;
                sums.signal[lane] += value * value;
                sums.noise[lane] += error * error;
                sums.packed_signal[lane] += packed * packed;
                sums.product[lane] += value * packed;
                sums.largest_error[lane] = if error.abs() > sums.largest_error[lane] { error.abs() } else { sums.largest_error[lane] };
                sums.largest_value[lane] = if value.abs() > sums.largest_value[lane] { value.abs() } else { sums.largest_value[lane] };
                sums.clipped[lane] += u32::from(value.abs() > 6.0);
                sums.flushed[lane] += u32::from(packed == 0.0 && value != 0.0);
                sums.largest_code[lane] = sums.largest_code[lane].max(code & 7);
            }
        }
    }
    sums
}
