//! The softmax over the logits of the chosen experts.
//!
//! Letters: t tokens, e experts, a active experts of a token.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::ops::{Named, cast, softmax, without_graph};

/// `softmax(logits[t, experts[t]])`: the choice is given, so that a layer that is computed again chooses as it did.
///
/// # Shapes
/// `logits_te` [t, e], `experts_ta` i64 [t, a], no expert twice in a row; gives [t, a] in the type of the logits.
///
/// # Errors
/// [`crate::Error::Torch`] on shapes that do not fit.
pub fn routing_weights(logits_te: &Tensor, experts_ta: &Tensor) -> Result<Tensor> {
    let weights_ta =
        without_graph(|| softmax(&logits_te.f_gather(1, experts_ta, false).named("routing_weights", &[logits_te, experts_ta])?, -1))?;
    let saved = RoutingWeights { weights_ta: weights_ta.shallow_clone(), experts_ta: experts_ta.shallow_clone(), shape: logits_te.size() };
    Ok(attach(saved, &[logits_te], vec![weights_ta])?.remove(0))
}

struct RoutingWeights {
    weights_ta: Tensor,
    experts_ta: Tensor,
    shape: Vec<i64>,
}

impl Function for RoutingWeights {
    /// dlogit = w (g - sum over the chosen of w g), zero for the rest.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient) = &output_gradients[0] else { return Ok(vec![None]) };
        let (weights, kind) = (cast(&self.weights_ta, Kind::Float)?, gradient.kind());
        let chosen = || {
            let weighted = gradient.f_mul(&weights)?;
            let mean = weighted.f_sum_dim_intlist(-1, true, None::<Kind>)?;
            let chosen_ta = weighted.f_sub(&weights.f_mul(&mean)?)?.f_to_kind(kind)?;
            Tensor::f_zeros(&self.shape, (kind, gradient.device()))?.f_scatter_(1, &self.experts_ta, &chosen_ta)
        };
        Ok(vec![Some(chosen().named("routing_weights backward", &[gradient])?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::functions::testing::{assert_same_gradients, random};

    #[test]
    fn gradients_are_those_of_the_definition() {
        let logits = random(&[7, 5]);
        let (_, experts) = logits.detach().topk(3, -1, true, true);
        assert_same_gradients(
            &[logits],
            |inputs| routing_weights(&inputs[0], &experts).unwrap(),
            |inputs| inputs[0].gather(1, &experts, false).softmax(-1, None::<Kind>),
        );
    }
}
