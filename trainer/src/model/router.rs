//! Which experts a token goes to, and with what weight.

use tch::{Device, Tensor};

use super::linear::Linear;
use crate::error::Result;
use crate::torch::functions::Groups;
use crate::torch::ops::{Named, softmax, to_i64_vec, top_k};

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
    /// Experts of each token, largest weight first, a row [a] for each of the t tokens; on the host.
    pub experts_ta: Vec<i64>,
    /// Weight of each active expert, [t, a]; a row sums to 1.
    pub weights_ta: Tensor,
    /// Rows of each expert.
    pub groups: Groups,
    /// Token of each row, i64 [r].
    pub token_of_row_r: Tensor,
    /// Row of each (token, active expert), i64 [t a]: the inverse of the sort.
    pub row_of_slot: Tensor,
}

impl Router {
    /// # Shapes
    /// `hidden_td` [t, d].
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    ///
    /// Source: openai/gpt-oss `gpt_oss/torch/model.py`, class `MLPBlock`: the softmax runs over the chosen logits only.
    pub fn forward(&self, hidden_td: &Tensor) -> Result<Routing> {
        let logits_te = self.projection.forward(hidden_td)?;
        let (chosen_ta, experts_ta) = top_k(&logits_te, self.num_active)?;
        let weights_ta = softmax(&chosen_ta, -1)?;
        let num_experts = logits_te.size().last().copied().unwrap_or(0);
        sort_by_expert(weights_ta, &experts_ta, num_experts, self.num_active)
    }
}

/// A counting sort on the host: stable, so that rows of one expert stay in token order on every device.
fn sort_by_expert(weights_ta: Tensor, experts_ta: &Tensor, num_experts: i64, num_active: i64) -> Result<Routing> {
    let device: Device = experts_ta.device();
    let experts = to_i64_vec(experts_ta)?;
    let mut counts = vec![0i64; usize::try_from(num_experts).unwrap_or(0)];
    let index = |expert: i64| usize::try_from(expert).unwrap_or(0);
    for &expert in &experts {
        counts[index(expert)] += 1;
    }
    let mut next: Vec<i64> = counts.iter().scan(0, |sum, count| Some(std::mem::replace(sum, *sum + count))).collect();
    let mut token_of_row = vec![0i64; experts.len()];
    let mut row_of_slot = vec![0i64; experts.len()];
    for ((slot, &expert), row_slot) in (0i64..).zip(&experts).zip(&mut row_of_slot) {
        let row = next[index(expert)];
        next[index(expert)] += 1;
        *row_slot = row;
        token_of_row[index(row)] = slot / num_active;
    }
    let to_device =
        |values: &[i64]| Tensor::f_from_slice(values).and_then(|tensor| tensor.f_to_device(device)).named("sort_by_expert", &[]);
    Ok(Routing {
        experts_ta: experts,
        weights_ta,
        groups: Groups::from_counts(&counts),
        token_of_row_r: to_device(&token_of_row)?,
        row_of_slot: to_device(&row_of_slot)?,
    })
}
