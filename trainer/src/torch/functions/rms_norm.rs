//! Root mean square normalisation.
//!
//! Letters: t tokens, d model width.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::kernels;
use crate::torch::ops::{Named, cast, contiguous, mul, scale, sub, sum, without_graph};

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
        let (output, reciprocal_t1) = match kernels::can_take(&[hidden_td, &weight]) {
            true => kernels::rms_norm(hidden_td, &weight, epsilon)?,
            false => by_operators(hidden_td, &weight, epsilon)?,
        };
        Ok((output, RmsNorm { hidden_td: hidden_td.detach(), weight, weight_kind: weight_d.kind(), reciprocal_t1 }))
    })?;
    Ok(attach(saved, &[hidden_td, weight_d], vec![output])?.remove(0))
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

#[cfg(test)]
mod tests {
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
}
