//! The whole model: embedding, layers, norm, head.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::attention::LayerCache;
use super::batch::PackedTokens;
use super::block::Block;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::router::Routing;
use crate::error::{Error, Result};
use crate::torch::functions::checkpoint;
use crate::torch::ops::{Named, cast, index_select};

/// gpt-oss, of any size.
#[derive(Debug)]
pub struct Transformer {
    /// [v, d].
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

/// Keys and values of every layer for one growing sequence.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<LayerCache>,
    length: usize,
}

impl Transformer {
    /// Hidden states before the head, after the last norm. With `checkpointing`, a layer keeps only its input for backward.
    ///
    /// # Shapes
    /// Gives [t, d] for a batch of t tokens.
    ///
    /// # Errors
    /// [`Error::TokenOutsideVocabulary`], [`Error::TooLong`], or [`Error::Torch`] out of memory.
    #[expect(clippy::arc_with_non_send_sync, reason = "libtorch may drop a checkpointed layer on a thread of its own")]
    pub fn hidden(&self, tokens: &PackedTokens, checkpointing: bool) -> Result<Tensor> {
        let rotation = Arc::new(self.rope.rotation(&tokens.positions_t)?);
        let mut hidden_td = self.embed(tokens)?;
        let spans: Arc<[_]> = tokens.spans.clone().into();
        for block in &self.blocks {
            hidden_td = if checkpointing {
                let (block, rotation, spans) = (Arc::clone(block), Arc::clone(&rotation), Arc::clone(&spans));
                checkpoint(&hidden_td, move |hidden_td| block.forward(hidden_td, &rotation, &spans, None))?
            } else {
                block.forward(&hidden_td, &rotation, &spans, None)?
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
            let (next_td, routing) = block?.forward_with_routing(&hidden_td, &rotation, &tokens.spans, None)?;
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
        cast(&self.head.forward(&self.hidden(tokens, false)?)?, Kind::Float)
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
        let bounds = || -> Result<(i64, i64), tch::TchError> {
            if tokens.ids_t.numel() == 0 {
                return Ok((0, 0));
            }
            Ok((tokens.ids_t.f_max()?.f_int64_value(&[])?, tokens.positions_t.f_max()?.f_int64_value(&[])?))
        };
        let (largest, last_position) = bounds().named("embed", &[&tokens.ids_t])?;
        if largest >= vocabulary {
            return Err(Error::TokenOutsideVocabulary { token: largest, vocabulary: usize::try_from(vocabulary).unwrap_or(0) });
        }
        let length = usize::try_from(last_position).unwrap_or(0) + 1;
        if length > self.num_positions {
            return Err(Error::TooLong { length, limit: self.num_positions });
        }
        cast(&index_select(&self.embedding, 0, &tokens.ids_t)?, self.kind)
    }
}
