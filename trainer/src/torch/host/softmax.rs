//! What a row of logits sums to under the exponential, in f64: what log-probabilities and their divergence are made of.

use super::dispatch::for_each_instruction_set;
use super::element::Element;
use super::exponential::exp_f64;

/// Independent partial sums, so that the order of additions does not depend on the vector width.
const LANES: usize = 16;

/// Sums over two rows of logits l and r, each less its own peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DivergenceSums {
    /// Of exp(l).
    pub exponentials: f64,
    /// Of exp(r).
    pub reference_exponentials: f64,
    /// Of exp(r) (r - l).
    pub weighted_differences: f64,
}

/// The largest logit; `None` when one is not finite, or there is none.
#[must_use]
pub fn finite_peak<T: Element>(logits: &[T]) -> Option<f32> {
    let (mut peak, mut is_finite) = (f32::NEG_INFINITY, true);
    largest(logits, &mut peak, &mut is_finite);
    (is_finite && !logits.is_empty()).then_some(peak)
}

/// Sum of exp(logit - peak), to within 1e-15 of itself times the root of the row's length.
#[must_use]
pub fn sum_of_exponentials<T: Element>(logits: &[T], peak: f32) -> f64 {
    let mut sum = 0.0;
    exponentials(logits, f64::from(peak), &mut sum);
    sum
}

/// The sums of a row and of its reference, each with its peak.
///
/// # Panics
/// When the rows differ in length: the caller's mistake.
#[must_use]
pub fn divergence_sums<T: Element>(logits: &[T], peak: f32, reference: &[T], reference_peak: f32) -> DivergenceSums {
    assert_eq!(logits.len(), reference.len(), "logits of both");
    let mut sums = [0.0; 3];
    divergence(logits, f64::from(peak), reference, f64::from(reference_peak), &mut sums);
    DivergenceSums { exponentials: sums[0], reference_exponentials: sums[1], weighted_differences: sums[2] }
}

for_each_instruction_set! {
    fn largest<T: Element>(logits: &[T], peak: &mut f32, is_finite: &mut bool) {
        let mut lanes = [(f32::NEG_INFINITY, true); LANES];
        for chunk in logits.chunks(LANES) {
            for ((peak, is_finite), logit) in lanes.iter_mut().zip(chunk) {
                let logit = logit.to_f32();
                *peak = if logit > *peak { logit } else { *peak };
                *is_finite &= logit.is_finite();
            }
        }
        for (lane, is_lane_finite) in lanes {
            *peak = peak.max(lane);
            *is_finite &= is_lane_finite;
        }
    }
}

for_each_instruction_set! {
    fn exponentials<T: Element>(logits: &[T], peak: f64, sum: &mut f64) {
        let mut lanes = [0f64; LANES];
        let (chunks, rest) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, logit) in lanes.iter_mut().zip(chunk) {
                *lane += exp_f64(f64::from(logit.to_f32()) - peak);
            }
        }
        let rest: f64 = rest.iter().map(|logit| exp_f64(f64::from(logit.to_f32()) - peak)).sum();
        *sum = lanes.iter().sum::<f64>() + rest;
    }
}

for_each_instruction_set! {
    fn divergence<T: Element>(logits: &[T], peak: f64, reference: &[T], reference_peak: f64, sums: &mut [f64; 3]) {
        let mut lanes = [[0f64; LANES]; 3];
        let step = |lanes: &mut [[f64; LANES]; 3], lane: usize, logit: T, reference: T| {
            let (logit, reference) = (f64::from(logit.to_f32()) - peak, f64::from(reference.to_f32()) - reference_peak);
            let weight = exp_f64(reference);
            lanes[0][lane] += exp_f64(logit);
            lanes[1][lane] += weight;
            lanes[2][lane] += weight * (reference - logit);
        };
        let ((chunks, rest), (reference_chunks, reference_rest)) = (logits.as_chunks::<LANES>(), reference.as_chunks::<LANES>());
        for (chunk, reference) in chunks.iter().zip(reference_chunks) {
            for lane in 0..LANES {
                step(&mut lanes, lane, chunk[lane], reference[lane]);
            }
        }
        for (lane, (logit, reference)) in rest.iter().zip(reference_rest).enumerate() {
            step(&mut lanes, lane, *logit, *reference);
        }
        *sums = lanes.map(|lane| lane.iter().sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: usize, length: usize) -> Vec<f32> {
        #[expect(clippy::cast_precision_loss, reason = "a test value")]
        let value = |index: usize| ((index * 7919 + seed * 104_729) % 2003) as f32 / 50.0 - 20.0;
        (0..length).map(value).collect()
    }

    #[test]
    fn sums_are_those_of_the_definition() {
        for length in [1, 15, 16, 17, 5003] {
            let (logits, reference) = (row(1, length), row(2, length));
            let (peak, reference_peak) = (finite_peak(&logits).unwrap(), finite_peak(&reference).unwrap());
            assert_eq!(peak, logits.iter().copied().fold(f32::MIN, f32::max));
            let shifted = |row: &[f32], peak: f32| row.iter().map(|&logit| f64::from(logit) - f64::from(peak)).collect::<Vec<_>>();
            let (l, r) = (shifted(&logits, peak), shifted(&reference, reference_peak));
            let found = divergence_sums(&logits, peak, &reference, reference_peak);
            let weighted: Vec<f64> = l.iter().zip(&r).map(|(l, r)| r.exp() * (r - l)).collect();
            let size: f64 = weighted.iter().map(|each| each.abs()).sum();
            let close = |found: f64, expected: f64, size: f64| assert!((found - expected).abs() <= 1e-14 * size, "{found} {expected}");
            close(found.exponentials, l.iter().map(|l| l.exp()).sum(), found.exponentials);
            close(found.reference_exponentials, r.iter().map(|r| r.exp()).sum(), found.reference_exponentials);
            close(found.weighted_differences, weighted.iter().sum(), size);
            close(sum_of_exponentials(&logits, peak), found.exponentials, found.exponentials);
        }
    }

    #[test]
    fn a_peak_is_of_numbers_only() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 16, 39] {
                let mut logits = row(3, 40);
                logits[place] = bad;
                assert_eq!(finite_peak(&logits), None);
            }
        }
        assert_eq!(finite_peak::<f32>(&[]), None);
    }
}
