//! What Q4_K and Q5_K share: eight parts of 32 elements, each with a scale and a minimum of six bits in units of an f16: a code
//! stands for `code * scale - minimum`.
//!
//! A header of 16 bytes holds the f16 unit of the scales, the f16 unit of the minima, and twelve bytes of both.

use super::block::{self, K_BLOCK_ELEMENTS};
use super::lanes::{self, Lanes};
use super::rounding;
use crate::error::Error;

/// Parts of a block.
pub(super) const PARTS: usize = 8;

/// Elements of a part.
pub(super) const PART_ELEMENTS: usize = K_BLOCK_ELEMENTS / PARTS;

/// Bytes before the codes. Source: ggml `ggml-common.h`, `block_q4_K` and `block_q5_K`.
pub(super) const HEADER_BYTES: usize = 4 + PACKED_BYTES;

/// Scales and minima, six bits each. Source: ggml `ggml-common.h`, `K_SCALE_SIZE`.
const PACKED_BYTES: usize = 2 * PARTS * 6 / 8;

/// The largest number of six bits.
const LARGEST_SCALE: u8 = 63;

type Parts = Lanes<PARTS>;

/// How codes, scale and minimum of a part are looked for.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// The largest code; the least is 0.
    pub(super) largest_code: u8,
    /// The first try puts this many codes more between the minimum and the largest value.
    pub(super) first: f32,
    /// Number of tries; each has a tenth of a code more than the one before it.
    pub(super) tries: u8,
}

/// The scale and the minimum that were found for each part, and which codes they were found with.
struct Found {
    scale: Parts,
    minimum: Parts,
    /// Codes are the values above this number,
    origin: Parts,
    /// times this one.
    inverse: Parts,
}

/// Scale and minimum of the least squared error among those that fit the codes of each try. An error counts as much as its value,
/// beside an average one.
///
/// The parts go side by side. A try starts from the best minimum so far. Source: ggml `ggml-quants.c`, `make_qkx2_quants` as
/// called by `quantize_row_q4_K_ref`.
#[inline(always)]
fn search(values: &[Parts; PART_ELEMENTS], rule: Search) -> Found {
    let largest_code = i32::from(rule.largest_code);
    let squares = values.iter().fold(Parts::ZERO, |sum, &value| sum + value * value);
    let average = squares.map(|sum| (sum / PART_ELEMENTS as f32).sqrt());
    let weights = values.map(|value| average + value.abs());

    let (mut minimum, mut largest) = (values[0], values[0]);
    let (mut weight_sum, mut value_sum) = (weights[0], weights[0] * values[0]);
    for (&value, &weight) in values.iter().zip(&weights).skip(1) {
        minimum = value.where_less(value, minimum, minimum);
        largest = value.where_less(largest, value, largest);
        weight_sum += weight;
        value_sum += weight * value;
    }
    minimum = Parts::ZERO.where_less(Parts::ZERO, minimum, minimum);

    let mut inverse = (largest - minimum).map(|range| f32::from(rule.largest_code) / range);
    let (mut scale, mut origin) = (inverse.map(f32::recip), minimum);
    let mut least_error = Parts::ZERO;
    for (&value, &weight) in values.iter().zip(&weights) {
        let code = (inverse * (value - minimum)).codes(0, largest_code);
        let error = scale * code + minimum - value;
        least_error += weight * (error * error);
    }

    for index in 0..rule.tries {
        let steps = rule.first + 0.1 * f32::from(index) + f32::from(rule.largest_code);
        let tried = (largest - minimum).map(|range| steps / range);
        let mut codes = [Parts::ZERO; PART_ELEMENTS];
        let (mut code_sum, mut square_sum, mut product_sum) = (Parts::ZERO, Parts::ZERO, Parts::ZERO);
        for ((code, &value), &weight) in codes.iter_mut().zip(values).zip(&weights) {
            *code = (tried * (value - minimum)).codes(0, largest_code);
            let weighted = weight * *code;
            code_sum += weighted;
            square_sum += weighted * *code;
            product_sum += weighted * value;
        }
        let determinant = weight_sum * square_sum - code_sum * code_sum;
        let slope = (weight_sum * product_sum - value_sum * code_sum) / determinant;
        let offset = (square_sum * value_sum - code_sum * product_sum) / determinant;
        // A minimum is stored without a sign, so that a positive one gives way to 0.
        let through_zero = product_sum / square_sum;
        let slope = through_zero.where_less(Parts::ZERO, offset, slope);
        let offset = Parts::ZERO.where_less(Parts::ZERO, offset, offset);

        let mut error_sum = Parts::ZERO;
        for ((&code, &value), &weight) in codes.iter().zip(values).zip(&weights) {
            let error = slope * code + offset - value;
            error_sum += weight * (error * error);
        }
        // Equal codes leave a determinant that is not positive, and fit no scale.
        let error = error_sum.where_less(Parts::ZERO, determinant, Lanes([f32::INFINITY; PARTS]));
        origin = minimum.where_less(error, least_error, origin);
        inverse = tried.where_less(error, least_error, inverse);
        scale = slope.where_less(error, least_error, scale);
        minimum = offset.where_less(error, least_error, minimum);
        least_error = error.where_less(error, least_error, least_error);
    }
    Found { scale, minimum, origin, inverse }
}

/// Numbers of six bits in units of their largest, and the unit as an f16.
#[inline(always)]
fn six_bits(numbers: [f32; PARTS]) -> (half::f16, [u8; PARTS]) {
    let largest = numbers.iter().fold(0.0, |largest, &number| if number > largest { number } else { largest });
    let inverse = if largest > 0.0 { f32::from(LARGEST_SCALE) / largest } else { 0.0 };
    let codes = numbers.map(|number| (rounding::nearest(inverse * number) as u8).min(LARGEST_SCALE));
    (rounding::to_f16(largest / f32::from(LARGEST_SCALE)), codes)
}

/// The first four of both lie in bytes of their own, whose upper two bits are those of the other four.
///
/// Source: ggml `ggml-quants.c`, `get_scale_min_k4`.
#[inline(always)]
fn pack(scales: [u8; PARTS], minima: [u8; PARTS]) -> [u8; PACKED_BYTES] {
    let mut bytes = [0; PACKED_BYTES];
    for part in 0..PARTS / 2 {
        let (scale, minimum) = (scales[part + 4], minima[part + 4]);
        bytes[part] = scales[part] | scale >> 4 << 6;
        bytes[part + 4] = minima[part] | minimum >> 4 << 6;
        bytes[part + 8] = scale & 0xf | minimum << 4;
    }
    bytes
}

/// Scales and minima of [`pack`].
#[inline(always)]
fn unpack(bytes: &[u8]) -> ([u8; PARTS], [u8; PARTS]) {
    let (mut scales, mut minima) = ([0; PARTS], [0; PARTS]);
    for part in 0..PARTS / 2 {
        scales[part] = bytes[part] & 0x3f;
        minima[part] = bytes[part + 4] & 0x3f;
        scales[part + 4] = bytes[part + 8] & 0xf | bytes[part] >> 6 << 4;
        minima[part + 4] = bytes[part + 8] >> 4 | bytes[part + 4] >> 6 << 4;
    }
    (scales, minima)
}

/// Writes the header and returns the codes.
#[inline(always)]
pub(super) fn quantize(values: &[f32; K_BLOCK_ELEMENTS], rule: Search, header: &mut [u8]) -> [u8; K_BLOCK_ELEMENTS] {
    let found = search(&lanes::transposed(values), rule);
    let (scale_unit, scales) = six_bits(found.scale.0);
    let (minimum_unit, minima) = six_bits(found.minimum.0.map(|minimum| -minimum));
    header[..2].copy_from_slice(&scale_unit.to_le_bytes());
    header[2..4].copy_from_slice(&minimum_unit.to_le_bytes());
    header[4..].copy_from_slice(&pack(scales, minima));

    let mut codes = [0; K_BLOCK_ELEMENTS];
    let parts = values.as_chunks::<PART_ELEMENTS>().0.iter().zip(codes.as_chunks_mut::<PART_ELEMENTS>().0);
    for (part, (values, codes)) in parts.enumerate() {
        let scale = scale_unit.to_f32() * f32::from(scales[part]);
        let minimum = minimum_unit.to_f32() * f32::from(minima[part]);
        let code = |units: f32| rounding::nearest(units).clamp(0, rule.largest_code.into()) as u8;
        // A part whose scale is rounded to zero keeps the codes of the search, which stand for nothing.
        if scale == 0.0 {
            let (origin, inverse) = (found.origin.0[part], found.inverse.0[part]);
            *codes = values.map(|value| code(inverse * (value - origin)));
        } else {
            *codes = values.map(|value| code((value + minimum) / scale));
        }
    }
    codes
}

/// Refuses block number `index` if a unit of its header is no number.
#[inline(always)]
pub(super) fn check(index: usize, header: &[u8]) -> Result<(), Error> {
    block::check_scale(index, block::read_f16(header))?;
    block::check_scale(index, block::read_f16(&header[2..]))
}

/// Writes the values of codes.
#[inline(always)]
pub(super) fn dequantize(header: &[u8], codes: &[u8; K_BLOCK_ELEMENTS], values: &mut [f32; K_BLOCK_ELEMENTS]) {
    let (scale_unit, minimum_unit) = (block::read_f16(header).to_f32(), block::read_f16(&header[2..]).to_f32());
    let (scales, minima) = unpack(&header[4..]);
    let parts = values.as_chunks_mut::<PART_ELEMENTS>().0.iter_mut().zip(codes.as_chunks::<PART_ELEMENTS>().0);
    for (part, (values, codes)) in parts.enumerate() {
        let scale = scale_unit * f32::from(scales[part]);
        let minimum = minimum_unit * f32::from(minima[part]);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = scale * f32::from(*code) - minimum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_scales_and_minima_come_back(
            scales in proptest::array::uniform8(0..64_u8), minima in proptest::array::uniform8(0..64_u8)
        ) {
            prop_assert_eq!(unpack(&pack(scales, minima)), (scales, minima));
        }
    }
}
