//! Root mean square normalisation.
//!
//! Letters: t tokens, d model width.

use half::bf16;
use tch::{Kind, TchError, Tensor};

use crate::error::{Error, Result};
use crate::torch::autograd::{Function, attach};
use crate::torch::host::{Element, elements, elements_mut, floats, floats_mut, is_host, rms_norm_backward_rows, rms_norm_rows};
use crate::torch::kernels;
use crate::torch::ops::{Named, cast, contiguous, dims2, empty, mul, scale, sub, sum, without_graph};

/// `x / sqrt(mean(x^2) + epsilon) * weight`, computed in f32 and rounded once, to the type of `x`.
///
/// # Shapes
/// `hidden_td` [t, d] in any float type, `weight_d` [d]; gives [t, d].
///
/// # Errors
/// [`crate::Error::Torch`] when the last dims differ.
///
/// Source: openai/gpt-oss `gpt_oss/torch/model.py`, class `RMSNorm`: the weight multiplies before the cast back.
pub fn rms_norm(hidden_td: &Tensor, weight_d: &Tensor, epsilon: f64) -> Result<Tensor> {
    let (output, saved) = without_graph(|| {
        let weight = contiguous(&cast(weight_d, Kind::Float)?)?;
        let (output, reciprocal_t1) = if kernels::can_take(&[hidden_td, &weight]) {
            kernels::rms_norm(hidden_td, &weight, epsilon)?
        } else if has_host_kernel(&[hidden_td, &weight]) {
            on_host(hidden_td, &weight, epsilon)?
        } else {
            by_operators(hidden_td, &weight, epsilon)?
        };
        Ok((output, RmsNorm { hidden_td: hidden_td.detach(), weight, weight_kind: weight_d.kind(), reciprocal_t1 }))
    })?;
    Ok(attach(saved, &[hidden_td, weight_d], vec![output])?.remove(0))
}

/// True for contiguous tensors of bf16 or f32 in host memory.
fn has_host_kernel(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| is_host(tensor) && matches!(tensor.kind(), Kind::BFloat16 | Kind::Float))
}

/// The norm, and the reciprocals of the roots, by the kernel.
fn on_host(hidden_td: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    fn run<T: Element>(hidden: &Tensor, weight: &Tensor, epsilon: f32, [output, reciprocals]: [&mut Tensor; 2]) -> Result<(), TchError> {
        rms_norm_rows::<T>(elements(hidden)?, floats(weight)?, epsilon, elements_mut(output)?, floats_mut(reciprocals)?);
        Ok(())
    }
    let (tokens, _) = dims2("rms_norm", "hidden", hidden_td)?;
    check_width(hidden_td, weight)?;
    let mut output_td = empty(&hidden_td.size(), hidden_td.kind(), hidden_td.device())?;
    let mut reciprocal_t1 = empty(&[tokens, 1], Kind::Float, hidden_td.device())?;
    let kernel = if hidden_td.kind() == Kind::Float { run::<f32> } else { run::<bf16> };
    #[expect(clippy::cast_possible_truncation, reason = "the arithmetic is f32")]
    kernel(hidden_td, weight, epsilon as f32, [&mut output_td, &mut reciprocal_t1]).named("rms_norm", &[hidden_td])?;
    Ok((output_td, reciprocal_t1))
}

fn check_width(hidden_td: &Tensor, weight: &Tensor) -> Result<()> {
    if hidden_td.size().last() == weight.size().last() {
        return Ok(());
    }
    Err(Error::Shape { operation: "rms_norm", tensor: "weight", expected: "the width of the hidden states", found: weight.size() })
}

/// The norm with libtorch's operators, and the reciprocals of the roots.
fn by_operators(hidden_td: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let hidden = cast(hidden_td, Kind::Float)?;
    let reciprocal_t1 = hidden
        .f_square()
        .and_then(|square| square.f_mean_dim(-1, true, Kind::Float))
        .and_then(|mean| mean.f_add_scalar(epsilon))
        .and_then(|mean| mean.f_rsqrt())
        .named("rms_norm", &[hidden_td])?;
    let output = cast(&mul(&mul(&hidden, &reciprocal_t1)?, weight)?, hidden_td.kind())?;
    Ok((output, reciprocal_t1))
}

struct RmsNorm {
    hidden_td: Tensor,
    weight: Tensor,
    weight_kind: Kind,
    reciprocal_t1: Tensor,
}

impl Function for RmsNorm {
    /// With n = x r (r the reciprocal root): dweight = sum_t dy n; dx = r (g - n mean(g n)), g = dy weight.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], needs_gradient: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient) = &output_gradients[0] else { return Ok(vec![None, None]) };
        let gradient = contiguous(gradient)?;
        if kernels::can_take(&[&self.hidden_td, &gradient]) {
            return self.backward_on_device(&gradient, needs_gradient);
        }
        if !needs_gradient[1] && has_host_kernel(&[&self.hidden_td, &gradient]) {
            return Ok(vec![Some(self.input_gradient_on_host(&gradient)?), None]);
        }
        let gradient = cast(&gradient, Kind::Float)?;
        let normal = mul(&cast(&self.hidden_td, Kind::Float)?, &self.reciprocal_t1)?;
        let weight_gradient = match needs_gradient[1] {
            true => Some(cast(&sum(&mul(&gradient, &normal)?, &[0], false)?, self.weight_kind)?),
            false => None,
        };
        let hidden_gradient = match needs_gradient[0] {
            true => {
                let scaled = mul(&gradient, &self.weight)?;
                let width = self.hidden_td.size().last().copied().unwrap_or(1);
                #[expect(clippy::cast_precision_loss, reason = "a model's width is far below 2^52")]
                let mean = scale(&sum(&mul(&scaled, &normal)?, &[-1], true)?, 1.0 / width as f64)?;
                let difference = sub(&scaled, &mul(&normal, &mean)?)?;
                Some(cast(&mul(&difference, &self.reciprocal_t1)?, self.hidden_td.kind())?)
            }
            false => None,
        };
        Ok(vec![hidden_gradient, weight_gradient])
    }
}

impl RmsNorm {
    fn backward_on_device(&self, gradient: &Tensor, needs_gradient: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let hidden_gradient = match needs_gradient[0] {
            true => Some(kernels::rms_norm_backward(&self.hidden_td, &self.weight, &self.reciprocal_t1, gradient)?),
            false => None,
        };
        let weight_gradient = match needs_gradient[1] {
            true => {
                let gradient_d = kernels::rms_norm_weight_gradient(&self.hidden_td, &self.reciprocal_t1, gradient)?;
                Some(cast(&gradient_d, self.weight_kind)?)
            }
            false => None,
        };
        Ok(vec![hidden_gradient, weight_gradient])
    }
}

impl RmsNorm {
    fn input_gradient_on_host(&self, gradient_td: &Tensor) -> Result<Tensor> {
        fn run<T: Element>(of: &RmsNorm, gradient: &Tensor, result: &mut Tensor) -> Result<(), TchError> {
            let (weight, reciprocals) = (floats(&of.weight)?, floats(&of.reciprocal_t1)?);
            rms_norm_backward_rows::<T>(elements(&of.hidden_td)?, weight, reciprocals, elements(gradient)?, elements_mut(result)?);
            Ok(())
        }
        let mut result_td = empty(&gradient_td.size(), gradient_td.kind(), gradient_td.device())?;
        let kernel = if gradient_td.kind() == Kind::Float { run::<f32> } else { run::<bf16> };
        kernel(self, gradient_td, &mut result_td).named("rms_norm backward", &[gradient_td])?;
        Ok(result_td)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::torch::functions::testing::{assert_same_gradients, random};

    #[test]
    fn gradients_are_those_of_the_definition() {
        assert_same_gradients(
            &[random(&[5, 6]), random(&[6])],
            |inputs| rms_norm(&inputs[0], &inputs[1], 1e-5).unwrap(),
            |inputs| {
                let mean = inputs[0].square().mean_dim(-1, true, None::<Kind>) + 1e-5;
                &inputs[0] * mean.rsqrt() * &inputs[1]
            },
        );
    }

    #[test]
    fn the_kernels_give_what_the_operators_give() {
        tch::manual_seed(4);
        let weight = Tensor::randn([77], (Kind::Float, Device::Cpu));
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
            let input = Tensor::randn([9, 77], (Kind::Float, Device::Cpu)).to_kind(kind).set_requires_grad(true);
            let wide = input.detach().to_kind(Kind::Double).set_requires_grad(true);
            let outputs = [&input, &wide].map(|input| rms_norm(input, &weight, 1e-5).unwrap().to_kind(Kind::Double));
            for output in &outputs {
                output.square().sum(None::<Kind>).backward();
            }
            assert!(outputs[0].allclose(&outputs[1], tolerance, tolerance, false), "{kind:?}");
            assert!(input.grad().to_kind(Kind::Double).allclose(&wide.grad(), tolerance * 4.0, tolerance * 4.0, false), "{kind:?}");
        }
    }
}
