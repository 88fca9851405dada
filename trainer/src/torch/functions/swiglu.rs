//! The clamped SwiGLU activation of gpt-oss.
//!
//! Letters: r rows, f expert width.

use half::bf16;
use tch::{Kind, Tensor};

use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::host::{Element, elements, elements_mut, is_host, swiglu_backward_rows, swiglu_rows};
use crate::torch::kernels;
use crate::torch::ops::{Named, cast, contiguous, dims2, empty, without_graph};

/// The two constants of the activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SwigluLimits {
    /// Slope inside the sigmoid (1.702).
    pub alpha: f64,
    /// Bound of the gate from above, and of the linear half on both sides (7.0).
    pub limit: f64,
}

#[expect(clippy::cast_possible_truncation, reason = "constants of a model that computes in f32 at most")]
impl SwigluLimits {
    fn alpha_f32(self) -> f32 {
        self.alpha as f32
    }

    fn limit_f32(self) -> f32 {
        self.limit as f32
    }
}

/// `g sigmoid(alpha g) (u + 1)`, g = min(gate, limit), u = clamp(up, -limit, limit); gate and up stand interleaved.
///
/// # Shapes
/// `gate_up_rf` [r, 2f], even columns the gate, odd columns the linear half; gives [r, f] in the same type.
///
/// # Errors
/// [`crate::Error::Torch`] or [`crate::Error::Shape`] when the width is odd.
///
/// Source: openai/gpt-oss `gpt_oss/torch/model.py`, function `swiglu`.
pub fn swiglu(gate_up_rf: &Tensor, limits: SwigluLimits) -> Result<Tensor> {
    let output = without_graph(|| {
        if let Some(output) = on_host(gate_up_rf, limits)? {
            return Ok(output);
        }
        if kernels::can_take(&[gate_up_rf]) {
            return kernels::swiglu(gate_up_rf, None, limits.alpha_f32(), limits.limit_f32());
        }
        let (gate, up) = halves(gate_up_rf)?;
        let parts = Parts::new(&gate, &up, limits).named("swiglu", &[gate_up_rf])?;
        let product = parts.gate.f_mul(&parts.sigmoid).and_then(|swish| swish.f_mul(&parts.up_plus_one));
        cast(&product.named("swiglu", &[gate_up_rf])?, gate_up_rf.kind())
    })?;
    Ok(attach(Swiglu { gate_up_rf: gate_up_rf.detach(), limits }, &[gate_up_rf], vec![output])?.remove(0))
}

/// The kernel's result, where there is one for this tensor.
fn on_host(gate_up_rf: &Tensor, limits: SwigluLimits) -> Result<Option<Tensor>> {
    fn run<T: Element>(gate_up_rf: &Tensor, output_rf: &mut Tensor, limits: SwigluLimits) -> Result<(), tch::TchError> {
        swiglu_rows::<T>(elements(gate_up_rf)?, elements_mut(output_rf)?, limits.alpha_f32(), limits.limit_f32());
        Ok(())
    }
    let kernel = match gate_up_rf.kind() {
        Kind::Float if is_host(gate_up_rf) => run::<f32>,
        Kind::BFloat16 if is_host(gate_up_rf) => run::<bf16>,
        _ => return Ok(None),
    };
    let (rows, width) = dims2("swiglu", "gate_up", gate_up_rf)?;
    let mut output_rf = empty(&[rows, width / 2], gate_up_rf.kind(), gate_up_rf.device())?;
    kernel(gate_up_rf, &mut output_rf, limits).named("swiglu", &[gate_up_rf])?;
    Ok(Some(output_rf))
}

/// The kernel's gradient, where there is one for this tensor.
fn backward_on_host(gate_up_rf: &Tensor, gradient_rf: &Tensor, limits: SwigluLimits) -> Result<Option<Tensor>> {
    fn run<T: Element>(gate_up: &Tensor, gradient: &Tensor, result: &mut Tensor, limits: SwigluLimits) -> Result<(), tch::TchError> {
        swiglu_backward_rows::<T>(elements(gate_up)?, elements(gradient)?, elements_mut(result)?, limits.alpha_f32(), limits.limit_f32());
        Ok(())
    }
    let kernel = match gate_up_rf.kind() {
        Kind::Float if is_host(gate_up_rf) => run::<f32>,
        Kind::BFloat16 if is_host(gate_up_rf) => run::<bf16>,
        _ => return Ok(None),
    };
    let gradient_rf = contiguous(gradient_rf)?;
    let mut result = empty(&gate_up_rf.size(), gate_up_rf.kind(), gate_up_rf.device())?;
    kernel(gate_up_rf, &gradient_rf, &mut result, limits).named("swiglu backward", &[gate_up_rf])?;
    Ok(Some(result))
}

struct Swiglu {
    gate_up_rf: Tensor,
    limits: SwigluLimits,
}

/// The factors of the activation, in f32.
struct Parts {
    gate: Tensor,
    sigmoid: Tensor,
    up_plus_one: Tensor,
}

impl Parts {
    fn new(gate: &Tensor, up: &Tensor, limits: SwigluLimits) -> Result<Self, tch::TchError> {
        let gate = gate.f_clamp_max(limits.limit)?;
        let sigmoid = gate.f_mul_scalar(limits.alpha)?.f_sigmoid()?;
        let up_plus_one = up.f_clamp(-limits.limit, limits.limit)?.f_add_scalar(1.0)?;
        Ok(Self { gate, sigmoid, up_plus_one })
    }
}

fn halves(gate_up_rf: &Tensor) -> Result<(Tensor, Tensor)> {
    let half = |first| gate_up_rf.f_slice(-1, first, None, 2).and_then(|half| half.f_to_kind(Kind::Float));
    Ok((half(0).named("swiglu", &[gate_up_rf])?, half(1).named("swiglu", &[gate_up_rf])?))
}

impl Function for Swiglu {
    /// dgate = dy (u + 1) s (1 + alpha g (1 - s)) where gate <= limit; dup = dy g s where |up| <= limit; s the sigmoid.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient) = &output_gradients[0] else { return Ok(vec![None]) };
        if let Some(result) = backward_on_host(&self.gate_up_rf, gradient, self.limits)? {
            return Ok(vec![Some(result)]);
        }
        let gradient = contiguous(gradient)?;
        if kernels::can_take(&[&self.gate_up_rf, &gradient]) {
            let (alpha, limit) = (self.limits.alpha_f32(), self.limits.limit_f32());
            return Ok(vec![Some(kernels::swiglu_backward(&self.gate_up_rf, None, &gradient, alpha, limit)?)]);
        }
        let gradient = cast(&gradient, Kind::Float)?;
        let (gate, up) = halves(&self.gate_up_rf)?;
        let SwigluLimits { alpha, limit } = self.limits;
        let gradients = || -> Result<Tensor, tch::TchError> {
            let parts = Parts::new(&gate, &up, self.limits)?;
            let swish = parts.gate.f_mul(&parts.sigmoid)?;
            let slope = parts.sigmoid.f_neg()?.f_add_scalar(1.0)?.f_mul(&swish)?.f_mul_scalar(alpha)?.f_add(&parts.sigmoid)?;
            let gate_inside = gate.f_le(limit)?.f_to_kind(Kind::Float)?;
            let gate_gradient = gradient.f_mul(&parts.up_plus_one)?.f_mul(&slope)?.f_mul(&gate_inside)?;
            let up_inside = up.f_abs()?.f_le(limit)?.f_to_kind(Kind::Float)?;
            let up_gradient = gradient.f_mul(&swish)?.f_mul(&up_inside)?;
            Tensor::f_stack(&[gate_gradient, up_gradient], -1)?.f_reshape(self.gate_up_rf.size())?.f_to_kind(self.gate_up_rf.kind())
        };
        Ok(vec![Some(gradients().named("swiglu backward", &[&self.gate_up_rf])?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::functions::testing::{assert_same_gradients, random};

    #[test]
    fn the_kernel_gives_what_the_operators_give() {
        let limits = SwigluLimits { alpha: 1.702, limit: 1.0 };
        let input = random(&[9, 34]).detach();
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 2e-2)] {
            let input = input.to_kind(kind).set_requires_grad(true);
            let wide = input.detach().to_kind(Kind::Double).set_requires_grad(true);
            let outputs = [swiglu(&input, limits).unwrap(), swiglu(&wide, limits).unwrap()].map(|output| output.to_kind(Kind::Double));
            for output in &outputs {
                output.square().sum(None::<Kind>).backward();
            }
            assert!(outputs[0].allclose(&outputs[1], tolerance, tolerance, false));
            assert!(input.grad().to_kind(Kind::Double).allclose(&wide.grad(), tolerance * 4.0, tolerance * 4.0, false));
        }
    }

    #[test]
    fn gradients_are_those_of_the_definition_inside_and_outside_the_clamp() {
        let limits = SwigluLimits { alpha: 1.702, limit: 1.0 };
        assert_same_gradients(
            &[random(&[7, 10])],
            |inputs| swiglu(&inputs[0], limits).unwrap(),
            |inputs| {
                let gate = inputs[0].slice(-1, 0, None, 2).clamp_max(1.0);
                let up = inputs[0].slice(-1, 1, None, 2).clamp(-1.0, 1.0);
                &gate * (&gate * 1.702).sigmoid() * (up + 1.0)
            },
        );
    }
}
