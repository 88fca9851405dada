//! The tables of a recipe, their keys and defaults. The names are the contract.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::choices::{Experts, Layers, LoraTarget, OptimizerKind, ScheduleKind, TrainingDtype, WandbMode};
use crate::data::{Columns, Overlong, Turns};

/// `[model]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The directory of the base model.
    pub path: String,
    /// How expert weights are held while training.
    pub experts: Experts,
}

/// `[dataset]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dataset {
    /// Files, folders and patterns of conversations to train on.
    pub train: Vec<String>,
    /// For each source of `train`, how often its samples are taken in an epoch: 2.0 is twice, 0.5 takes half of them, drawn by the seed. Empty is
    /// once each.
    pub train_weights: Vec<f64>,
    /// The same, held out.
    pub validation: Vec<String>,
    /// Fraction of the conversations that is held out when `validation` is empty.
    pub validation_fraction: f64,
    /// Longest sample, and size of a pack, in tokens.
    pub max_tokens: usize,
    /// What becomes of longer samples.
    pub overlong: Overlong,
    /// Put several samples into one sequence of `max_tokens`.
    pub packing: bool,
    /// A new order for each epoch.
    pub shuffle: bool,
    /// Which turns of a conversation are trained.
    pub turns: Turns,
    /// Keep the tokens in the user's cache folder (or in FT_CACHE), so that the next start need not make them again.
    pub cache: bool,
    /// What the columns of the data are called, where they have other names.
    pub columns: Columns,
}

impl Default for Dataset {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            train_weights: Vec::new(),
            validation: Vec::new(),
            validation_fraction: 0.0,
            max_tokens: 4096,
            overlong: Overlong::default(),
            packing: true,
            shuffle: true,
            turns: Turns::default(),
            cache: true,
            columns: Columns::default(),
        }
    }
}

/// `[lora]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank of every update.
    pub rank: usize,
    /// An update counts `alpha / rank` times.
    pub alpha: f64,
    /// What gets an update.
    pub targets: Vec<LoraTarget>,
    /// The layers that get one.
    pub layers: Layers,
    /// An update counts `alpha / sqrt(rank)` times instead.
    pub rslora: bool,
    /// A PEFT adapter to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_adapter: Option<PathBuf>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            targets: vec![LoraTarget::Attention, LoraTarget::Experts],
            layers: Layers::All,
            rslora: false,
            initial_adapter: None,
        }
    }
}

/// `[full]`: every weight is trained. It has no keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Full {}

/// `[optimizer]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Which one.
    pub kind: OptimizerKind,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decay of the weights, times the learning rate.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; 0 turns clipping off.
    pub max_gradient_norm: f64,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            learning_rate: 2e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_gradient_norm: 1.0,
        }
    }
}

/// `[schedule]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleSection {
    /// Shape of the decay.
    pub kind: ScheduleKind,
    /// Fraction of the steps in which the learning rate rises from 0.
    pub warmup_fraction: f64,
    /// Where the decay ends, as a fraction of the learning rate.
    pub min_fraction: f64,
}

impl Default for ScheduleSection {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_fraction: 0.03, min_fraction: 0.1 }
    }
}

/// `[training]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Passes over the dataset, when `steps` does not say how long the run is.
    pub epochs: f64,
    /// Optimizer steps of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Sequences (packs, when packing) in one forward pass.
    pub batch_sequences: usize,
    /// Forward passes of one step.
    pub accumulation_steps: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Type of the activations.
    pub dtype: TrainingDtype,
    /// Compute each layer again in the backward pass rather than keep its activations.
    pub checkpoint_activations: bool,
    /// The same numbers in every run.
    pub deterministic: bool,
    /// Keep saved activations in host memory.
    pub offload_activations: bool,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            epochs: 1.0,
            steps: None,
            batch_sequences: 4,
            accumulation_steps: 4,
            seed: 1,
            dtype: TrainingDtype::Bf16,
            checkpoint_activations: true,
            deterministic: true,
            offload_activations: false,
        }
    }
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSection {
    /// Steps from one checkpoint to the next; 0 writes one at the end only.
    pub every_steps: usize,
    /// Checkpoints that are kept.
    pub keep: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every_steps: 100, keep: 2 }
    }
}

/// `[evaluation]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Steps from one evaluation to the next; 0 evaluates at the end only.
    pub every_steps: usize,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { every_steps: 100 }
    }
}

/// `[sampling]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Steps from one round of answers to the next; 0 answers at the end only.
    pub every_steps: usize,
    /// What is asked.
    pub prompts: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { every_steps: 100, prompts: Vec::new() }
    }
}

/// `[tracking]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tracking {
    /// Write TensorBoard's event files.
    pub tensorboard: bool,
    /// Report to Weights & Biases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wandb: Option<Wandb>,
}

/// `[tracking.wandb]`: what is not said is taken from the environment, under the names that the `wandb` package reads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Wandb {
    /// Project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// User or team.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    /// Whether the run is sent as it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<WandbMode>,
    /// Name of the run there; that of `output` when it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Group of runs that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Words to find it by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// A text about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

impl Wandb {
    pub(super) fn example() -> Self {
        let text = |text: &str| Some(text.to_owned());
        Self {
            project: text("coding"),
            entity: text("team"),
            mode: Some(WandbMode::Offline),
            name: text("rank 16"),
            group: text("ranks"),
            tags: vec!["lora".to_owned()],
            notes: text("the first with tools"),
        }
    }
}

/// `[quantization]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quantization {
    /// Train through MXFP4 rounding.
    pub aware: bool,
}

/// `[output]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// Folder of all runs.
    pub directory: String,
    /// Name of this run, and of its folder there.
    pub name: String,
}

impl Default for Output {
    fn default() -> Self {
        Self { directory: "runs".to_owned(), name: "run".to_owned() }
    }
}
