//! What a run will do and what it needs, worked out before the first step from the headers of the model and the lengths of the samples.
//!
//! Its parts: `machine` (what there is), `memory`, `disk` and `work` (what it takes), `passes` (the sizes of forward passes) and `remedy`
//! (what would make it fit).

mod disk;
mod machine;
mod memory;
mod passes;
mod remedy;
mod work;

use std::path::{Path, PathBuf};

use ft_formats::checkpoint::{Checkpoint, Config, ExpertStorage, tensor_specs};
use ft_formats::dtype::Dtype;
use serde::Serialize;

use super::directory::free_bytes;
use super::session::{self, Samples};
use crate::data::{Duplicates, Leaks, Statistics};
use crate::error::{Error, Result};
use crate::recipe::{Recipe, TrainingDtype};

pub use disk::Disk;
pub use machine::{Machine, Peak, peak};
pub use memory::{Memory, MemoryClass, MemoryPlace, parameters};
pub use passes::{Pass, size_of};
pub use remedy::Remedy;
pub use work::{TrainedPart, Work, WorkModel, active_parameters};

use memory::Footprint;
use remedy::{Change, Trial};

/// The share of a device's peak that a run is expected to reach, until it is measured.
pub const EXPECTED_UTILIZATION: f64 = 0.4;

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
    /// Elements of the matrices that a token meets in the base model.
    pub active_parameters: u64,
    /// What it is planned for.
    #[serde(flatten)]
    pub machine: Machine,
    /// Type of the activations.
    pub dtype: &'static str,
    /// The training data.
    pub dataset: Statistics,
    /// Samples trained on.
    pub train_samples: usize,
    /// Samples held out.
    pub validation_samples: usize,
    /// What was held out and is trained on all the same.
    pub leaks: Leaks,
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
    /// The largest forward pass that the data make.
    pub largest_pass: Pass,
    /// Memory at the largest pass.
    pub memory: Memory,
    /// Memory if sequences were as long as the recipe allows, every token trained.
    pub memory_of_full_batches: Memory,
    /// Checkpoints and the result.
    pub disk: Disk,
    /// Free space where they go, on this machine.
    pub disk_available_bytes: Option<u64>,
    /// Operations of a step, in the mean.
    pub work_of_step: Work,
    /// Operations of the whole run.
    pub work: Work,
    /// How long the whole run takes at [`EXPECTED_UTILIZATION`]; `None` where the peak of the device is not known.
    pub expected_seconds: Option<f64>,
    /// What is too little, if anything.
    pub shortage: Option<Shortage>,
    /// Settings that have no effect here, in sentences.
    pub warnings: Vec<String>,
    /// The costs that the operations come from.
    #[serde(skip)]
    pub work_model: WorkModel,
}

/// Something that there is too little of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shortage {
    /// `device memory`, `memory` or `disk space`.
    pub resource: &'static str,
    /// Bytes needed, by estimate.
    pub needed_bytes: u64,
    /// Bytes free.
    pub available_bytes: u64,
    /// What would help.
    pub remedy: Remedy,
}

impl PlanReport {
    /// # Errors
    /// [`Error::DoesNotFit`] when memory or disk will not suffice, with the settings that would help.
    pub fn check_fits(&self) -> Result<()> {
        let Some(Shortage { resource, needed_bytes, available_bytes, remedy }) = self.shortage.clone() else { return Ok(()) };
        let place = if resource == DISK { format!(" at {}", self.run_directory.display()) } else { String::new() };
        Err(Error::DoesNotFit { resource, needed_bytes, available_bytes, place, remedy })
    }

    /// The peak that this run is measured against: of bf16, on a device that is known.
    #[must_use]
    pub fn peak(&self) -> Option<Peak> {
        self.machine.peak.filter(|_| self.dtype == "bf16")
    }
}

const DISK: &str = "disk space";

/// The plan of `recipe` for `machine`. Of the checkpoint, only headers are read.
///
/// # Errors
/// A recipe that names layers that the model does not have.
pub fn report(recipe: &Recipe, checkpoint: &Checkpoint, samples: &Samples, machine: Machine) -> Result<PlanReport> {
    let config = checkpoint.config();
    let schedule = session::schedule(recipe, &samples.batches);
    let total_parameters = parameters(config);
    let sizes = passes::sizes(samples);
    let subject = Subject { checkpoint, sizes: &sizes, steps: schedule.total_steps, machine: &machine };
    let targets = recipe.lora().map(|lora| session::targets(&lora.targets, &lora.layers, config)).transpose()?;
    let (training, trained_tensors, part) = match (&targets, recipe.lora()) {
        (Some(targets), Some(lora)) => ("lora", targets.len(), TrainedPart::Updates { rank: lora.rank, targets }),
        _ => ("full", tensor_specs(config, ExpertStorage::Float(Dtype::F32)).len(), TrainedPart::Everything),
    };
    let work_model = WorkModel::new(config, part, recipe.training.checkpoint_activations);
    let run_directory = Path::new(&recipe.output.directory).join(&recipe.output.name);
    let steps_per_epoch = samples.batches.steps_per_epoch();
    let epoch_tokens: usize = sizes.iter().map(|(tokens, _)| tokens).sum();
    let work_of_step = work_model.of(sizes.iter().copied()) * (1.0 / wide(steps_per_epoch.max(1)));
    let work = work_of_step * wide(schedule.total_steps);
    let dtype = if recipe.training.dtype == TrainingDtype::F32 { "f32" } else { "bf16" };
    let leaves = leaves(recipe, config)?;
    let disk_available_bytes = if machine.is_here { free_bytes(&run_directory) } else { None };
    let disk = subject.disk(recipe)?;
    let mut plan = PlanReport {
        model: checkpoint.path().to_path_buf(),
        run_directory,
        training,
        trained_tensors,
        trained_parameters: leaves.iter().sum(),
        total_parameters,
        active_parameters: active_parameters(config),
        dtype,
        dataset: samples.train.statistics.clone(),
        train_samples: samples.train.len(),
        validation_samples: samples.validation.len(),
        leaks: samples.leaks.clone(),
        sequences: samples.batches.num_sequences(),
        packing_efficiency: wide(epoch_tokens) / wide((samples.batches.num_sequences() * recipe.dataset.max_tokens).max(1)),
        steps_per_epoch,
        steps: schedule.total_steps,
        tokens: (epoch_tokens * schedule.total_steps / steps_per_epoch.max(1)) as u64,
        warmup_steps: schedule.warmup_steps,
        largest_pass: passes::largest(&sizes, recipe),
        memory: subject.memory(recipe, passes::largest(&sizes, recipe))?,
        memory_of_full_batches: subject.memory(recipe, passes::full(recipe))?,
        shortage: subject.shortage(recipe, disk_available_bytes)?,
        disk,
        disk_available_bytes,
        work_of_step,
        work,
        expected_seconds: None,
        warnings: [warnings(recipe, &machine), leak_warnings(&samples.leaks)].concat(),
        work_model,
        machine,
    };
    plan.expected_seconds = plan.peak().map(|peak| work.total_flops() / (EXPECTED_UTILIZATION * peak.flops_per_second));
    Ok(plan)
}

/// What a plan is made of that no setting changes.
struct Subject<'a> {
    checkpoint: &'a Checkpoint,
    /// (tokens, trained tokens) of each sample.
    sizes: &'a [(usize, usize)],
    steps: usize,
    machine: &'a Machine,
}

impl Subject<'_> {
    fn memory(&self, recipe: &Recipe, pass: Pass) -> Result<Memory> {
        let config = self.checkpoint.config();
        let leaves = leaves(recipe, config)?;
        let storage = self.checkpoint.expert_storage();
        Ok(Footprint { config, storage, recipe, leaves: &leaves, pass, is_on_device: !self.machine.is_cpu() }.memory())
    }

    fn memory_of_data(&self, recipe: &Recipe) -> Result<Memory> {
        self.memory(recipe, passes::largest(self.sizes, recipe))
    }

    fn disk(&self, recipe: &Recipe) -> Result<Disk> {
        Ok(disk::disk(recipe, &leaves(recipe, self.checkpoint.config())?, self.steps, self.checkpoint.total_bytes()))
    }

    /// The first of device memory, host memory and disk that is too little.
    fn shortage(&self, recipe: &Recipe, disk_available_bytes: Option<u64>) -> Result<Option<Shortage>> {
        let Machine { device_available_bytes, host_available_bytes, .. } = *self.machine;
        let within = |needed: u64, available: Option<u64>| available.is_none_or(|available| needed <= available);
        let fits = |recipe: &Recipe| {
            let memory = self.memory_of_data(recipe)?;
            Ok(within(memory.device_bytes, device_available_bytes) && within(memory.host_bytes, host_available_bytes))
        };
        let fits_disk = |recipe: &Recipe| Ok(within(self.disk(recipe)?.needed_bytes, disk_available_bytes));
        let on_device = |recipe: &Recipe| Ok(self.memory_of_data(recipe)?.device_bytes);
        let on_host = |recipe: &Recipe| Ok(self.memory_of_data(recipe)?.host_bytes);
        let on_disk = |recipe: &Recipe| Ok(self.disk(recipe)?.needed_bytes);
        let longest_sample = self.sizes.iter().map(|(tokens, _)| *tokens).max().unwrap_or(0);
        let of_device = Trial { needed: &on_device, fits: &fits, longest_sample };
        let of_host = Trial { needed: &on_host, fits: &fits, longest_sample };
        let of_disk = Trial { needed: &on_disk, fits: &fits_disk, longest_sample };
        for (resource, trial, available, changes) in [
            ("device memory", of_device, device_available_bytes, &Change::OF_DEVICE[..]),
            ("memory", of_host, host_available_bytes, &Change::OF_HOST),
            (DISK, of_disk, disk_available_bytes, &Change::OF_DISK),
        ] {
            let needed_bytes = (trial.needed)(recipe)?;
            if let Some(available_bytes) = available.filter(|&available| needed_bytes > available) {
                let remedy = trial.remedy(recipe, changes)?;
                return Ok(Some(Shortage { resource, needed_bytes, available_bytes, remedy }));
            }
        }
        Ok(None)
    }
}

/// Elements of every tensor that `recipe` trains: both halves of each update, or every weight.
fn leaves(recipe: &Recipe, config: &Config) -> Result<Vec<u64>> {
    let Some(lora) = recipe.lora() else {
        let specs = tensor_specs(config, ExpertStorage::Float(Dtype::F32));
        return Ok(specs.iter().map(|spec| spec.shape.iter().product::<usize>() as u64).collect());
    };
    let targets = session::targets(&lora.targets, &lora.layers, config)?;
    let halves = |experts: usize, width: usize| experts as u64 * lora.rank as u64 * width as u64;
    Ok(targets
        .iter()
        .flat_map(|target| {
            let [experts, input, output] = target.dims(config);
            [halves(experts, input), halves(experts, output)]
        })
        .collect())
}

/// Settings that have no effect on `machine`.
fn warnings(recipe: &Recipe, machine: &Machine) -> Vec<String> {
    let training = &recipe.training;
    let mut warnings = Vec::new();
    if training.offload_activations && machine.is_cpu() {
        warnings.push("`training.offload_activations` has no effect on a CPU: the activations are in host memory".to_owned());
    } else if training.offload_activations && !training.checkpoint_activations {
        warnings.push("`training.offload_activations` has no effect without `training.checkpoint_activations = true`".to_owned());
    }
    warnings
}

/// A loss on what was trained says nothing about what was not.
#[must_use]
pub fn leak_warnings(leaks: &Leaks) -> Vec<String> {
    let words = |found: &Duplicates, what: &str| {
        let (trained, held) = found.examples.first()?;
        Some(format!("{} of the conversations held out {what}, such as {held} and {trained}", found.count))
    };
    [words(&leaks.conversations, "are trained on, too"), words(&leaks.prompts, "share their first prompt with one that is trained on")]
        .into_iter()
        .flatten()
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn wide(count: usize) -> f64 {
    count as f64
}
