//! What a run will do and what it needs, worked out before the first step.
//!
//! Letters: t tokens of a forward pass, d model width, h query heads, g key/value heads, k head width, a active experts, f expert
//! width, v vocabulary.

use std::path::{Path, PathBuf};

use ft_formats::checkpoint::{Checkpoint, Config, ExpertStorage, tensor_specs};
use ft_formats::dtype::Dtype;
use serde::Serialize;
use tch::Kind;

use super::directory::free_bytes;
use super::session::{self, Samples};
use crate::data::Statistics;
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::torch::device;
use crate::torch::functions::CHUNK_ELEMENTS;

/// libtorch, the tokenizer, and the matrix kernels that oneDNN makes for each shape it meets.
///
/// Source: what the nano model takes on a CPU beyond its other classes, measured after some hundred steps.
const LIBRARY_BYTES: u64 = 2_400_000_000;

/// Bytes of one class of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryClass {
    /// What it is.
    pub name: &'static str,
    /// Estimated bytes.
    pub bytes: u64,
}

/// The resolved run.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The base model.
    pub model: PathBuf,
    /// Where everything goes.
    pub run_directory: PathBuf,
    /// `lora` or `full`.
    pub training: &'static str,
    /// Weights that get an update, or all.
    pub trained_tensors: usize,
    /// Elements that the optimizer changes.
    pub trained_parameters: u64,
    /// Elements of the base model.
    pub total_parameters: u64,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Type of the activations.
    pub dtype: &'static str,
    /// The training data.
    pub dataset: Statistics,
    /// Samples trained on.
    pub train_samples: usize,
    /// Samples held out.
    pub validation_samples: usize,
    /// Sequences of an epoch.
    pub sequences: usize,
    /// Mean share of `max_tokens` that a sequence fills.
    pub packing_efficiency: f64,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Tokens of the whole run.
    pub tokens: u64,
    /// Steps of warm-up.
    pub warmup_steps: usize,
    /// Memory by class.
    pub memory: Vec<MemoryClass>,
    /// Their sum.
    pub memory_bytes: u64,
    /// Free memory, where it is known.
    pub memory_available_bytes: Option<u64>,
    /// Checkpoints and the result.
    pub disk_bytes: u64,
    /// Free space where they go.
    pub disk_available_bytes: Option<u64>,
}

impl PlanReport {
    /// # Errors
    /// [`Error::DoesNotFit`] when memory or disk will not suffice.
    pub fn check_fits(&self) -> Result<()> {
        let too_little = |resource, needed_bytes, available: Option<u64>, place| match available {
            Some(available_bytes) if needed_bytes > available_bytes => {
                Err(Error::DoesNotFit { resource, needed_bytes, available_bytes, place })
            }
            _ => Ok(()),
        };
        too_little("memory", self.memory_bytes, self.memory_available_bytes, String::new())?;
        let place = format!(" at {}", self.run_directory.display());
        too_little("disk space", self.disk_bytes, self.disk_available_bytes, place)
    }
}

/// The plan of `recipe` for this machine.
///
/// # Errors
/// A recipe that names layers that the model does not have.
pub fn report(recipe: &Recipe, checkpoint: &Checkpoint, samples: &Samples) -> Result<PlanReport> {
    let config = checkpoint.config();
    let kind = Kind::from(recipe.training.dtype);
    let schedule = session::schedule(recipe, &samples.batches);
    let total_parameters = parameters(config);
    let (training, trained_tensors, trained_parameters) = match recipe.lora() {
        None => ("full", tensor_specs(config, ExpertStorage::Float(Dtype::F32)).len(), total_parameters),
        Some(lora) => {
            let targets = session::targets(&lora.targets, &lora.layers, config)?;
            let parameters = targets.iter().map(|target| target.num_parameters(config, lora.rank)).sum();
            ("lora", targets.len(), parameters)
        }
    };
    let run_directory = Path::new(&recipe.output.directory).join(&recipe.output.name);
    let step_tokens: Vec<usize> = (0..samples.batches.steps_per_epoch())
        .flat_map(|step| samples.batches.step(step))
        .map(|batch| batch.iter().map(|&sample| samples.train.samples[sample].ids.len()).sum())
        .collect();
    let epoch_tokens: usize = step_tokens.iter().sum();
    let largest = step_tokens.iter().copied().max().unwrap_or(0);
    let memory = memory(config, recipe, kind, largest as u64, total_parameters, trained_parameters);
    let state_bytes = trained_parameters * 12;
    let result_bytes = if training == "full" { total_parameters * bytes_of(kind) } else { trained_parameters * 4 };
    let on_host = device::best() == tch::Device::Cpu;
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    let packing_efficiency = epoch_tokens as f64 / (samples.batches.num_sequences() * recipe.dataset.max_tokens).max(1) as f64;
    Ok(PlanReport {
        model: checkpoint.path().to_path_buf(),
        disk_available_bytes: free_bytes(&run_directory),
        run_directory,
        training,
        trained_tensors,
        trained_parameters,
        total_parameters,
        device: if on_host { "cpu".to_owned() } else { "cuda:0".to_owned() },
        dtype: if kind == Kind::Float { "f32" } else { "bf16" },
        dataset: samples.train.statistics.clone(),
        train_samples: samples.train.samples.len(),
        validation_samples: samples.validation.samples.len(),
        sequences: samples.batches.num_sequences(),
        packing_efficiency,
        steps_per_epoch: samples.batches.steps_per_epoch(),
        steps: schedule.total_steps,
        tokens: (epoch_tokens * schedule.total_steps / samples.batches.steps_per_epoch().max(1)) as u64,
        warmup_steps: schedule.warmup_steps,
        memory_bytes: memory.iter().map(|class| class.bytes).sum(),
        memory,
        memory_available_bytes: if on_host { device::available_memory_bytes() } else { None },
        // One more than is kept, while the newest is being written.
        disk_bytes: state_bytes * (recipe.checkpoint.keep as u64 + 1) + result_bytes,
    })
}

/// Elements of the model.
#[must_use]
pub fn parameters(config: &Config) -> u64 {
    tensor_specs(config, ExpertStorage::Float(Dtype::F32)).iter().map(|spec| spec.shape.iter().product::<usize>() as u64).sum()
}

fn bytes_of(kind: Kind) -> u64 {
    if kind == Kind::Float { 4 } else { 2 }
}

/// Memory by class. Activations are counted from the tensors that each part of a layer keeps for backward.
fn memory(config: &Config, recipe: &Recipe, kind: Kind, tokens: u64, total: u64, trained: u64) -> Vec<MemoryClass> {
    let width = config.hidden_size as u64;
    let heads = ((config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim) as u64;
    let (active, inner) = (config.num_experts_per_token as u64, config.intermediate_size as u64);
    let element = bytes_of(kind);
    // Per token of one layer: norms and residuals (6 d), heads before and after rotation (3), and for each active expert its input, both
    // projections and the activation; the f32 temporaries of the widest of them come on top.
    let kept = 6 * width + 3 * heads + active * (2 * width + 3 * inner);
    let temporaries = active * inner * 4 * 8;
    let layers = config.num_hidden_layers as u64;
    let activations = if recipe.training.checkpoint_activations {
        tokens * (layers * width * element + kept * element + temporaries)
    } else {
        tokens * (layers * kept * element + temporaries)
    };
    let is_full = recipe.lora().is_none();
    let logits = (config.vocab_size as u64 * tokens).min(CHUNK_ELEMENTS.unsigned_abs()) * element;
    vec![
        MemoryClass { name: "weights", bytes: total * if is_full { 4 } else { element } },
        MemoryClass { name: "adapters", bytes: if is_full { 0 } else { trained * 4 } },
        MemoryClass { name: "gradients", bytes: trained * 4 },
        MemoryClass { name: "optimizer", bytes: trained * 8 },
        MemoryClass { name: "activations", bytes: activations },
        MemoryClass { name: "logits", bytes: logits },
        MemoryClass { name: "libraries", bytes: LIBRARY_BYTES },
    ]
}
