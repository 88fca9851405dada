//! The mixture of experts: four small networks for each token, weighted by the router.

use tch::Tensor;

use super::linear::LowRank;
use super::router::{Router, Routing};
use crate::error::Result;
use crate::torch::functions::{Groups, PackedWeight, SwigluLimits, grouped_matmul, packed_matmul, swiglu};
use crate::torch::ops::{add, cast};

/// How the weight of a projection is held.
#[derive(Debug)]
pub enum ExpertWeight {
    /// Numbers, [e, in, out] as in a bf16 checkpoint.
    Numbers(Tensor),
    /// MXFP4, as in a released checkpoint; frozen.
    Packed(PackedWeight),
}

impl ExpertWeight {
    /// Experts, inputs, outputs.
    #[must_use]
    pub fn dims(&self) -> [i64; 3] {
        match self {
            Self::Numbers(weight_eio) => [0, 1, 2].map(|dim| weight_eio.size().get(dim).copied().unwrap_or(0)),
            Self::Packed(weight) => weight.dims(),
        }
    }

    fn matmul(&self, input_ri: &Tensor, bias_eo: &Tensor, groups: &Groups) -> Result<Tensor> {
        match self {
            Self::Numbers(weight_eio) => grouped_matmul(input_ri, &cast(weight_eio, input_ri.kind())?, Some(bias_eo), groups),
            Self::Packed(weight) => packed_matmul(input_ri, weight, Some(bias_eo), groups),
        }
    }
}

/// One projection of all experts.
#[derive(Debug)]
pub struct ExpertProjection {
    /// [e, in, out].
    pub weight: ExpertWeight,
    /// [e, out].
    pub bias_eo: Tensor,
    /// The trained update.
    pub update: Option<LowRank>,
}

impl ExpertProjection {
    fn forward(&self, input_ri: &Tensor, groups: &Groups) -> Result<Tensor> {
        let output_ro = self.weight.matmul(input_ri, &cast(&self.bias_eo, input_ri.kind())?, groups)?;
        match &self.update {
            Some(update) => add(&output_ro, &update.grouped_delta(input_ri, groups)?),
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
        let input_rd = routing.rows.gather(hidden_td)?;
        let active_rf = swiglu(&self.gate_up.forward(&input_rd, routing.rows.groups())?, self.limits)?;
        let output_rd = self.down.forward(&active_rf, routing.rows.groups())?;
        routing.rows.combine(&output_rd, &routing.weights_ta)
    }
}
