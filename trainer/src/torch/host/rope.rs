//! Heads turned by the angles of their tokens, in one pass.

use ft_quant::cuda::RopeDirection;

use super::dispatch::for_each_instruction_set;
use super::element::Element;
use super::parallel::{Shared, for_each_range};

/// Tokens that one thread takes at least.
const GRAIN: usize = 8;

/// Elements i and i + k/2 of each head of `heads` [t, h, k] turned by angle [t, i], whose `cosines` and `sines` are [t, k/2].
///
/// # Panics
/// When the lengths do not fit: the caller's mistake.
pub fn turn_heads<T: Element>(heads: &[T], cosines: &[f32], sines: &[f32], tokens: usize, direction: RopeDirection, output: &mut [T]) {
    let (pairs, width) = (cosines.len() / tokens.max(1), heads.len() / tokens.max(1));
    assert!(cosines.len() == sines.len() && cosines.len() == tokens * pairs, "an angle for each pair of each token");
    assert!(heads.len() == output.len() && heads.len() == tokens * width && (pairs == 0 || width % (2 * pairs) == 0), "whole heads");
    let sign = if direction == RopeDirection::Forward { 1.0 } else { -1.0 };
    let shared = Shared::new(output);
    for_each_range(tokens, GRAIN, |range| {
        for token in range {
            let of_token = token * width..(token + 1) * width;
            let angles = token * pairs..(token + 1) * pairs;
            // SAFETY: each token is visited once.
            let output = unsafe { shared.part(of_token.clone()) };
            turn_token(&heads[of_token], &cosines[angles.clone()], &sines[angles], sign, output);
        }
    });
}

for_each_instruction_set! {
    fn turn_token<T: Element>(heads: &[T], cosines: &[f32], sines: &[f32], sign: f32, output: &mut [T]) {
        let pairs = cosines.len();
        for (head, output) in heads.chunks_exact(2 * pairs).zip(output.chunks_exact_mut(2 * pairs)) {
            let ((first, second), (first_output, second_output)) = (head.split_at(pairs), output.split_at_mut(pairs));
            let inputs = first.iter().zip(second).zip(cosines.iter().zip(sines));
            for (((first, second), (cosine, sine)), (first_output, second_output)) in inputs.zip(first_output.iter_mut().zip(second_output)) {
                let (first, second, sine) = (first.to_f32(), second.to_f32(), sine * sign);
                *first_output = T::from_f32(first * cosine - second * sine);
                *second_output = T::from_f32(second * cosine + first * sine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_halves_turn_and_turn_back() {
        let angles = [0.3f32, 1.2, -0.7, 2.5];
        let (cosines, sines) = (angles.map(f32::cos), angles.map(f32::sin));
        let heads: Vec<f32> = (0u8..24).map(|index| f32::from(index) / 7.0 - 1.0).collect();
        let (mut turned, mut back) = (vec![f32::NAN; 24], vec![f32::NAN; 24]);
        turn_heads(&heads, &cosines, &sines, 2, RopeDirection::Forward, &mut turned);
        // Token 1, head 2, pair 1: elements 21 and 23, by the fourth angle.
        assert_eq!(turned[21], heads[21] * cosines[3] - heads[23] * sines[3]);
        assert_eq!(turned[23], heads[23] * cosines[3] + heads[21] * sines[3]);
        turn_heads(&turned, &cosines, &sines, 2, RopeDirection::Backward, &mut back);
        assert!(heads.iter().zip(&back).all(|(head, back)| (head - back).abs() < 1e-6));
        turn_heads::<f32>(&[], &[], &[], 0, RopeDirection::Forward, &mut []);
    }
}
