//! One block at a time, by the definition: what the fast paths are compared with, and what they leave to it.

use half::bf16;

use super::element::VALUES;
use super::{BLOCK_BYTES, BLOCK_ELEMENTS, Packing, ScaleRule, scale};

/// The values of one block, for a scale byte other than 255; infinite where bf16 cannot hold them, which needs a scale above 252.
pub(super) fn unpack_block(block: &[u8; BLOCK_BYTES], scale: u8) -> [bf16; BLOCK_ELEMENTS] {
    let factor = scale::value(scale);
    let values = VALUES.map(|value| bf16::from_f32(value * factor));
    std::array::from_fn(|index| values[usize::from(block[index / 2] >> (4 * (index % 2)) & 0xf)])
}

/// The bytes and the scale of 32 finite values; `hint` is the scale to start from, other than 255.
pub(super) fn pack_block(values: &[f32; BLOCK_ELEMENTS], packing: Packing, hint: Option<u8>) -> ([u8; BLOCK_BYTES], u8) {
    let scale = chosen_scale(values, packing, hint);
    let codes = codes(values, packing, scale);
    (std::array::from_fn(|index| codes[2 * index] | (codes[2 * index + 1] << 4)), scale)
}

fn codes(values: &[f32; BLOCK_ELEMENTS], packing: Packing, scale: u8) -> [u8; BLOCK_ELEMENTS] {
    let factor = scale::inverse(scale);
    values.map(|value| packing.rounding.nearest_code(value * factor))
}

fn chosen_scale(values: &[f32; BLOCK_ELEMENTS], packing: Packing, hint: Option<u8>) -> u8 {
    let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let start = packing.rule.scale(largest);
    let next = (start + 1).min(scale::LARGEST);
    match (packing.rule, hint) {
        (ScaleRule::Hint, Some(hint)) if hint > scale::LARGEST => {
            // Larger scales are kept only where they lose nothing: what they rounded up might exceed bf16.
            if is_exact(values, packing, hint) { hint } else { least_error(values, packing, &[start, next]) }
        }
        (ScaleRule::Hint, Some(hint)) => least_error(values, packing, &[hint, start, next]),
        (ScaleRule::Mse, _) => least_error(values, packing, &[start, next]),
        _ => start,
    }
}

/// The first of the candidates with the smallest squared error.
fn least_error(values: &[f32; BLOCK_ELEMENTS], packing: Packing, candidates: &[u8]) -> u8 {
    let mut best = (candidates[0], f64::INFINITY);
    for &candidate in candidates {
        let error = error_above_zeros(values, packing, candidate);
        if error < best.1 {
            best = (candidate, error);
        }
    }
    best.0
}

/// The squared error under `scale` less that of packing nothing but zeros, which all candidates share: the sum of q (q - 2 v).
///
/// In f64 the sum is exact for every candidate that can win, so that equal errors are equal: an element counts only from a quarter of the
/// unit, and above it the bits of a product fill no more than 53.
fn error_above_zeros(values: &[f32; BLOCK_ELEMENTS], packing: Packing, scale: u8) -> f64 {
    let unit = f64::from(i32::from(scale) - scale::BIAS).exp2();
    let codes = codes(values, packing, scale);
    let terms = values.iter().zip(codes).map(|(&value, code)| {
        let packed = f64::from(VALUES[usize::from(code)]) * unit;
        packed * (packed - 2.0 * f64::from(value))
    });
    terms.sum()
}

fn is_exact(values: &[f32; BLOCK_ELEMENTS], packing: Packing, scale: u8) -> bool {
    let unit = f64::from(i32::from(scale) - scale::BIAS).exp2();
    values.iter().zip(codes(values, packing, scale)).all(|(&value, code)| f64::from(value) == f64::from(VALUES[usize::from(code)]) * unit)
}
