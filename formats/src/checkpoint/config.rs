//! The hyperparameters of a model, as `config.json` gives them.

mod assign;
mod gguf;
mod original;
mod problem;
mod read;
mod rope;
#[cfg(test)]
mod tests;
mod validate;
mod write;

pub(super) use gguf::of_gguf;
pub(super) use original::to_json as original_json;
pub use problem::ConfigProblem;
pub use rope::YarnScaling;
pub(super) use write::with_storage;

use std::path::Path;

use super::gguf::is_gguf;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::json;

/// Bytes of a config at most: the published one has 2 KB, and nothing in it grows but one word per layer.
const LIMIT_BYTES: u64 = 1 << 20;

/// Which keys a layer's attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerType {
    /// Only the last `sliding_window` ones, the query's own included.
    SlidingAttention,
    /// All that came before.
    FullAttention,
}

impl LayerType {
    /// The word in `config.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SlidingAttention => "sliding_attention",
            Self::FullAttention => "full_attention",
        }
    }

    /// The published pattern: sliding and full in turn, layer 0 sliding.
    fn alternating(num_layers: usize) -> Vec<Self> {
        (0..num_layers).map(|layer| if layer % 2 == 0 { Self::SlidingAttention } else { Self::FullAttention }).collect()
    }
}

/// The hyperparameters of a gpt-oss model. Fields have the names of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of an expert's hidden layer; `gate_up` has twice as many rows.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Experts of a layer.
    pub num_local_experts: usize,
    /// Experts that see a token; `num_experts_per_tok` and `experts_per_token` in `config.json`.
    pub num_experts_per_token: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Attention of each layer.
    pub layer_types: Vec<LayerType>,
    /// Keys that a sliding layer sees, the query's own included.
    pub sliding_window: usize,
    /// Added to the mean square in a norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary periods.
    pub rope_theta: f64,
    /// Stretching of the rotary periods; `None` for plain ones.
    pub rope_scaling: Option<YarnScaling>,
    /// Bound of the experts' activations.
    pub swiglu_limit: f64,
    /// Factor in the experts' sigmoid.
    pub swiglu_alpha: f64,
    /// Positions that the model is meant for.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Attention projections have biases; always true.
    pub attention_bias: bool,
    /// Ids that end a text.
    pub eos_token_id: Vec<u32>,
    /// Id that fills batches.
    pub pad_token_id: Option<u32>,
    /// Embedding and head are one; always false.
    pub tie_word_embeddings: bool,
    /// Weight of the router's balancing loss. Kept for others; this program does not use it.
    pub router_aux_loss_coef: f64,
    /// The experts are MXFP4: `quantization_config` in `config.json`.
    pub has_mxfp4_experts: bool,
    /// Type of the weights, where the config names one.
    pub dtype: Option<Dtype>,
}

impl Config {
    /// The model that `openai/gpt-oss-20b` is.
    #[must_use]
    pub fn gpt_oss_20b() -> Self {
        Self {
            vocab_size: 201_088,
            hidden_size: 2880,
            intermediate_size: 2880,
            num_hidden_layers: 24,
            num_local_experts: 32,
            num_experts_per_token: 4,
            num_attention_heads: 64,
            num_key_value_heads: 8,
            head_dim: 64,
            layer_types: LayerType::alternating(24),
            sliding_window: 128,
            rms_norm_eps: 1e-5,
            rope_theta: 150_000.0,
            rope_scaling: Some(YarnScaling::published()),
            swiglu_limit: 7.0,
            swiglu_alpha: 1.702,
            max_position_embeddings: 131_072,
            initializer_range: 0.02,
            attention_bias: true,
            eos_token_id: vec![200_002],
            pad_token_id: Some(199_999),
            tie_word_embeddings: false,
            router_aux_loss_coef: 0.9,
            has_mxfp4_experts: true,
            dtype: None,
        }
    }

    /// The model that `openai/gpt-oss-120b` is.
    #[must_use]
    pub fn gpt_oss_120b() -> Self {
        Self { num_hidden_layers: 36, num_local_experts: 128, layer_types: LayerType::alternating(36), ..Self::gpt_oss_20b() }
    }

    /// A model of the same architecture and vocabulary that trains in minutes on two CPU cores.
    #[must_use]
    pub fn nano() -> Self {
        Self {
            hidden_size: 64,
            intermediate_size: 96,
            num_hidden_layers: 4,
            num_local_experts: 8,
            num_experts_per_token: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            layer_types: LayerType::alternating(4),
            // Narrow layers need larger weights to pass on as much as they get.
            initializer_range: 0.05,
            ..Self::gpt_oss_20b()
        }
    }

    /// Reads and checks the config of the model in a directory, in either layout, or in a GGUF file.
    ///
    /// # Errors
    /// [`Error::NoConfig`]; [`Error::Config`] with the key that is missing, wrong, or contradicts another; [`Error::Io`],
    /// [`Error::Json`] or [`Error::Gguf`] when the file cannot be read.
    pub fn read(model: &Path) -> Result<Self> {
        if is_gguf(model)? {
            return of_gguf(&GgufFile::open(model)?);
        }
        let path = [model.join("config.json"), model.join("original/config.json")]
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| Error::NoConfig { path: model.to_owned() })?;
        Self::read_file(&path)
    }

    /// Reads and checks one file, in either spelling.
    pub(super) fn read_file(path: &Path) -> Result<Self> {
        let object = json::read_object(path, LIMIT_BYTES)?;
        let parsed = if original::is_original(&object) { original::parse(&object) } else { read::parse(&object) };
        let checked = parsed.and_then(|config| config.validate().map(|()| config));
        checked.map_err(|problem| Error::Config { path: path.to_owned(), problem })
    }

    /// Rows of the query projection.
    #[must_use]
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Rows of the key and of the value projection.
    #[must_use]
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}
