//! Root mean square normalisation and the gradient of its input, row by row.

use super::dispatch::for_each_instruction_set;
use super::element::Element;
use super::parallel::{Shared, for_each_range};

/// Rows that one thread takes at least.
const GRAIN: usize = 8;

/// Independent partial sums, so that the order of additions does not depend on the vector width.
const LANES: usize = 32;

/// `output = x r w` for each row x of width `weight.len()`, with r = 1 / sqrt(mean(x^2) + epsilon), which goes to `reciprocals`.
///
/// # Panics
/// When the lengths do not fit: the caller's mistake.
pub fn rms_norm_rows<T: Element>(hidden: &[T], weight: &[f32], epsilon: f32, output: &mut [T], reciprocals: &mut [f32]) {
    let (width, rows) = (weight.len(), reciprocals.len());
    assert!(hidden.len() == rows * width && output.len() == hidden.len(), "rows of {width}");
    let (output, reciprocals) = (Shared::new(output), Shared::new(reciprocals));
    for_each_range(rows, GRAIN, |range| {
        for row in range {
            let elements = row * width..(row + 1) * width;
            // SAFETY: each row is visited once.
            let (output, reciprocal) = unsafe { (output.part(elements.clone()), reciprocals.part(row..row + 1)) };
            normalise(&hidden[elements], weight, epsilon, output, &mut reciprocal[0]);
        }
    });
}

/// The gradient with respect to `hidden`: r (g - n mean(g n)) with n = x r and g = gradient w.
///
/// # Panics
/// As [`rms_norm_rows`].
pub fn rms_norm_backward_rows<T: Element>(hidden: &[T], weight: &[f32], reciprocals: &[f32], gradient: &[T], result: &mut [T]) {
    let (width, rows) = (weight.len(), reciprocals.len());
    assert!(hidden.len() == rows * width && gradient.len() == hidden.len() && result.len() == hidden.len(), "rows of {width}");
    let result = Shared::new(result);
    for_each_range(rows, GRAIN, |range| {
        for row in range {
            let elements = row * width..(row + 1) * width;
            // SAFETY: each row is visited once.
            let result = unsafe { result.part(elements.clone()) };
            differentiate(&hidden[elements.clone()], weight, reciprocals[row], &gradient[elements], result);
        }
    });
}

for_each_instruction_set! {
    fn normalise<T: Element>(hidden: &[T], weight: &[f32], epsilon: f32, output: &mut [T], reciprocal: &mut f32) {
        let mut lanes = [0f32; LANES];
        for chunk in hidden.chunks(LANES) {
            for (lane, element) in lanes.iter_mut().zip(chunk) {
                *lane += element.to_f32() * element.to_f32();
            }
        }
        *reciprocal = 1.0 / (lanes.iter().sum::<f32>() / count(weight) + epsilon).sqrt();
        for ((output, element), weight) in output.iter_mut().zip(hidden).zip(weight) {
            *output = T::from_f32(element.to_f32() * *reciprocal * weight);
        }
    }
}

for_each_instruction_set! {
    fn differentiate<T: Element>(hidden: &[T], weight: &[f32], reciprocal: f32, gradient: &[T], result: &mut [T]) {
        let mut lanes = [0f32; LANES];
        for ((hidden, gradient), weight) in hidden.chunks(LANES).zip(gradient.chunks(LANES)).zip(weight.chunks(LANES)) {
            for (((lane, element), gradient), weight) in lanes.iter_mut().zip(hidden).zip(gradient).zip(weight) {
                *lane += gradient.to_f32() * weight * (element.to_f32() * reciprocal);
            }
        }
        let mean = lanes.iter().sum::<f32>() / count(weight);
        for (((result, element), gradient), weight) in result.iter_mut().zip(hidden).zip(gradient).zip(weight) {
            let normal = element.to_f32() * reciprocal;
            *result = T::from_f32(reciprocal * (gradient.to_f32() * weight - normal * mean));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a model's width is far below 2^24")]
fn count(weight: &[f32]) -> f32 {
    weight.len() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_their_gradient_are_those_of_the_definition() {
        let (rows, width, epsilon) = (3, LANES + 5, 1e-5);
        let number = |index: usize| ((index * 37) % 101) as f32 / 50.0 - 1.0;
        let hidden: Vec<f32> = (0..rows * width).map(number).collect();
        let weight: Vec<f32> = (0..width).map(|index| number(index + 3) + 1.5).collect();
        let gradient: Vec<f32> = (0..rows * width).map(|index| number(index + 7)).collect();
        let (mut output, mut reciprocals) = (vec![f32::NAN; hidden.len()], vec![f32::NAN; rows]);
        rms_norm_rows(&hidden, &weight, epsilon, &mut output, &mut reciprocals);
        let mut result = vec![f32::NAN; hidden.len()];
        rms_norm_backward_rows(&hidden, &weight, &reciprocals, &gradient, &mut result);
        for row in 0..rows {
            let of_row = |values: &[f32]| values[row * width..][..width].iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
            let (hidden, gradient) = (of_row(&hidden), of_row(&gradient));
            let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / width as f64;
            let reciprocal = (mean(&mut hidden.iter().map(|x| x * x)) + f64::from(epsilon)).sqrt().recip();
            let scaled: Vec<f64> = gradient.iter().zip(&weight).map(|(gradient, weight)| gradient * f64::from(*weight)).collect();
            let projection = mean(&mut scaled.iter().zip(&hidden).map(|(g, x)| g * x * reciprocal));
            for column in 0..width {
                let expected = hidden[column] * reciprocal * f64::from(weight[column]);
                assert!((f64::from(output[row * width + column]) - expected).abs() < 1e-5);
                let expected = reciprocal * (scaled[column] - hidden[column] * reciprocal * projection);
                assert!((f64::from(result[row * width + column]) - expected).abs() < 1e-5);
            }
        }
    }
}
