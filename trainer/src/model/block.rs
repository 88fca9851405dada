//! One layer: attention and experts, each behind its norm and added to what came in.

use tch::Tensor;

use super::attention::{Attention, LayerCache};
use super::experts::MixtureOfExperts;
use super::norm::RmsNorm;
use super::rope::Rotation;
use super::router::{KeptChoice, Routing};
use crate::error::Result;
use crate::torch::functions::AttentionSpan;
use crate::torch::ops::add;

/// One of the model's layers.
#[derive(Debug)]
pub struct Block {
    /// Before the attention.
    pub attention_norm: RmsNorm,
    /// Mixes tokens.
    pub attention: Attention,
    /// Before the experts (`post_attention_layernorm` in the checkpoint).
    pub experts_norm: RmsNorm,
    /// Mixes features.
    pub experts: MixtureOfExperts,
}

impl Block {
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
        Ok(self.forward_with_routing(hidden_td, rotation, spans, cache, &KeptChoice::default())?.0)
    }

    /// The same, and the router's choices: those in `kept`, or new ones that are put there.
    ///
    /// # Errors
    /// Those of [`Block::forward`].
    pub fn forward_with_routing(
        &self,
        hidden_td: &Tensor,
        rotation: &Rotation,
        spans: &[AttentionSpan],
        cache: Option<&mut LayerCache>,
        kept: &KeptChoice,
    ) -> Result<(Tensor, Routing)> {
        let attended_td = self.attention.forward(&self.attention_norm.forward(hidden_td)?, rotation, spans, cache)?;
        let hidden_td = add(hidden_td, &attended_td)?;
        let normed_td = self.experts_norm.forward(&hidden_td)?;
        let routing = self.experts.router.forward(&normed_td, kept)?;
        let mixed_td = self.experts.forward(&normed_td, &routing)?;
        Ok((add(&hidden_td, &mixed_td)?, routing))
    }
}
