//! A model that is evaluated: in memory as a whole, or layer by layer.

use ft_formats::checkpoint::Checkpoint;
use tch::Tensor;

use crate::error::Result;
use crate::model::router::Routing;
use crate::model::weights::{Placement, load_frame, load_layer};
use crate::model::{PackedTokens, Transformer};

/// A model, or all of it but its layers and the checkpoint that has them.
#[derive(Debug)]
pub(super) struct EvaluatedModel<'a> {
    frame: Transformer,
    layers: Option<(&'a Checkpoint, Placement)>,
}

impl<'a> EvaluatedModel<'a> {
    /// A model that is in memory.
    pub(super) fn whole(model: Transformer) -> Self {
        Self { frame: model, layers: None }
    }

    /// A model whose layers are read when they are needed.
    pub(super) fn by_layer(checkpoint: &'a Checkpoint, placement: Placement) -> Result<Self> {
        Ok(Self { frame: load_frame(checkpoint, placement, &mut |_| {})?, layers: Some((checkpoint, placement)) })
    }

    /// Embedding, norm and head.
    pub(super) fn frame(&self) -> &Transformer {
        &self.frame
    }

    /// Hidden states and the routers' choices; `progress` is called with the layers done and all, where they take their time.
    pub(super) fn hidden_with_routing(
        &self,
        tokens: &PackedTokens,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Tensor, Vec<Routing>)> {
        let Some((checkpoint, placement)) = self.layers else { return self.frame.hidden_with_routing(tokens) };
        let count = checkpoint.config().num_hidden_layers;
        let layers = (0..count).map(|layer| {
            progress(layer, count);
            load_layer(checkpoint, placement, layer, &mut |_| {})
        });
        self.frame.hidden_through(tokens, layers)
    }
}
