//! The recipe: what a person writes to say what is trained, on what, and how.
//!
//! A recipe is strict. It is read into a tree that knows where each key and value stands, checked there against the keys,
//! types, choices and ranges of the contract, all problems at once, and deserialised only then. Nothing is ignored: a setting
//! that this version cannot honour is an error. Numbers that depend on the model or the data (layers, steps, memory) are
//! the business of the run.

mod choices;
mod error;
mod json_schema;
mod nearest;
mod paths;
mod ranges;
mod reference;
mod schema;
mod sections;
mod tree;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{ChannelWeights, Columns};

pub use choices::{Experts, Layers, LoraTarget, OptimizerKind, ScheduleKind, TrainingDtype, WandbMode};
pub use error::{Place, Problem, ProblemKind, Problems, RecipeError};
pub use json_schema::SCHEMA_ID;
pub use sections::{
    CheckpointSection, Dataset, Evaluation, Full, Lora, Model, Optimizer, Output, Quantization, Sampling, ScheduleSection, Tracking,
    Training, Wandb,
};

/// A recipe with every default filled in.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The base model.
    pub model: Model,
    /// The conversations.
    pub dataset: Dataset,
    /// Weight of each harmony channel in the loss.
    pub loss: ChannelWeights,
    /// Low-rank training; present unless `full` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Training of every weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<Full>,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The learning rate over the run.
    pub schedule: ScheduleSection,
    /// Length, batches and precision.
    pub training: Training,
    /// When to save.
    pub checkpoint: CheckpointSection,
    /// When to evaluate.
    pub evaluation: Evaluation,
    /// When to answer prompts, and which.
    pub sampling: Sampling,
    /// Where metrics go beside `metrics.jsonl`.
    pub tracking: Tracking,
    /// Training through quantized weights.
    pub quantization: Quantization,
    /// Where everything goes.
    pub output: Output,
}

impl Recipe {
    /// Reads a recipe, with `overrides` such as `training.steps=10` in the place of its own values.
    ///
    /// A relative path in it is taken from the current directory, as a shell would, or, where nothing is there, from the recipe's
    /// folder. Without `output.name` the run is named after the file.
    ///
    /// # Errors
    /// [`RecipeError::Read`], or [`RecipeError::Invalid`] with everything that is wrong.
    pub fn from_file(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read { path: path.to_path_buf(), source })?;
        Self::from_text(&text, path, overrides)
    }

    /// The recipe in `text`, which messages say is in `path`. See [`Recipe::from_file`].
    ///
    /// # Errors
    /// [`RecipeError::Invalid`] with everything that is wrong.
    pub fn from_text(text: &str, path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let (tree, mut problems) = match tree::read(text, overrides) {
            Ok(read) => read,
            Err(problem) => return Err(RecipeError::Invalid(Problems::new(vec![*problem], text, path))),
        };
        let checked = schema::check(&tree);
        problems.extend(checked.problems);
        let mut recipe = match Self::deserialize(toml::Value::Table(checked.table)) {
            Ok(recipe) => recipe,
            Err(error) => {
                problems.push(schema::unforeseen(&error));
                Self::default()
            }
        };
        problems.extend(ranges::check(&recipe, &tree));
        if !problems.is_empty() {
            return Err(RecipeError::Invalid(Problems::new(problems, text, path)));
        }
        if recipe.full.is_none() {
            recipe.lora.get_or_insert_default();
        }
        if !tree.contains("output.name")
            && let Some(stem) = path.file_stem()
        {
            recipe.output.name = stem.to_string_lossy().into_owned();
        }
        paths::resolve(&mut recipe, path.parent().unwrap_or(Path::new("")));
        Ok(recipe)
    }

    /// The low-rank settings, unless every weight is trained.
    #[must_use]
    pub fn lora(&self) -> Option<&Lora> {
        if self.full.is_some() { None } else { self.lora.as_ref() }
    }

    /// The recipe as TOML with every value written out; reading it gives the same recipe.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::try_from(self).unwrap_or_default();
        // One of the two says how long the run is.
        if self.training.steps.is_some()
            && let Some(toml::Value::Table(training)) = table.get_mut("training")
        {
            training.remove("epochs");
        }
        table.to_string()
    }

    /// A recipe in which every key has a value: what keys there are, of what type, and an example of each.
    fn complete() -> Self {
        Self {
            model: Model { path: "models/nano".to_owned(), ..Model::default() },
            dataset: Dataset {
                train: vec!["data/train.jsonl".to_owned()],
                train_weights: vec![1.0],
                validation: vec!["data/validation.jsonl".to_owned()],
                validation_fraction: 0.02,
                columns: Columns::example(),
                ..Dataset::default()
            },
            lora: Some(Lora { initial_adapter: Some("runs/before/adapter".into()), ..Lora::default() }),
            full: Some(Full {}),
            training: Training { steps: Some(500), ..Training::default() },
            sampling: Sampling { prompts: vec!["How do I reverse a string in Rust?".to_owned()], ..Sampling::default() },
            tracking: Tracking { wandb: Some(Wandb::example()), ..Tracking::default() },
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests;
