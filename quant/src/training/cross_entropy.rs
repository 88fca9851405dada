//! Softmax cross entropy.
//!
//! Letters: n tokens, v vocabulary.

use super::wide;
use crate::Float;

/// The losses, weight (logsumexp(logits) - logit of the target), and the gradients of the logits, weight (softmax - onehot).
///
/// Loss and gradient of a row are NaN where its target is not below v, a logit is NaN or positive infinity, or all are negative infinity. A
/// logit of negative infinity among others has probability 0, and makes the loss infinite where it is the target's.
///
/// # Shapes
/// `logits` [n, v], `vocabulary` v, `targets` [n], `weights` [n]; gives [n] and [n, v].
///
/// # Panics
/// When there are fewer logits than n rows of them, or fewer weights than targets.
#[must_use]
pub fn cross_entropy<T: Float>(logits: &[T], vocabulary: usize, targets: &[i64], weights: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let mut losses = Vec::with_capacity(targets.len());
    let mut gradients = Vec::with_capacity(logits.len());
    for (row, &target) in targets.iter().enumerate() {
        let logits: Vec<f64> = logits[row * vocabulary..][..vocabulary].iter().map(|&logit| wide(logit)).collect();
        let weight = f64::from(weights[row]);
        let Some(target) = usize::try_from(target).ok().filter(|&target| target < vocabulary) else {
            losses.push(f64::NAN);
            gradients.extend(std::iter::repeat_n(f64::NAN, vocabulary));
            continue;
        };
        // Any would do, but for overflow; a NaN reaches the sum.
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = largest + logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln();
        losses.push(weight * (log_sum - logits[target]));
        let onehot = |index| if index == target { 1.0 } else { 0.0 };
        gradients.extend(logits.iter().enumerate().map(|(index, logit)| weight * ((logit - log_sum).exp() - onehot(index))));
    }
    (losses, gradients)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_the_slopes_of_the_values() {
        let (logits, targets, weights) = ([0.5f32, -1.0, 2.0, 3.0, 0.25, -0.125], [2, 1], [1.0, 0.25]);
        let value = |logits: &[f32]| cross_entropy(logits, 3, &targets, &weights).0.iter().sum::<f64>();
        let (_, gradients) = cross_entropy(&logits, 3, &targets, &weights);
        let step = 1.0 / 1024.0;
        for (place, gradient) in gradients.into_iter().enumerate() {
            let moved = |by| std::array::from_fn::<f32, 6, _>(|index| logits[index] + if index == place { by } else { 0.0 });
            let values = [-step, step].map(|by| value(&moved(by)));
            let slope = (values[1] - values[0]) / (2.0 * f64::from(step));
            assert!((slope - gradient).abs() < 1e-6, "{place}: {slope} and {gradient}");
        }
    }

    #[test]
    fn equal_logits_share_the_probability() {
        let (losses, gradients) = cross_entropy(&[7.0f32, f32::NEG_INFINITY, 7.0], 3, &[0], &[2.0]);
        assert!((losses[0] - 2.0 * 2f64.ln()).abs() < 1e-15, "{losses:?}");
        let expected = [-1.0, 0.0, 1.0];
        assert!(gradients.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-14), "{gradients:?}");
    }

    #[test]
    fn what_has_no_loss_is_no_number() {
        const INFINITE: f32 = f32::INFINITY;
        let rows = [[0.0, f32::NAN], [0.0, INFINITE], [-INFINITE, -INFINITE], [0.0, 1.0], [0.0, 1.0]];
        let (losses, gradients) = cross_entropy(rows.as_flattened(), 2, &[0, 0, 0, -1, 2], &[1.0; 5]);
        assert!(losses.iter().chain(&gradients).all(|value| value.is_nan()), "{losses:?} {gradients:?}");
        let (losses, gradients) = cross_entropy(&[-INFINITE, 3.0], 2, &[0], &[1.0]);
        assert_eq!((losses, gradients), (vec![f64::INFINITY], vec![-1.0, 1.0]));
    }
}
