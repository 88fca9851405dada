//! The rotation of heads by their positions.
//!
//! Letters: t tokens, h heads, p pairs (half the width of a head).

use super::wide;
use crate::Float;
use crate::cuda::RopeDirection;

/// Heads with each element i and i + p turned by the angle of its token and pair, or gradients turned back: the transposed map.
///
/// # Shapes
/// `heads` [t, h, 2p], `cosines` and `sines` [t, p], `pairs` p; gives [t, h, 2p].
///
/// # Panics
/// When there are no pairs, or not a whole number of heads to each token.
#[must_use]
pub fn rope<T: Float>(heads: &[T], cosines: &[f32], sines: &[f32], pairs: usize, direction: RopeDirection) -> Vec<f64> {
    let num_heads = heads.len() / 2 / cosines.len().max(1);
    let mut out = vec![0.0; heads.len()];
    for (index, (out, head)) in out.chunks_mut(2 * pairs).zip(heads.chunks(2 * pairs)).enumerate() {
        let token = index / num_heads;
        for pair in 0..pairs {
            let (cosine, sine) = (f64::from(cosines[token * pairs + pair]), f64::from(direction.sign() * sines[token * pairs + pair]));
            let (first, second) = (wide(head[pair]), wide(head[pair + pairs]));
            out[pair] = first * cosine - second * sine;
            out[pair + pairs] = second * cosine + first * sine;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_is_the_transposed_map() {
        // Two tokens with two heads of two pairs; <R x, y> = <x, R' y> for all x and y.
        let cosines = [0.5f32, 1.25, -0.75, 0.0];
        let sines = [1.0f32, -0.25, 0.5, 1.5];
        let heads: Vec<f32> = (0..16u8).map(|index| f32::from(index % 7) - 2.5).collect();
        let gradient: Vec<f32> = (0..16u8).map(|index| f32::from(index % 5) - 1.25).collect();
        let dot = |first: &[f64], second: &[f32]| first.iter().zip(second).map(|(first, &second)| first * f64::from(second)).sum::<f64>();
        let forward = rope(&heads, &cosines, &sines, 2, RopeDirection::Forward);
        let backward = rope(&gradient, &cosines, &sines, 2, RopeDirection::Backward);
        assert!((dot(&forward, &gradient) - dot(&backward, &heads)).abs() < 1e-12);
        // The second head of the first token.
        assert_eq!(forward[4], f64::from(heads[4]) * 0.5 - f64::from(heads[6]));
        assert_eq!(forward[6], f64::from(heads[6]) * 0.5 + f64::from(heads[4]));
    }
}
