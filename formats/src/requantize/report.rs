//! What a conversion did.

use std::path::PathBuf;

use ft_quant::Accuracy;

use super::ExpertTarget;
use crate::checkpoint::{ExpertStorage, Projection};

/// What a conversion did to each tensor, and in all.
#[derive(Debug, Clone, PartialEq)]
pub struct RequantizationReport {
    /// The model that was converted.
    pub source: PathBuf,
    /// The model that came of it.
    pub target: PathBuf,
    /// How the experts were stored.
    pub from: ExpertStorage,
    /// How they are.
    pub to: ExpertTarget,
    /// What their scales started from.
    pub scales: ScaleSource,
    /// The tensors that were converted, in the order of a forward pass; all others are byte for byte those of the source.
    pub tensors: Vec<TensorReport>,
    /// Bytes of all tensors of the source.
    pub source_bytes: u64,
    /// Bytes of all tensors of the result.
    pub target_bytes: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

impl RequantizationReport {
    /// The sums over all tensors.
    #[must_use]
    pub fn total(&self) -> Accuracy {
        self.tensors.iter().fold(Accuracy::default(), |total, tensor| total + tensor.accuracy)
    }

    /// The tensor with the least signal to noise; nothing where all are exact.
    #[must_use]
    pub fn worst(&self) -> Option<&TensorReport> {
        let noisy = self.tensors.iter().filter_map(|tensor| Some((tensor.accuracy.sqnr_db()?, tensor)));
        noisy.min_by(|(left, _), (right, _)| left.total_cmp(right)).map(|(_, tensor)| tensor)
    }
}

/// What the scales of a packed tensor started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScaleSource {
    /// The values alone.
    Values,
    /// The scales of this model.
    Model(PathBuf),
}

/// What a conversion did to the experts' matrices of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorReport {
    /// The layer.
    pub layer: usize,
    /// Which of the matrices.
    pub projection: Projection,
    /// How far the result is from the source.
    pub accuracy: Accuracy,
}

impl TensorReport {
    /// The name in a checkpoint, without the endings of blocks and scales.
    #[must_use]
    pub fn name(&self) -> String {
        self.projection.tensor_name(self.layer)
    }
}
