//! The clamped SwiGLU and its gradient, row by row in one pass.

use super::dispatch::for_each_instruction_set;
use super::element::Element;
use super::exponential::sigmoid;
use super::parallel::{Shared, for_each_range};

/// Elements of the output that one thread takes at least.
const GRAIN: usize = 1 << 13;

/// `output[i] = g sigmoid(alpha g) (u + 1)` with g = min(gate, limit), u = clamp(up, -limit, limit); gate and up are `gate_up[2 i]` and
/// `gate_up[2 i + 1]`.
///
/// # Panics
/// When the lengths do not fit: the caller's mistake.
pub fn swiglu_rows<T: Element>(gate_up: &[T], output: &mut [T], alpha: f32, limit: f32) {
    assert_eq!(gate_up.len(), 2 * output.len(), "a gate and a linear half for each output");
    let (count, output) = (output.len(), Shared::new(output));
    for_each_range(count, GRAIN, |range| {
        // SAFETY: ranges are disjoint.
        let output = unsafe { output.part(range.clone()) };
        forward(&gate_up[2 * range.start..2 * range.end], output, alpha, limit);
    });
}

/// The gradient of [`swiglu_rows`] with respect to `gate_up`, given that with respect to its output.
///
/// # Panics
/// When the lengths do not fit: the caller's mistake.
pub fn swiglu_backward_rows<T: Element>(gate_up: &[T], gradient: &[T], result: &mut [T], alpha: f32, limit: f32) {
    assert!(gate_up.len() == result.len() && result.len() == 2 * gradient.len(), "a gate and a linear half for each output");
    let result = Shared::new(result);
    for_each_range(gradient.len(), GRAIN, |range| {
        let pairs = 2 * range.start..2 * range.end;
        // SAFETY: ranges are disjoint.
        let result = unsafe { result.part(pairs.clone()) };
        backward(&gate_up[pairs], &gradient[range], result, alpha, limit);
    });
}

for_each_instruction_set! {
    fn forward<T: Element>(gate_up: &[T], output: &mut [T], alpha: f32, limit: f32) {
        for (output, pair) in output.iter_mut().zip(gate_up.as_chunks::<2>().0) {
            let gate = clamp_above(pair[0].to_f32(), limit);
            let up = clamp_below(clamp_above(pair[1].to_f32(), limit), -limit);
            *output = T::from_f32(gate * sigmoid(alpha * gate) * (up + 1.0));
        }
    }
}

for_each_instruction_set! {
    fn backward<T: Element>(gate_up: &[T], gradient: &[T], result: &mut [T], alpha: f32, limit: f32) {
        for ((result, pair), gradient) in result.as_chunks_mut::<2>().0.iter_mut().zip(gate_up.as_chunks::<2>().0).zip(gradient) {
            let (raw_gate, raw_up, gradient) = (pair[0].to_f32(), pair[1].to_f32(), gradient.to_f32());
            let gate = clamp_above(raw_gate, limit);
            let up = clamp_below(clamp_above(raw_up, limit), -limit);
            let slope = sigmoid(alpha * gate);
            let gate_gradient = gradient * (up + 1.0) * (slope + alpha * gate * slope * (1.0 - slope));
            let up_gradient = gradient * gate * slope;
            result[0] = T::from_f32(if raw_gate > limit { 0.0 } else { gate_gradient });
            result[1] = T::from_f32(if raw_up > limit || raw_up < -limit { 0.0 } else { up_gradient });
        }
    }
}

/// min(value, bound), but a NaN stays one.
#[inline(always)]
fn clamp_above(value: f32, bound: f32) -> f32 {
    if value > bound { bound } else { value }
}

/// max(value, bound), but a NaN stays one.
#[inline(always)]
fn clamp_below(value: f32, bound: f32) -> f32 {
    if value < bound { bound } else { value }
}
