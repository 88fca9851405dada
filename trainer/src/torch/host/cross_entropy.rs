//! Softmax cross entropy of rows of logits, in place: two passes over a row that stays in the cache.

use super::dispatch::for_each_instruction_set;
use super::element::Element;
use super::exponential::exp;
use super::parallel::{Shared, for_each_range};

/// What a row of logits is compared with, and what comes of it.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The right token.
    pub target: usize,
    /// Weight of its loss.
    pub weight: f32,
    /// Receives weight * (logsumexp - logit of the target).
    pub loss: f32,
}

/// Independent partial sums, so that the order of additions does not depend on the vector width.
const LANES: usize = 32;
/// Elements summed in f32 before the sum is carried on in f64.
const RUN: usize = LANES * 32;

/// Fills in the loss of each row; with `wants_gradient`, puts weight * (softmax - onehot) in the place of the logits.
///
/// # Panics
/// When `logits` is not `rows.len()` rows of `vocabulary`, or a target is not below it: the caller's mistake.
pub fn cross_entropy_rows<T: Element>(logits: &mut [T], vocabulary: usize, rows: &mut [Row], wants_gradient: bool) {
    assert_eq!(logits.len(), vocabulary * rows.len(), "logits of every row");
    let count = rows.len();
    let (logits, rows) = (Shared::new(logits), Shared::new(rows));
    for_each_range(count, 1, |range| {
        for index in range {
            // SAFETY: each row is visited once.
            let (logits, row) = unsafe { (logits.part(index * vocabulary..(index + 1) * vocabulary), &mut rows.part(index..index + 1)[0]) };
            one_row(logits, row, wants_gradient);
        }
    });
}

fn one_row<T: Element>(logits: &mut [T], row: &mut Row, wants_gradient: bool) {
    let target = logits[row.target].to_f32();
    let mut peak = f32::NEG_INFINITY;
    largest(logits, &mut peak);
    let mut sum = 0.0;
    sum_of_exponentials(logits, peak, &mut sum);
    #[expect(clippy::cast_possible_truncation, reason = "the loss of a token is f32")]
    let log_sum = (f64::from(peak) + sum.ln()) as f32;
    row.loss = (log_sum - target) * row.weight;
    if wants_gradient {
        gradient(logits, log_sum, row.weight);
        // The rounded softmax in the place would lose what the target's entry needs most, so that one is computed apart.
        logits[row.target] = T::from_f32((exp(target - log_sum) - 1.0) * row.weight);
    }
}

for_each_instruction_set! {
    fn largest<T: Element>(logits: &[T], peak: &mut f32) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, logit) in lanes.iter_mut().zip(chunk) {
                let logit = logit.to_f32();
                *lane = if logit > *lane { logit } else { *lane };
            }
        }
        *peak = lanes.iter().copied().chain(rest.iter().map(|logit| logit.to_f32())).fold(f32::NEG_INFINITY, f32::max);
    }
}

for_each_instruction_set! {
    fn sum_of_exponentials<T: Element>(logits: &[T], peak: f32, sum: &mut f64) {
        for run in logits.chunks(RUN) {
            let mut lanes = [0f32; LANES];
            let (chunks, rest) = run.as_chunks::<LANES>();
            for chunk in chunks {
                for (lane, logit) in lanes.iter_mut().zip(chunk) {
                    *lane += exp(logit.to_f32() - peak);
                }
            }
            let rest: f32 = rest.iter().map(|logit| exp(logit.to_f32() - peak)).sum();
            *sum += f64::from(lanes.iter().sum::<f32>() + rest);
        }
    }
}

for_each_instruction_set! {
    fn gradient<T: Element>(logits: &mut [T], log_sum: f32, weight: f32) {
        for logit in logits {
            *logit = T::from_f32(exp(logit.to_f32() - log_sum) * weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn check<T: Element>(tolerance: f64) {
        let vocabulary = 2 * RUN + 77;
        let values: Vec<f32> = (0..3 * vocabulary).map(|i| ((i * 7919) % 2003) as f32 / 100.0 - 10.0).collect();
        let mut logits: Vec<T> = values.iter().map(|&value| T::from_f32(value)).collect();
        let originals: Vec<f64> = logits.iter().map(|logit| f64::from(logit.to_f32())).collect();
        let mut rows = [(0, 1.0), (vocabulary - 1, 0.5), (5, 0.0)].map(|(target, weight)| Row { target, weight, loss: f32::NAN });
        cross_entropy_rows(&mut logits, vocabulary, &mut rows, true);
        for ((row, original), gradient) in rows.iter().zip(originals.chunks(vocabulary)).zip(logits.chunks(vocabulary)) {
            let log_sum = original.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            let expected = (log_sum - original[row.target]) * f64::from(row.weight);
            assert!((f64::from(row.loss) - expected).abs() < 2e-6 * expected.max(1.0), "{} {expected}", row.loss);
            for (index, (logit, gradient)) in original.iter().zip(gradient).enumerate() {
                let onehot = if index == row.target { 1.0 } else { 0.0 };
                let expected = ((logit - log_sum).exp() - onehot) * f64::from(row.weight);
                assert!((f64::from(gradient.to_f32()) - expected).abs() <= tolerance * expected.abs() + 1e-9);
            }
        }
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_definition() {
        check::<f32>(1e-5);
        check::<bf16>(5e-3);
    }

    #[test]
    fn a_nan_logit_gives_a_nan_loss() {
        let mut rows = [Row { target: 0, weight: 1.0, loss: 0.0 }];
        cross_entropy_rows(&mut [0f32, f32::NAN], 2, &mut rows, true);
        assert!(rows[0].loss.is_nan());
    }
}
