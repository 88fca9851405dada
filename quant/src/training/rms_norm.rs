//! Root mean square normalisation. Source: openai/gpt-oss `gpt_oss/torch/model.py`, class `RMSNorm`.
//!
//! Letters: t tokens, d width.

use super::wide;
use crate::Float;

/// `hidden reciprocal weight` and the reciprocals, `1 / sqrt(mean(hidden^2) + epsilon)`.
///
/// # Shapes
/// `hidden` [t, d], `weight` [d], which gives d; gives [t, d] and [t].
///
/// # Panics
/// When there is no weight.
#[must_use]
pub fn rms_norm<T: Float>(hidden: &[T], weight: &[f32], epsilon: f32) -> (Vec<f64>, Vec<f64>) {
    let width = weight.len() as f64;
    let reciprocals: Vec<f64> = hidden
        .chunks(weight.len())
        .map(|row| {
            let squares: f64 = row.iter().map(|&value| wide(value).powi(2)).sum();
            1.0 / (squares / width + f64::from(epsilon)).sqrt()
        })
        .collect();
    let rows = hidden.chunks(weight.len()).zip(&reciprocals);
    let out = rows.flat_map(|(row, reciprocal)| row.iter().zip(weight).map(move |(&value, &by)| wide(value) * reciprocal * f64::from(by)));
    (out.collect(), reciprocals)
}

/// The gradient of `hidden`: with n = hidden reciprocal and g = gradient weight, reciprocal (g - n mean(g n)).
///
/// # Shapes
/// `hidden` and `gradient` (of the output) [t, d], `weight` [d], `reciprocals` [t]; gives [t, d].
///
/// # Panics
/// When there is no weight.
#[must_use]
pub fn rms_norm_backward<T: Float>(hidden: &[T], weight: &[f32], reciprocals: &[f32], gradient: &[T]) -> Vec<f64> {
    let width = weight.len();
    let mut result = Vec::with_capacity(hidden.len());
    for ((row, gradient), &reciprocal) in hidden.chunks(width).zip(gradient.chunks(width)).zip(reciprocals) {
        let reciprocal = f64::from(reciprocal);
        let normal: Vec<f64> = row.iter().map(|&value| wide(value) * reciprocal).collect();
        let scaled: Vec<f64> = gradient.iter().zip(weight).map(|(&gradient, &weight)| wide(gradient) * f64::from(weight)).collect();
        let mean = scaled.iter().zip(&normal).map(|(scaled, normal)| scaled * normal).sum::<f64>() / width as f64;
        result.extend(scaled.iter().zip(&normal).map(|(scaled, normal)| reciprocal * (scaled - normal * mean)));
    }
    result
}

/// The gradient of the weight: the sum over the tokens of gradient times n, as above.
///
/// # Shapes
/// `hidden` and `gradient` (of the output) [t, d], `reciprocals` [t], `width` d; gives [d].
///
/// # Panics
/// When `width` is 0.
#[must_use]
pub fn rms_norm_weight_gradient<T: Float>(hidden: &[T], reciprocals: &[f32], gradient: &[T], width: usize) -> Vec<f64> {
    let mut result = vec![0.0; width];
    for ((row, gradient), &reciprocal) in hidden.chunks(width).zip(gradient.chunks(width)).zip(reciprocals) {
        for ((result, &value), &gradient) in result.iter_mut().zip(row).zip(gradient) {
            *result += wide(gradient) * wide(value) * f64::from(reciprocal);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHT: [f32; 3] = [1.0, -0.5, 2.0];
    const GRADIENT: [f32; 6] = [1.0, 0.5, -2.0, 0.25, 3.0, -1.0];

    /// What the gradients are those of.
    fn value(hidden: &[f32], weight: &[f32]) -> f64 {
        rms_norm(hidden, weight, 1e-5).0.iter().zip(GRADIENT).map(|(out, gradient)| out * f64::from(gradient)).sum()
    }

    #[test]
    fn gradients_are_the_slopes_of_the_values() {
        let hidden = [0.5, -1.0, 2.0, 3.0, 0.25, -0.125];
        let reciprocals: Vec<f32> = rms_norm(&hidden, &WEIGHT, 1e-5).1.iter().map(|&reciprocal| reciprocal as f32).collect();
        let of_hidden = rms_norm_backward(&hidden, &WEIGHT, &reciprocals, &GRADIENT);
        let of_weight = rms_norm_weight_gradient(&hidden, &reciprocals, &GRADIENT, 3);
        let step = 1.0 / 1024.0;
        let slope = |values: [f64; 2]| (values[1] - values[0]) / (2.0 * f64::from(step));
        for (place, of_hidden) in of_hidden.into_iter().enumerate() {
            let moved = |by| std::array::from_fn::<f32, 6, _>(|index| hidden[index] + if index == place { by } else { 0.0 });
            let slope = slope([-step, step].map(|by| value(&moved(by), &WEIGHT)));
            assert!((slope - of_hidden).abs() < 1e-5, "{place}: {slope} and {of_hidden}");
        }
        for (place, of_weight) in of_weight.into_iter().enumerate() {
            let moved = |by| std::array::from_fn::<f32, 3, _>(|index| WEIGHT[index] + if index == place { by } else { 0.0 });
            let slope = slope([-step, step].map(|by| value(&hidden, &moved(by))));
            assert!((slope - of_weight).abs() < 1e-5, "{place}: {slope} and {of_weight}");
        }
    }
}
