//! The activation.

use ft_quant::cuda::{ExpertBias, Gpu, Swiglu};
use ft_quant::training::{self, BiasByExpert, SwigluInput};
use half::bf16;

use super::samples::{OFFSETS, OnDevice, Sample, UNIT, assert_close, launched, numbers};
use crate::codec::Random;

const ALPHA: f32 = 1.702;
const LIMIT: f32 = 7.0;

/// Values and gradients of both types, with and without a bias.
///
/// # Panics
/// When they differ from the definition by more than the kernel's file says.
pub fn compare_swiglu(gpu: &Gpu) {
    let mut random = Random(21);
    for (rows, width) in [(0, 5), (5, 0), (1, 1), (77, 1), (77, 31), (9, 32), (7, 2880)] {
        for offset in OFFSETS {
            for has_bias in [false, true] {
                compare::<bf16>(gpu, &mut random, rows, width, has_bias, offset);
                compare::<f32>(gpu, &mut random, rows, width, has_bias, offset);
            }
        }
    }
}

/// At both limits and next to them, far outside, where the exponential overflows, and what is no number.
fn awkward<T: Sample>(random: &mut Random, count: usize) -> Vec<T> {
    let special = [LIMIT, -LIMIT, 7.03125, -7.03125, 6.96875, 0.0, -0.0, -52.0, -60.0, -1e4, 1e4, f32::INFINITY, f32::NAN];
    let mut values = numbers::<T>(random, count);
    for value in &mut values {
        if random.below(3) == 0 {
            *value = T::of(special[usize::from(random.below(special.len() as u16))]);
        }
    }
    values
}

fn compare<T: Sample>(gpu: &Gpu, random: &mut Random, rows: usize, width: usize, has_bias: bool, offset: usize) {
    let case = format!("{:?}, {rows} rows of {width}, bias {has_bias}, offset {offset}", T::ELEMENT);
    let gate_up = awkward::<T>(random, rows * width * 2);
    let gradient = numbers::<T>(random, rows * width);
    // Experts without rows at both ends and in the middle; the last owns what lies beyond.
    let ends: Vec<i32> = [0, rows / 3, rows / 3, rows / 2, rows, rows].map(|end| end as i32).to_vec();
    let bias_eo = numbers::<T>(random, ends.len() * width * 2);
    let (there_gate_up, there_gradient) = (OnDevice::new(gpu, &gate_up, offset), OnDevice::new(gpu, &gradient, offset));
    let (there_bias, there_ends) = (OnDevice::new(gpu, &bias_eo, offset), OnDevice::new(gpu, &ends, offset));
    let bias = ExpertBias { num_experts: ends.len(), bias: there_bias.address(), ends: there_ends.address() };
    let there = Swiglu {
        element: T::ELEMENT,
        rows,
        width,
        alpha: ALPHA,
        limit: LIMIT,
        gate_up: there_gate_up.address(),
        bias: has_bias.then_some(bias),
    };
    let bias = BiasByExpert { bias: &bias_eo, ends: &ends };
    let here = SwigluInput { width, alpha: ALPHA, limit: LIMIT, gate_up: &gate_up, bias: has_bias.then_some(bias) };

    let out = OnDevice::room::<T>(gpu, rows * width, offset);
    // SAFETY: the stream is the device's own; the buffers have the sizes of the shapes and live until they were read.
    launched(unsafe { gpu.swiglu_on(gpu.stream(), there, out.address()) });
    let exact = training::swiglu(here);
    // What the exponential is given is rounded before; where it overflows, what is lost is below the second term.
    let steps = |index: usize| (f64::from(ALPHA) * here.pair(index)[0].min(f64::from(LIMIT)).max(-90.0).abs() + 16.0) * UNIT;
    assert_close(&out.read::<T>(gpu), &exact, |index| steps(index) * exact[index].abs() + f64::exp2(-116.0), &case);

    let result = OnDevice::room::<T>(gpu, rows * width * 2, offset);
    // SAFETY: as above.
    launched(unsafe { gpu.swiglu_backward_on(gpu.stream(), there, there_gradient.address(), result.address()) });
    let exact = training::swiglu_backward(here, &gradient);
    let bound = |place: usize| {
        let index = place / 2;
        let limit = f64::from(LIMIT);
        let [gate, up] = here.pair(index);
        let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
        let inner = f64::from(ALPHA) * gate;
        let sigmoid = 1.0 / (1.0 + (-inner).exp());
        let of_gate = (up + 1.0).abs() * sigmoid * (1.0 + inner.abs());
        let magnitude = if place.is_multiple_of(2) { of_gate } else { gate.abs() * sigmoid };
        let gradient = f64::from(gradient[index].to_f32()).abs();
        gradient * (steps(index) * magnitude + f64::exp2(-116.0))
    };
    assert_close(&result.read::<T>(gpu), &exact, bound, &format!("backward, {case}"));
}
