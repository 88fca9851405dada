//! Which experts a token goes to, and with what weight.

use std::cell::OnceCell;

use tch::Tensor;

use super::linear::Linear;
use super::routing_meter::LayerMeter;
use crate::error::Result;
use crate::torch::functions::{Rows, routing_weights};
use crate::torch::ops::{to_i64_vec, top_k};

/// The router of one layer.
#[derive(Debug)]
pub struct Router {
    /// [e, d] with bias [e].
    pub projection: Linear,
    /// Experts of a token.
    pub num_active: i64,
}

/// The experts of each token, and the rows (token, expert) sorted by expert.
#[derive(Debug)]
pub struct Routing {
    /// Experts of each token, largest weight first, i64 [t, a].
    pub experts_ta: Tensor,
    /// Weight of each active expert, [t, a]; a row sums to 1.
    pub weights_ta: Tensor,
    /// A row for each of a token's experts.
    pub rows: Rows,
}

/// What a router chose in a first pass, so that the same layer computed again sends every token where it went.
#[derive(Debug, Default)]
pub struct KeptChoice {
    choice: OnceCell<(Tensor, Rows)>,
    meter: Option<LayerMeter>,
}

impl KeptChoice {
    /// None yet; the one that is put here is counted by `meter`, once.
    #[must_use]
    pub fn counted_by(meter: Option<LayerMeter>) -> Self {
        Self { choice: OnceCell::new(), meter }
    }
}

impl Router {
    /// # Shapes
    /// `hidden_td` [t, d]. The choice is that in `kept` where it holds one; else it is put there.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    ///
    /// Source: openai/gpt-oss `gpt_oss/torch/model.py`, class `MLPBlock`: the softmax runs over the chosen logits only.
    pub fn forward(&self, hidden_td: &Tensor, kept: &KeptChoice) -> Result<Routing> {
        let logits_te = self.projection.forward(hidden_td)?;
        let (experts_ta, rows) = match kept.choice.get() {
            Some(choice) => choice,
            None => {
                let choice = self.choose(&logits_te)?;
                if let Some(meter) = &kept.meter {
                    meter.count(&logits_te, &choice.0)?;
                }
                kept.choice.get_or_init(|| choice)
            }
        };
        let weights_ta = routing_weights(&logits_te, experts_ta)?;
        Ok(Routing { experts_ta: experts_ta.shallow_clone(), weights_ta, rows: rows.share() })
    }

    fn choose(&self, logits_te: &Tensor) -> Result<(Tensor, Rows)> {
        let (_, experts_ta) = top_k(&logits_te.detach(), self.num_active)?;
        let num_experts = logits_te.size().last().copied().unwrap_or(0);
        let rows = Rows::by_expert(&experts_ta, num_experts)?;
        Ok((experts_ta, rows))
    }
}

impl Routing {
    /// The experts on the host, those of a token one after the other.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when the copy fails.
    pub fn experts_on_host(&self) -> Result<Vec<i64>> {
        to_i64_vec(&self.experts_ta)
    }
}
