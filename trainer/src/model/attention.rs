//! Self-attention of one layer: grouped queries, rotary positions, a sink for each head, a window on every other layer.

use tch::Tensor;

use super::linear::Linear;
use super::rope::Rotation;
use crate::error::Result;
use crate::torch::functions::{AttentionSpan, sink_attention};
use crate::torch::ops::{concatenate, narrow, reshape};

/// Projections and sinks of one layer.
#[derive(Debug)]
pub struct Attention {
    /// [h k, d].
    pub query: Linear,
    /// [g k, d].
    pub key: Linear,
    /// [g k, d].
    pub value: Linear,
    /// [d, h k].
    pub output: Linear,
    /// A logit for each query head, [h].
    pub sinks_h: Tensor,
    /// Width of a head.
    pub head_width: i64,
    /// Keys that a query sees, itself included; all when `None`.
    pub window: Option<i64>,
}

/// Keys and values of the tokens that a layer has seen; a layer with a window keeps no more than the next token can see.
#[derive(Debug, Default)]
pub struct LayerCache {
    held: Option<(Tensor, Tensor)>,
}

impl Attention {
    /// # Shapes
    /// `hidden_td` [t, d]; gives the same.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn forward(
        &self,
        hidden_td: &Tensor,
        rotation: &Rotation,
        spans: &[AttentionSpan],
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let query_thk = rotation.apply(&self.heads(&self.query.forward(hidden_td)?)?)?;
        let key_tgk = rotation.apply(&self.heads(&self.key.forward(hidden_td)?)?)?;
        let value_tgk = self.heads(&self.value.forward(hidden_td)?)?;
        let attended_thk = match cache {
            None => sink_attention(&query_thk, &key_tgk, &value_tgk, &self.sinks_h, spans, self.window)?,
            Some(cache) => {
                let (key_ngk, value_ngk) = cache.append(key_tgk, value_tgk)?;
                let span = AttentionSpan { queries: 0..query_thk.size()[0], keys: 0..key_ngk.size()[0] };
                let attended = sink_attention(&query_thk, &key_ngk, &value_ngk, &self.sinks_h, &[span], self.window)?;
                cache.keep(&key_ngk, &value_ngk, self.window)?;
                attended
            }
        };
        self.output.forward(&reshape(&attended_thk, &[hidden_td.size()[0], -1])?)
    }

    fn heads(&self, projected: &Tensor) -> Result<Tensor> {
        reshape(projected, &[projected.size()[0], -1, self.head_width])
    }
}

impl LayerCache {
    fn append(&mut self, key_tgk: Tensor, value_tgk: Tensor) -> Result<(Tensor, Tensor)> {
        match self.held.take() {
            None => Ok((key_tgk, value_tgk)),
            Some((key, value)) => Ok((concatenate(&[&key, &key_tgk], 0)?, concatenate(&[&value, &value_tgk], 0)?)),
        }
    }

    fn keep(&mut self, key_ngk: &Tensor, value_ngk: &Tensor, window: Option<i64>) -> Result<()> {
        let held = key_ngk.size()[0];
        let kept = window.map_or(held, |window| held.min(window - 1));
        self.held = Some((narrow(key_ngk, 0, held - kept, kept)?, narrow(value_ngk, 0, held - kept, kept)?));
        Ok(())
    }
}
