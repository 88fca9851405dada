//! The clamped SwiGLU. Source: openai/gpt-oss `gpt_oss/torch/model.py`, function `swiglu`.
//!
//! Letters: r rows, f width of the output, e experts.

use super::expert_bias::BiasByExpert;
use super::wide;
use crate::Float;

/// The input of an activation.
#[derive(Debug, Clone, Copy)]
pub struct SwigluInput<'a, T> {
    /// f.
    pub width: usize,
    /// Slope inside the sigmoid.
    pub alpha: f32,
    /// Bound of the gate from above, and of the linear half on both sides.
    pub limit: f32,
    /// Gates in even columns and linear halves in odd ones, [r, 2f].
    pub gate_up: &'a [T],
    /// Added to `gate_up` first, [e, 2f]; the sum is rounded to the element type.
    pub bias: Option<BiasByExpert<'a, T>>,
}

impl<T: Float> SwigluInput<'_, T> {
    /// Gate and linear half of an output, with their bias.
    #[must_use]
    pub fn pair(&self, index: usize) -> [f64; 2] {
        [2 * index, 2 * index + 1].map(|place| {
            let value = self.gate_up[place];
            wide(self.bias.as_ref().map_or(value, |bias| T::rounded(value.to_f32() + bias.of(place, 2 * self.width).to_f32())))
        })
    }

    /// Gate, linear half and sigmoid, after the clamps.
    fn parts(&self, index: usize) -> [f64; 3] {
        let ([gate, up], limit) = (self.pair(index), f64::from(self.limit));
        let gate = if gate > limit { limit } else { gate };
        let up = if up > limit {
            limit
        } else if up < -limit {
            -limit
        } else {
            up
        };
        [gate, up, 1.0 / (1.0 + (-f64::from(self.alpha) * gate).exp())]
    }
}

/// `g sigmoid(alpha g) (u + 1)`, g = min(gate, limit), u = clamp(up, -limit, limit); a NaN stays one.
///
/// # Shapes
/// Gives [r, f].
///
/// # Panics
/// When `gate_up` or the bias is shorter than the shapes say.
#[must_use]
pub fn swiglu<T: Float>(input: SwigluInput<'_, T>) -> Vec<f64> {
    (0..input.gate_up.len() / 2)
        .map(|index| {
            let [gate, up, sigmoid] = input.parts(index);
            gate * sigmoid * (up + 1.0)
        })
        .collect()
}

/// The gradient of `gate_up`: dgate = dy (u + 1) s (1 + alpha g (1 - s)) where gate <= limit, dup = dy g s where |up| <= limit, else 0.
///
/// # Shapes
/// `gradient` (of the output) [r, f]; gives [r, 2f].
///
/// # Panics
/// As [`swiglu`].
#[must_use]
pub fn swiglu_backward<T: Float>(input: SwigluInput<'_, T>, gradient: &[T]) -> Vec<f64> {
    let limit = f64::from(input.limit);
    let gradients = gradient.iter().enumerate().flat_map(|(index, &gradient)| {
        let ([raw_gate, raw_up], [gate, up, sigmoid]) = (input.pair(index), input.parts(index));
        let gradient = wide(gradient);
        let of_gate = gradient * (up + 1.0) * sigmoid * (1.0 + f64::from(input.alpha) * gate * (1.0 - sigmoid));
        let of_up = gradient * gate * sigmoid;
        [if raw_gate > limit { 0.0 } else { of_gate }, if raw_up > limit || raw_up < -limit { 0.0 } else { of_up }]
    });
    gradients.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(gate_up: &[f32]) -> SwigluInput<'_, f32> {
        SwigluInput { width: gate_up.len() / 2, alpha: 1.702, limit: 7.0, gate_up, bias: None }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_values_inside_the_clamps_and_zero_outside() {
        let gate_up = [0.5, -0.25, -3.0, 2.0, 7.5, 1.0, 2.0, -7.5, 1.0, 8.0];
        let gradients = swiglu_backward(input(&gate_up), &[1.0; 5]);
        let step = 1.0 / 1024.0;
        for place in 0..gate_up.len() {
            let value = |moved: f32| {
                let mut gate_up = gate_up;
                gate_up[place] += moved;
                swiglu(input(&gate_up))[place / 2]
            };
            let slope = (value(step) - value(-step)) / (2.0 * f64::from(step));
            assert!((slope - gradients[place]).abs() < 1e-5, "{place}: {slope} and {}", gradients[place]);
        }
        assert_eq!([gradients[4], gradients[7], gradients[9]], [0.0; 3]);
    }

    #[test]
    fn at_the_limit_itself_gradients_flow() {
        let gradients = swiglu_backward(input(&[7.0, 7.0, 1.0, -7.0]), &[1.0; 2]);
        assert!(gradients.iter().all(|&gradient| gradient != 0.0), "{gradients:?}");
    }
}
