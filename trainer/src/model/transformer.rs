//! The whole model: embedding, layers, norm, head.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::attention::LayerCache;
use super::batch::PackedTokens;
use super::block::Block;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::router::{KeptChoice, Routing};
use super::routing_meter::RoutingMeter;
use crate::error::{Error, Result};
use crate::torch::functions::{InputKept, checkpoint};
use crate::torch::ops::{Named, cast, index_select, to_device};

/// gpt-oss, of any size.
#[derive(Debug)]
pub struct Transformer {
    /// [v, d]; where it is not trained it may be in host memory.
    pub embedding: Tensor,
    /// The layers; shared with the autograd graph when activations are checkpointed.
    pub blocks: Vec<Arc<Block>>,
    /// Before the head.
    pub norm: RmsNorm,
    /// [v, d], without bias.
    pub head: Linear,
    /// Rotary frequencies.
    pub rope: Rope,
    /// Type of the activations.
    pub kind: Kind,
    /// Where the weights are.
    pub device: Device,
    /// `max_position_embeddings`.
    pub num_positions: usize,
}

/// What the layers keep for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// All that they computed.
    Kept,
    /// Their inputs, from which they are computed again.
    Recomputed(InputKept),
}

/// Keys and values of every layer for one growing sequence.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<LayerCache>,
    length: usize,
}

impl Transformer {
    /// Hidden states before the head, after the last norm.
    ///
    /// # Shapes
    /// Gives [t, d] for a batch of t tokens.
    ///
    /// # Errors
    /// [`Error::TokenOutsideVocabulary`], [`Error::TooLong`], or [`Error::Torch`] out of memory.
    pub fn hidden(&self, tokens: &PackedTokens, activations: Activations) -> Result<Tensor> {
        self.hidden_metered(tokens, activations, None)
    }

    /// The same, with the routers' choices counted by `meter`; they are counted once where a layer is computed again.
    ///
    /// # Errors
    /// Those of [`Transformer::hidden`].
    #[expect(clippy::arc_with_non_send_sync, reason = "libtorch may drop a checkpointed layer on a thread of its own")]
    pub fn hidden_metered(&self, tokens: &PackedTokens, activations: Activations, meter: Option<&RoutingMeter>) -> Result<Tensor> {
        let rotation = Arc::new(self.rope.rotation(&tokens.positions_t)?);
        let mut hidden_td = self.embed(tokens)?;
        let spans: Arc<[_]> = tokens.spans.clone().into();
        for (index, block) in self.blocks.iter().enumerate() {
            let choice = KeptChoice::counted_by(meter.map(|meter| meter.layer(index)));
            hidden_td = match activations {
                Activations::Kept => block.forward_with_routing(&hidden_td, &rotation, &spans, None, &choice)?.0,
                Activations::Recomputed(kept) => {
                    let (block, rotation, spans) = (Arc::clone(block), Arc::clone(&rotation), Arc::clone(&spans));
                    let layer = move |hidden_td: &Tensor| Ok(block.forward_with_routing(hidden_td, &rotation, &spans, None, &choice)?.0);
                    checkpoint(&hidden_td, kept, layer)?
                }
            };
        }
        self.norm.forward(&hidden_td)
    }

    /// [`Transformer::hidden`] without a graph to keep, and the router's choices of every layer.
    ///
    /// # Errors
    /// Those of [`Transformer::hidden`].
    pub fn hidden_with_routing(&self, tokens: &PackedTokens) -> Result<(Tensor, Vec<Routing>)> {
        self.hidden_through(tokens, self.blocks.iter().map(|block| Ok(Arc::clone(block))))
    }

    /// The same through layers from elsewhere, of which no more than one has to be in memory.
    ///
    /// # Errors
    /// Those of [`Transformer::hidden`] and of `blocks`.
    pub fn hidden_through(
        &self,
        tokens: &PackedTokens,
        blocks: impl IntoIterator<Item = Result<Arc<Block>>>,
    ) -> Result<(Tensor, Vec<Routing>)> {
        let rotation = self.rope.rotation(&tokens.positions_t)?;
        let mut hidden_td = self.embed(tokens)?;
        let mut routings = Vec::new();
        for block in blocks {
            let (next_td, routing) = block?.forward_with_routing(&hidden_td, &rotation, &tokens.spans, None, &KeptChoice::default())?;
            hidden_td = next_td;
            routings.push(routing);
        }
        Ok((self.norm.forward(&hidden_td)?, routings))
    }

    /// Logits of every token, in f32.
    ///
    /// # Shapes
    /// Gives [t, v].
    ///
    /// # Errors
    /// Those of [`Transformer::hidden`].
    pub fn logits(&self, tokens: &PackedTokens) -> Result<Tensor> {
        cast(&self.head.forward(&self.hidden(tokens, Activations::Kept)?)?, Kind::Float)
    }

    /// Logits of the last of `ids`, which continue the sequence in `cache`, in f32.
    ///
    /// # Shapes
    /// Gives [1, v].
    ///
    /// # Errors
    /// Those of [`Transformer::hidden`].
    pub fn next_logits(&self, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let tokens = PackedTokens::continuing(cache.length, ids, self.device)?;
        let rotation = self.rope.rotation(&tokens.positions_t)?;
        let mut hidden_td = self.embed(&tokens)?;
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            hidden_td = block.forward(&hidden_td, &rotation, &tokens.spans, Some(layer))?;
        }
        cache.length += ids.len();
        let last_1d = hidden_td.f_narrow(0, hidden_td.size()[0] - 1, 1).named("next_logits", &[&hidden_td])?;
        cast(&self.head.forward(&self.norm.forward(&last_1d)?)?, Kind::Float)
    }

    /// An empty cache for one sequence.
    #[must_use]
    pub fn new_cache(&self) -> Cache {
        Cache { layers: self.blocks.iter().map(|_| LayerCache::default()).collect(), length: 0 }
    }

    fn embed(&self, tokens: &PackedTokens) -> Result<Tensor> {
        let vocabulary = self.embedding.size()[0];
        if tokens.largest_id >= vocabulary {
            return Err(Error::TokenOutsideVocabulary { token: tokens.largest_id, vocabulary: usize::try_from(vocabulary).unwrap_or(0) });
        }
        if tokens.num_positions > self.num_positions {
            return Err(Error::TooLong { length: tokens.num_positions, limit: self.num_positions });
        }
        let embedded_td = index_select(&self.embedding, 0, &to_device(&tokens.ids_t, self.embedding.device())?)?;
        cast(&to_device(&embedded_td, self.device)?, self.kind)
    }
}
