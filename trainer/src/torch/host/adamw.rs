//! One AdamW step over a parameter, in one pass over memory.

use super::dispatch::for_each_instruction_set;
use super::element::Element;
use super::parallel::{Shared, for_each_range};

/// Elements that one thread takes at least.
const GRAIN: usize = 1 << 15;

/// The factors of a step, worked out once for all elements.
#[derive(Debug, Clone, Copy)]
pub struct AdamWFactors {
    /// 1 - beta1.
    pub rest1: f32,
    /// Beta2.
    pub beta2: f32,
    /// 1 - beta2.
    pub rest2: f32,
    /// 1 - learning rate * weight decay.
    pub decay: f32,
    /// Learning rate over the first moment's bias correction.
    pub step_size: f32,
    /// Root of the second moment's bias correction.
    pub root_correction: f32,
    /// Added to the corrected root of the second moment.
    pub epsilon: f32,
}

/// Moves `parameter` by one step; each element is computed alone, so the result does not depend on the number of threads.
///
/// # Panics
/// When the slices differ in length: the caller's mistake.
pub fn adamw(parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], factors: AdamWFactors) {
    let count = parameter.len();
    assert!(gradient.len() == count && first.len() == count && second.len() == count, "one gradient and two moments for each element");
    let (parameter, first, second) = (Shared::new(parameter), Shared::new(first), Shared::new(second));
    for_each_range(count, GRAIN, |range| {
        // SAFETY: ranges are disjoint.
        let (parameter, first, second) = unsafe { (parameter.part(range.clone()), first.part(range.clone()), second.part(range.clone())) };
        step(parameter, &gradient[range], first, second, factors);
    });
}

for_each_instruction_set! {
    fn step<T: Element>(parameter: &mut [T], gradient: &[f32], first: &mut [f32], second: &mut [f32], factors: AdamWFactors) {
        for (((parameter, &gradient), first), second) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
            *parameter = T::from_f32(moved(parameter.to_f32(), gradient, first, second, factors));
        }
    }
}

/// The next value of one element; its moments take in the gradient.
#[inline(always)]
pub(super) fn moved(parameter: f32, gradient: f32, first: &mut f32, second: &mut f32, factors: AdamWFactors) -> f32 {
    *first += factors.rest1 * (gradient - *first);
    *second = factors.beta2 * *second + factors.rest2 * gradient * gradient;
    let denominator = second.sqrt() / factors.root_correction + factors.epsilon;
    factors.decay * parameter - factors.step_size * (*first / denominator)
}
