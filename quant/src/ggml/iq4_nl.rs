//! IQ4_NL: an f16 scale, then 32 codes that name one of sixteen levels, which lie closer together near zero.

use super::block::{self, BLOCK_ELEMENTS, Block};
use super::{nibbles, rounding};

/// Source: ggml `ggml-common.h`, `block_iq4_nl`.
pub(super) const BLOCK_BYTES: usize = 2 + nibbles::BYTES;

/// What each code stands for, in units of the scale. Source: ggml `ggml-common.h`, `kvalues_iq4nl`.
const LEVELS: [f32; 16] = [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// Blocks without a larger magnitude are all zeros. Source: ggml `ggml-quants.c`, `GROUP_MAX_EPS`.
const LEAST_PEAK: f32 = 1e-15;

/// Scales that are tried: one that takes the peak to +127 units, then those that take it to -134 up to -120. Source: ggml
/// `ggml-quants.c`, `quantize_iq4_nl` with 7 tries to each side.
const TRIES: usize = 16;

/// Units that each try after the first takes the peak to.
const PEAKS: [f32; TRIES - 1] =
    [-134.0, -133.0, -132.0, -131.0, -130.0, -129.0, -128.0, -127.0, -126.0, -125.0, -124.0, -123.0, -122.0, -121.0, -120.0];

pub(super) struct Iq4Nl;

/// The nearest level, the upper one of two that are as near.
#[inline(always)]
fn nearest_level(units: f32) -> f32 {
    let mut nearest = LEVELS[0];
    for pair in LEVELS.windows(2) {
        nearest = if units >= f32::midpoint(pair[0], pair[1]) { pair[1] } else { nearest };
    }
    nearest
}

/// The code of [`nearest_level`].
#[inline(always)]
fn nearest_code(units: f32) -> u8 {
    LEVELS.windows(2).fold(0, |code, pair| code + u8::from(units >= f32::midpoint(pair[0], pair[1])))
}

/// The scale of least squared error among those that fit the codes of each try, every square weighted by the value's own.
///
/// All tries go side by side, so that each adds up its sums in the order of the elements.
#[inline(always)]
fn best_scale(values: &[f32; BLOCK_ELEMENTS], peak: f32) -> f32 {
    let mut inverses = [1.0 / (peak / 127.0); TRIES];
    for (inverse, units) in inverses[1..].iter_mut().zip(PEAKS) {
        *inverse = units / peak;
    }
    let (mut along, mut square) = ([0.0; TRIES], [0.0; TRIES]);
    for &value in values {
        let weight = value * value;
        for (inverse, (along, square)) in inverses.iter().zip(along.iter_mut().zip(&mut square)) {
            let level = nearest_level(inverse * value);
            *along += weight * level * value;
            *square += weight * level * level;
        }
    }
    let mut scale = if square[0] > 0.0 { along[0] / square[0] } else { 0.0 };
    let mut best = scale * along[0];
    for (along, square) in along.into_iter().zip(square).skip(1) {
        if square > 0.0 && along * along > best * square {
            scale = along / square;
            best = scale * along;
        }
    }
    scale
}

impl Block<BLOCK_ELEMENTS, BLOCK_BYTES> for Iq4Nl {
    #[inline(always)]
    fn quantize(values: &[f32; BLOCK_ELEMENTS], largest: f32, block: &mut [u8; BLOCK_BYTES]) {
        let scale = if largest < LEAST_PEAK { 0.0 } else { best_scale(values, block::peak(values, largest)) };
        let inverse = block::inverse(scale);
        block[..2].copy_from_slice(&rounding::to_f16(scale).to_le_bytes());
        let mut codes = [0; BLOCK_ELEMENTS];
        for (code, value) in codes.iter_mut().zip(values) {
            *code = nearest_code(inverse * value);
        }
        nibbles::pack(&codes, &mut block[2..]);
    }

    #[inline(always)]
    fn dequantize(block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK_ELEMENTS]) {
        let scale = block::read_f16(block).to_f32();
        let levels = LEVELS.map(|level| level * scale);
        let codes: [u8; BLOCK_ELEMENTS] = nibbles::unpack(&block[2..]);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = levels[usize::from(code & 0xf)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn midpoints_go_up_and_their_neighbours_to_the_nearer_level() {
        for (code, pair) in (0..).zip(LEVELS.windows(2)) {
            let midpoint = f32::midpoint(pair[0], pair[1]);
            for (units, code) in [(midpoint.next_down(), code), (midpoint, code + 1), (pair[1], code + 1), (pair[0], code)] {
                assert_eq!(nearest_code(units), code, "{units}");
                assert_eq!(nearest_level(units), LEVELS[usize::from(code)], "{units}");
            }
        }
        assert_eq!((nearest_code(f32::NEG_INFINITY), nearest_code(f32::INFINITY)), (0, 15));
    }
}
