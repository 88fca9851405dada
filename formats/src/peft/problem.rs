//! What can be wrong with an adapter.

use crate::dtype::Dtype;
use crate::error::Hint;

/// Why an adapter cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterProblem {
    /// A key of the config that has no default.
    #[error("`{key}` is missing")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// A value of another type.
    #[error("`{key}` is {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What it takes.
        expected: &'static str,
        /// Its value, as JSON.
        found: String,
    },
    /// A kind of adapter that changes the model in a way that is not computed here.
    #[error("`{key}` is {found}, and only {supported} is supported")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value, as JSON.
        found: String,
        /// What is supported.
        supported: &'static str,
    },
    /// A rank of 0.
    #[error("the rank of `{target}` is 0")]
    RankZero {
        /// The weight, or `r` for the rank of all.
        target: String,
    },
    /// A factor that is no number.
    #[error("the scaling of `{target}` is {found}, which is not a finite number")]
    Scaling {
        /// The weight.
        target: String,
        /// The factor.
        found: f64,
    },
    /// A pattern that cannot be matched.
    #[error("`{key}` has the pattern {pattern:?}, which is not understood")]
    Pattern {
        /// `rank_pattern` or `alpha_pattern`.
        key: &'static str,
        /// The pattern.
        pattern: String,
    },
    /// A pickled file, which can hold any code.
    #[error("it holds pickled weights (`adapter_model.bin`), which are never read")]
    Pickled,
    /// No tensor at all.
    #[error("it holds no tensors")]
    Empty,
    /// A tensor for a weight that the model does not have, or that is not adapted here.
    #[error("tensor `{tensor}` belongs to no weight that can be adapted")]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor in the layout of one matrix per expert.
    #[error("tensor `{tensor}` is in Unsloth's layout of one matrix per expert, which is not supported")]
    PerExpert {
        /// The tensor.
        tensor: String,
    },
    /// A without B, or B without A.
    #[error("`{tensor}` is missing beside its other half")]
    MissingHalf {
        /// The tensor that is not there.
        tensor: String,
    },
    /// A tensor of another type.
    #[error("tensor `{tensor}` is {found}, expected F32, BF16 or F16")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: Dtype,
    },
    /// A tensor of another shape.
    #[error("tensor `{tensor}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape that it should have, in words or numbers.
        expected: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A value that is no number.
    #[error("tensor `{tensor}` holds a value that is not a finite number, at {index}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Index of the value.
        index: usize,
    },
    /// A pair of tensors that may belong to either of an expert's matrices.
    #[error("layer {layer} has one pair of tensors for its experts, and `target_parameters` does not say for which matrix")]
    Ambiguous {
        /// The layer.
        layer: usize,
    },
    /// Expert pairs of which some are transposed and others are not.
    #[error("the expert tensors of layer {layer} are the other way round than those before")]
    MixedLayouts {
        /// The layer.
        layer: usize,
    },
    /// Two pairs for one weight.
    #[error("`{target}` stands twice")]
    DuplicateTarget {
        /// The weight.
        target: String,
    },
    /// A pair whose rank or scaling is not what the config says.
    #[error("`{target}` has rank {found_rank} and scaling {found_scaling}, but the config says {rank} and {scaling}")]
    ConfigMismatch {
        /// The weight.
        target: String,
        /// Rank by the config.
        rank: usize,
        /// Scaling by the config.
        scaling: f64,
        /// Rank of the pair.
        found_rank: usize,
        /// Scaling of the pair.
        found_scaling: f64,
    },
}

impl Hint for AdapterProblem {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Pickled => Some("save it with `save_pretrained(..., safe_serialization=True)`".to_owned()),
            Self::MissingHalf { .. } | Self::NotFinite { .. } => {
                Some("the adapter is incomplete or damaged: copy or download it again".to_owned())
            }
            Self::Ambiguous { .. } => Some("add `target_parameters` to adapter_config.json".to_owned()),
            _ => None,
        }
    }
}
