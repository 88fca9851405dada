//! The training loss: cross entropy of the next token, weighted by channel, over trained tokens only.

use std::borrow::Borrow;

use tch::{Kind, Tensor};

use crate::data::Sample;
use crate::error::Result;
use crate::model::{Activations, PackedTokens, RoutingMeter, Transformer};
use crate::torch::functions::cross_entropy;
use crate::torch::ops::{Named, from_slice, index_select};

/// Sequences of a forward pass: each a row of samples laid end to end, none of which sees another.
#[derive(Debug)]
pub struct Batch {
    /// All tokens.
    pub tokens: PackedTokens,
    /// Rows whose next token is trained, i64 [n].
    pub trained_rows_n: Tensor,
    /// The next token of each, i64 [n].
    pub targets_n: Tensor,
    /// Its loss weight, f32 [n].
    pub weights_n: Tensor,
}

impl Batch {
    /// The samples, packed on the model's device.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] out of memory.
    pub fn new<'a>(samples: impl IntoIterator<Item = &'a Sample> + Clone, model: &Transformer) -> Result<Self> {
        let tokens = PackedTokens::from_sequences(samples.clone().into_iter().map(|sample| &sample.ids[..]), model.device)?;
        let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        let mut first = 0i64;
        for sample in samples {
            for ((row, &target), &weight) in (first..).zip(&sample.ids[1..]).zip(&sample.weights[1..]) {
                if weight != 0.0 {
                    rows.push(row);
                    targets.push(i64::from(target));
                    weights.push(weight);
                }
            }
            first += i64::try_from(sample.ids.len()).unwrap_or(0);
        }
        Ok(Self {
            tokens,
            trained_rows_n: from_slice(&rows, model.device)?,
            targets_n: from_slice(&targets, model.device)?,
            weights_n: from_slice(&weights, model.device)?,
        })
    }
}

/// Sum of the loss weights of `samples`: what a sum of losses is divided by.
#[must_use]
pub fn total_weight<S: Borrow<Sample>>(samples: impl IntoIterator<Item = S>) -> f64 {
    let add = |sum: f64, weight: &f32| sum + f64::from(*weight);
    samples.into_iter().fold(0.0, |sum, sample| sample.borrow().weights[1..].iter().fold(sum, add))
}

/// Sum over trained tokens of weight times cross entropy, divided by `total_weight`: a scalar with a graph.
///
/// Dividing by the weight of a whole step, not of the batch, makes accumulated batches equal one large batch.
///
/// # Errors
/// Those of the forward pass.
pub fn loss(model: &Transformer, batch: &Batch, total_weight: f64, activations: Activations) -> Result<Tensor> {
    metered_loss(model, batch, total_weight, activations, None)
}

/// [`loss`], with the routers' choices for all tokens of the batch counted by `meter`. The loss is the same to the bit.
///
/// # Errors
/// Those of the forward pass.
pub fn metered_loss(
    model: &Transformer,
    batch: &Batch,
    total_weight: f64,
    activations: Activations,
    meter: Option<&RoutingMeter>,
) -> Result<Tensor> {
    let hidden_td = model.hidden_metered(&batch.tokens, activations, meter)?;
    let trained_nd = index_select(&hidden_td, 0, &batch.trained_rows_n)?;
    let weights_n = batch
        .weights_n
        .f_to_kind(Kind::Double)
        .and_then(|weights| weights.f_div_scalar(total_weight))
        .and_then(|weights| weights.f_to_kind(Kind::Float))
        .named("loss", &[&batch.weights_n])?;
    cross_entropy(&model.head.logit_terms(&trained_nd)?, &batch.targets_n, &weights_n)
}
