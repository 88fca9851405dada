//! Settings that are one of a few words.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How expert weights are held while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Experts {
    /// As they are in an MXFP4 checkpoint: packed, and unpacked exactly for each pass. Experts that are stored as numbers stay numbers.
    #[default]
    Mxfp4,
    /// Unpacked when the model is loaded, to the type of the weights.
    Bf16,
}

/// Whether a run is sent to Weights & Biases as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WandbMode {
    /// It is; a copy stays in the run directory.
    #[default]
    Online,
    /// It stays in the run directory, for `wandb sync`.
    Offline,
}

/// Which weights get a low-rank update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// The q, k, v and o projections.
    Attention,
    /// Both projections of every expert.
    Experts,
    /// The weight that chooses experts.
    Router,
    /// The output projection.
    LmHead,
}

/// Which layers get a low-rank update.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "LayersForm", into = "LayersForm")]
pub enum Layers {
    /// Every layer.
    #[default]
    All,
    /// Those of the listed indices, counted from 0.
    List(Vec<usize>),
}

/// The word for every layer.
pub(super) const ALL_LAYERS: &str = "all";

/// [`Layers`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum LayersForm {
    /// Only [`ALL_LAYERS`]: the schema lets no other word through.
    Word(String),
    List(Vec<usize>),
}

impl From<LayersForm> for Layers {
    fn from(form: LayersForm) -> Self {
        match form {
            LayersForm::Word(_) => Self::All,
            LayersForm::List(list) => Self::List(list),
        }
    }
}

impl From<Layers> for LayersForm {
    fn from(layers: Layers) -> Self {
        match layers {
            Layers::All => Self::Word(ALL_LAYERS.to_owned()),
            Layers::List(list) => Self::List(list),
        }
    }
}

impl JsonSchema for Layers {
    fn schema_name() -> Cow<'static, str> {
        "Layers".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "const": ALL_LAYERS },
                { "type": "array", "items": { "type": "integer", "minimum": 0 } },
            ]
        })
    }
}

/// The optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay; its two moments take 8 bytes per trained element.
    #[default]
    Adamw,
    /// The same with moments of 8 bits, each block of 256 under its own scale: 2.03 bytes per trained element. Weights and arithmetic stay
    /// f32.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
}

/// The shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine down to the minimum.
    #[default]
    Cosine,
    /// A straight line down to the minimum.
    Linear,
    /// No decay.
    Constant,
}

/// Type of the activations, and with `[lora]` of the frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainingDtype {
    /// 16 bits.
    #[default]
    Bf16,
    /// 32 bits.
    F32,
}
