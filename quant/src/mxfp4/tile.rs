//! 32 blocks of f32 at a time, a block to a lane: the way of f32, and of f16 widened to it.
//!
//! A magnitude in units of the scale is a product with a power of two, and is rounded by adding a number whose last place is the step
//! between two codes: both give what the definition gives. Errors are summed up in f64, where all that can decide is exact.

use super::choice::{Measured, chosen_scales};
use super::lanes::{LANES, Rule};
use super::vectors::{Vectors, for_each_level};
use super::{BLOCK_BYTES, BLOCK_ELEMENTS, Packing, ScaleRule, reference, scale};

/// The values of 32 blocks, an element of each in a row.
pub(super) type Tile = [[f32; LANES]; BLOCK_ELEMENTS];

/// The same with a block in a row.
pub(super) type Blocks = [[f32; BLOCK_ELEMENTS]; LANES];

/// Bits of an f32 without its sign.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// The least bits of a magnitude that is infinite or NaN.
const NOT_FINITE: u32 = 0x7f80_0000;

/// What became of 32 blocks.
pub(super) struct PackedTile {
    pub(super) blocks: [[u8; BLOCK_BYTES]; LANES],
    pub(super) scales: [u8; LANES],
    /// Those of which some step has to be watched, for [`packed_with_care`]: what is given for them means nothing.
    pub(super) needs_care: [bool; LANES],
}

/// Packs a block of tiny values, or with a large hint; the index of what is no number is the error.
#[cold]
pub(super) fn packed_with_care(
    values: &[f32; BLOCK_ELEMENTS],
    packing: Packing,
    hint: Option<u8>,
) -> Result<([u8; BLOCK_BYTES], u8), usize> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(index),
        None => Ok(reference::pack_block(values, packing, hint)),
    }
}

for_each_level! {
    /// Packs blocks that lie along the columns of a tile.
    pub(super) fn pack_columns<R>(tile: &Tile, packing: Packing, hints: Option<&[u8; LANES]>) -> PackedTile = pack_columns_kernel;
}

for_each_level! {
    /// Packs blocks that lie along the rows.
    pub(super) fn pack_rows<R>(rows: &Blocks, packing: Packing, hints: Option<&[u8; LANES]>) -> PackedTile = pack_rows_kernel;
}

#[inline(always)]
fn pack_rows_kernel<V: Vectors, R: Rule>(rows: &Blocks, packing: Packing, hints: Option<&[u8; LANES]>) -> PackedTile {
    pack_columns_kernel::<V, R>(&transposed(rows), packing, hints)
}

#[inline(always)]
pub(super) fn transposed(rows: &Blocks) -> Tile {
    let mut tile = [[0.0; LANES]; BLOCK_ELEMENTS];
    for (lane, row) in rows.iter().enumerate() {
        for (element, value) in row.iter().enumerate() {
            tile[element][lane] = *value;
        }
    }
    tile
}

#[inline(always)]
fn pack_columns_kernel<V: Vectors, R: Rule>(tile: &Tile, packing: Packing, hints: Option<&[u8; LANES]>) -> PackedTile {
    let mut largest = [0; LANES];
    for [first, second] in tile.as_chunks::<2>().0 {
        for lane in 0..LANES {
            let (first, second) = (first[lane].to_bits() & MAGNITUDE, second[lane].to_bits() & MAGNITUDE);
            largest[lane] = largest[lane].max(first.max(second));
        }
    }
    let searches = matches!(packing.rule, ScaleRule::Hint | ScaleRule::Mse);
    let (mut start, mut needs_care) = ([0; LANES], [false; LANES]);
    for lane in 0..LANES {
        start[lane] = start_scale(packing.rule, largest[lane]);
        // Under scale 0 the largest element may be of less than 4 units, and any hint may win.
        needs_care[lane] = largest[lane] >= NOT_FINITE || (searches && start[lane] == 0);
    }
    if let Some(hints) = hints {
        for lane in 0..LANES {
            needs_care[lane] |= hints[lane] > scale::LARGEST;
        }
    }
    let scales = if searches { chosen_scales::<R, Tile>(tile, &start, hints) } else { start };
    PackedTile { blocks: packed::<R>(tile, &scales), scales, needs_care }
}

impl Measured for Tile {
    type Error = f64;

    /// A term q (q - 2 t) of an element t is a multiple of 2^-25 units, because q is zero below a quarter of one, and the sum of 32 stays
    /// below 2^13 where the largest element is below 16.
    #[inline(always)]
    fn errors<R: Rule>(&self, scales: &[u8; LANES], start: &[u8; LANES]) -> [f64; LANES] {
        let inverses = inverses(scales);
        let mut errors = [0.0; LANES];
        for row in self {
            for lane in 0..LANES {
                let units = magnitude(row[lane]) * inverses[lane];
                let (sum, shift) = rounded::<R>(units);
                let value = f32::from_bits(sum) - shift;
                let value = if value > 6.0 { 6.0 } else { value };
                // The difference is exact: no larger than 2 t, and a multiple of its last place.
                errors[lane] += f64::from(value) * f64::from(value - (units + units));
            }
        }
        for lane in 0..LANES {
            errors[lane] *= in_squared_units(scales[lane], start[lane]);
        }
        errors
    }
}

/// The bytes of each block under its scale.
#[inline(always)]
fn packed<R: Rule>(tile: &Tile, scales: &[u8; LANES]) -> [[u8; BLOCK_BYTES]; LANES] {
    let inverses = inverses(scales);
    let mut blocks = [[0; BLOCK_BYTES]; LANES];
    for (word, rows) in tile.as_chunks::<8>().0.iter().enumerate() {
        let mut words = [0; LANES];
        for (index, row) in rows.iter().enumerate() {
            for lane in 0..LANES {
                words[lane] |= code::<R>(row[lane], inverses[lane]) << (4 * index);
            }
        }
        for lane in 0..LANES {
            blocks[lane].as_chunks_mut::<4>().0[word] = words[lane].to_le_bytes();
        }
    }
    blocks
}

#[inline(always)]
fn inverses(scales: &[u8; LANES]) -> [f32; LANES] {
    let mut inverses = [0.0; LANES];
    for lane in 0..LANES {
        inverses[lane] = inverse(scales[lane]);
    }
    inverses
}

/// `scale::inverse` of a scale up to [`scale::LARGEST`]: a normal number.
#[inline(always)]
fn inverse(scale: u8) -> f32 {
    f32::from_bits((254 - u32::from(scale)) << 23)
}

#[inline(always)]
fn magnitude(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & MAGNITUDE)
}

/// The sum, as bits, of a magnitude in units and of a number whose last place is the step between the codes around it, and that number.
///
/// The sum is rounded to even codes by the addition: the number of steps is its lowest bits, and what is left of it without the number is
/// the rounded magnitude, up to a clip at 6.
#[inline(always)]
fn rounded<R: Rule>(units: f32) -> (u32, f32) {
    // Below 1 the step is that above it, a half; a number 2^22 times the binade's first has it for its last place.
    let binade = units.to_bits().max(1.0f32.to_bits()) & NOT_FINITE;
    let shift = f32::from_bits(binade.wrapping_add(22 << 23));
    let sum = units + shift;
    if R::IS_EVEN {
        return (sum.to_bits(), shift);
    }
    // Where it went up by just half a step it was a tie.
    let was_tie = (sum - shift) - units == f32::from_bits(binade.wrapping_sub(2 << 23));
    (sum.to_bits().wrapping_sub(u32::from(was_tie)), shift)
}

/// The code, 0 to 15, of an element below 2^100 units.
#[inline(always)]
fn code<R: Rule>(value: f32, inverse: f32) -> u32 {
    let (sum, _) = rounded::<R>(magnitude(value) * inverse);
    // A binade has two codes, and from zero to 2 there is one for each step.
    let magnitude = (sum >> 22).wrapping_sub(2 * (127 + 22)).wrapping_add(sum & 7).min(7);
    let sign = value.to_bits() >> 28 & 8;
    if R::IS_EVEN || magnitude != 0 { magnitude | sign } else { 0 }
}

/// The scale by `rule` of the largest magnitude's bits: `ScaleRule::scale`.
#[inline(always)]
fn start_scale(rule: ScaleRule, largest: u32) -> u8 {
    let carry = match rule {
        ScaleRule::Even => 0x20_0000,
        ScaleRule::Rceil => 0x3f_ffff,
        _ => 0,
    };
    (((largest + carry) >> 23).saturating_sub(2)).min(u32::from(scale::LARGEST)) as u8
}

/// The factor from units of `scale` squared to those of `start`.
#[inline(always)]
fn in_squared_units(scale: u8, start: u8) -> f64 {
    let exponent = 1023 + 2 * (i64::from(scale) - i64::from(start));
    f64::from_bits(exponent.cast_unsigned() << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mxfp4::Rounding;
    use crate::mxfp4::element::VALUES;
    use crate::mxfp4::lanes::{Even, TowardZero};

    /// Of every exponent the mantissas around those that something hangs on, and a few others.
    fn magnitudes() -> impl Iterator<Item = u32> {
        let mantissas = (0..=8u32).flat_map(|eighths| [-1, 0, 1].map(|beside| (eighths << 20).wrapping_add_signed(beside)));
        let mantissas: Vec<u32> = mantissas.chain([0x2a_aaaa, 0x55_5555, 0x00_ffff]).collect();
        (0..255u32).flat_map(move |exponent| mantissas.clone().into_iter().map(move |mantissa| (exponent << 23).wrapping_add(mantissa)))
    }

    fn codes_are_those_of_the_definition<R: Rule>(rounding: Rounding) {
        for scale in 0..=scale::LARGEST {
            for bits in magnitudes().flat_map(|bits| [bits, bits | 1 << 31]) {
                let value = f32::from_bits(bits);
                let units = value * scale::inverse(scale);
                // No rule picks a scale under which there is more.
                if value.is_finite() && units.abs() < 1e30 {
                    let expected = u32::from(rounding.nearest_code(units));
                    assert_eq!(code::<R>(value, inverse(scale)), expected, "{value} under {scale}");
                }
            }
        }
    }

    #[test]
    fn codes_under_every_scale_are_those_of_the_definition() {
        codes_are_those_of_the_definition::<Even>(Rounding::Even);
        codes_are_those_of_the_definition::<TowardZero>(Rounding::TowardZero);
    }

    #[test]
    fn scales_are_those_of_the_definition() {
        for rule in [ScaleRule::Hint, ScaleRule::Even, ScaleRule::Mse, ScaleRule::Floor, ScaleRule::Rceil] {
            for bits in magnitudes().filter(|&bits| bits < NOT_FINITE) {
                assert_eq!(start_scale(rule, bits), rule.scale(f32::from_bits(bits)), "{bits:#x} by {rule:?}");
            }
        }
    }

    /// Terms as large and as fine as there are: their sum is that of integers.
    #[test]
    fn sums_of_errors_are_exact() {
        for offset in 0..200u32 {
            let element = |row: usize| f32::from_bits(0x3fff_ffff + ((row as u32 % 4) << 23) - offset * 7919 - row as u32);
            let tile: Tile = std::array::from_fn(|row| [element(row); LANES]);
            let (mut below, mut above) = (0i128, 0i128);
            for row in 0..BLOCK_ELEMENTS {
                // In units of 2^-25 squared; the scale above doubles the unit.
                let fixed = |value: f64| (value * f64::from(1 << 25)) as i128;
                let value = element(row);
                for (sum, unit) in [(&mut below, 1.0), (&mut above, 2.0)] {
                    let packed = VALUES[usize::from(Rounding::Even.nearest_code(value / unit))] * unit;
                    let packed = fixed(f64::from(packed));
                    *sum += packed * (packed - 2 * fixed(f64::from(value)));
                }
            }
            let start = [127; LANES];
            for (scale, expected) in [(127, below), (128, above)] {
                let found = tile.errors::<Even>(&[scale; LANES], &start)[0];
                assert_eq!((found * f64::from(1 << 25)) as i128 * (1 << 25), expected, "{offset} under {scale}");
            }
        }
    }
}
