//! What can be wrong with a config.

use crate::error::Hint;

/// What a config says that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// A key that has no default.
    #[error("`{key}` is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value of another type.
    #[error("`{key}` is {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// The type that it takes.
        expected: &'static str,
        /// Its value, as JSON.
        found: String,
    },
    /// A number that makes no model.
    #[error("`{key}` is {found}, expected {expected}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// What it may be.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// Two keys that cannot both be true.
    #[error("`{key}` is {found}, but {other} is {other_found}")]
    Contradiction {
        /// One key.
        key: &'static str,
        /// Its value.
        found: String,
        /// The other, in words.
        other: &'static str,
        /// Its value.
        other_found: String,
    },
    /// A model of another family.
    #[error("`model_type` is {found}, expected \"gpt_oss\"")]
    ModelType {
        /// Its value, as JSON.
        found: String,
    },
    /// A variant of the architecture that this program does not compute.
    #[error("`{key}` is {found}, and only {supported} is supported")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value, as JSON.
        found: String,
        /// What is supported.
        supported: &'static str,
    },
    /// A model that brings its own code.
    #[error("`{key}` asks for code that comes with the model, which is never run")]
    CustomCode {
        /// The key.
        key: &'static str,
    },
    /// Dimensions whose tensors no file can hold.
    #[error("the tensors of this config would take more than 2^63 bytes")]
    TooLarge,
    /// MXFP4 experts whose rows are no whole number of blocks.
    #[error("`{key}` is {found}, and experts in MXFP4 need a multiple of 32")]
    PartialBlock {
        /// The key.
        key: &'static str,
        /// Its value.
        found: usize,
    },
    /// A config that promises MXFP4 experts where plain ones are.
    #[error("`quantization_config` says mxfp4, but the experts are plain floats")]
    NotQuantized,
    /// A setting that does not exist, or that is not for setting.
    #[error("there is no key `{key}` to set")]
    UnknownKey {
        /// The key as given.
        key: String,
        /// The key most like it.
        nearest: Option<&'static str>,
    },
}

impl Hint for ConfigProblem {
    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { nearest: Some(nearest), .. } => Some(format!("did you mean `{nearest}`?")),
            Self::ModelType { .. } => Some("only models of the gpt-oss architecture can be read".to_owned()),
            Self::NotQuantized => Some("remove `quantization_config` from config.json if the model was dequantized".to_owned()),
            Self::PartialBlock { .. } => Some("choose a multiple of 32, or bf16 experts".to_owned()),
            _ => None,
        }
    }
}
