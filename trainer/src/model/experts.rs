//! The mixture of experts: four small networks for each token, weighted by the router.

use tch::Tensor;

use super::linear::LowRank;
use super::router::{Router, Routing};
use crate::error::Result;
use crate::torch::functions::{SwigluLimits, grouped_matmul, swiglu};
use crate::torch::ops::{add, cast, index_select, mul, reshape, sum, unsqueeze};

/// One projection of all experts, stored [e, in, out] as in a bf16 checkpoint.
#[derive(Debug)]
pub struct ExpertProjection {
    /// [e, in, out].
    pub weight_eio: Tensor,
    /// [e, out].
    pub bias_eo: Tensor,
    /// The trained update.
    pub update: Option<LowRank>,
}

impl ExpertProjection {
    fn forward(&self, input_ri: &Tensor, routing: &Routing) -> Result<Tensor> {
        let kind = input_ri.kind();
        let output_ro = grouped_matmul(input_ri, &cast(&self.weight_eio, kind)?, Some(&cast(&self.bias_eo, kind)?), &routing.groups)?;
        match &self.update {
            Some(update) => add(&output_ro, &update.grouped_delta(input_ri, &routing.groups)?),
            None => Ok(output_ro),
        }
    }
}

/// Router and experts of one layer.
#[derive(Debug)]
pub struct MixtureOfExperts {
    /// Chooses the experts.
    pub router: Router,
    /// [e, d, 2f], gate and linear half interleaved in the columns.
    pub gate_up: ExpertProjection,
    /// [e, f, d].
    pub down: ExpertProjection,
    /// Constants of the activation.
    pub limits: SwigluLimits,
}

impl MixtureOfExperts {
    /// The experts that `routing`, made of the same `hidden_td` by the router, chose.
    ///
    /// # Shapes
    /// `hidden_td` [t, d]; gives the same.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn forward(&self, hidden_td: &Tensor, routing: &Routing) -> Result<Tensor> {
        let input_rd = index_select(hidden_td, 0, &routing.token_of_row_r)?;
        let active_rf = swiglu(&self.gate_up.forward(&input_rd, routing)?, self.limits)?;
        let output_rd = self.down.forward(&active_rf, routing)?;
        weighted_sum(&output_rd, routing)
    }
}

/// For each token, the rows of its experts times their weights, summed in the order of the router's choice.
fn weighted_sum(output_rd: &Tensor, routing: &Routing) -> Result<Tensor> {
    let width = output_rd.size().last().copied().unwrap_or(0);
    let num_active = routing.weights_ta.size().last().copied().unwrap_or(1);
    let by_token_tad = reshape(&index_select(output_rd, 0, &routing.row_of_slot)?, &[-1, num_active, width])?;
    sum(&mul(&by_token_tad, &unsqueeze(&routing.weights_ta, -1)?)?, &[1], false)
}
