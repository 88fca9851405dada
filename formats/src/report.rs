//! What the conversion of a model did: how far the weights of the result are from those that they stand for.

use std::path::PathBuf;

use ft_quant::Accuracy;
use ft_quant::mxfp4::Packing;

use crate::checkpoint::ExpertStorage;
use crate::peft::AdapterTarget;

/// What a conversion did to each tensor, and in all.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversionReport {
    /// The model that was converted.
    pub source: PathBuf,
    /// The model that came of it.
    pub target: PathBuf,
    /// The adapter that was merged into it, if one was.
    pub adapter: Option<AdapterReport>,
    /// How the experts were stored.
    pub from: ExpertStorage,
    /// How they are.
    pub to: ExpertStorage,
    /// How blocks were packed; none where no experts are in MXFP4.
    pub packing: Option<Packing>,
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

impl ConversionReport {
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

/// What an adapter changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterReport {
    /// Its directory.
    pub path: PathBuf,
    /// The model that it says it was made for.
    pub base_model: Option<String>,
    /// Tensors of the model with a value that the adapter changes; blocks and scales together are one.
    pub changed_tensors: usize,
    /// All other tensors of the model.
    pub kept_tensors: usize,
    /// Experts, in all layers together, with a value that the adapter changes in one of their matrices.
    pub changed_experts: usize,
    /// All other experts.
    pub kept_experts: usize,
}

/// What the scales of a packed tensor started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScaleSource {
    /// The values alone.
    Values,
    /// The scales of this model.
    Model(PathBuf),
}

/// What a conversion did to a weight: to the matrices of all experts of a layer, or to one that is not of the experts.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorReport {
    /// The weight.
    pub weight: AdapterTarget,
    /// How far the result is from the source.
    pub accuracy: Accuracy,
}

impl TensorReport {
    /// The name in a checkpoint, without the endings of blocks and scales.
    #[must_use]
    pub fn name(&self) -> String {
        self.weight.tensor_name()
    }
}
