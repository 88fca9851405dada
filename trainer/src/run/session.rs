//! Everything that a run holds in memory: samples, model, what is trained of it, and the optimizer.

use std::path::Path;

use ft_formats::checkpoint::{Checkpoint, Config, Projection};
use ft_formats::peft::{AdapterTarget, AttentionProjection};
use tch::{Kind, Tensor};

use super::batches::{Batching, Schedule as Batches, taken};
use super::checkpoint::Identity;
use super::observer::Observer;
use crate::adapters::lora::{Adapter, LoraSpec};
use crate::adapters::{Trainable, train_everything};
use crate::data::{Dataset, DatasetOptions, Leaks, Reading, SampleOptions, cache_folder, load_dataset, split_validation};
use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::model::weights::{Placement, load};
use crate::optimizer::{AdamW, AdamWOptions, Schedule};
use crate::recipe::{Layers, LoraTarget, Recipe};
use crate::torch::device;

/// The samples of a run, split, and the order in which they are trained on.
#[derive(Debug)]
pub struct Samples {
    /// Trained on.
    pub train: Dataset,
    /// Held out; may be empty.
    pub validation: Dataset,
    /// What was held out and is trained on all the same.
    pub leaks: Leaks,
    /// The steps.
    pub batches: Batches,
}

/// How a recipe's files become a dataset.
#[must_use]
pub fn dataset_options(recipe: &Recipe) -> DatasetOptions {
    let section = &recipe.dataset;
    DatasetOptions {
        cache: section.cache.then(cache_folder).flatten(),
        columns: section.columns.clone(),
        samples: SampleOptions { turns: section.turns, weights: recipe.loss },
        max_tokens: section.max_tokens,
        overlong: section.overlong,
    }
}

/// Reads and splits the recipe's datasets.
///
/// # Errors
/// [`Error::Data`].
pub fn read_samples(recipe: &Recipe, watch: &mut dyn FnMut(Reading)) -> Result<Samples> {
    let (section, seed) = (&recipe.dataset, recipe.training.seed);
    let options = dataset_options(recipe);
    let train = load_dataset(&section.train, &options, watch)?;
    let (train, validation) = if section.validation.is_empty() {
        split_validation(train, section.validation_fraction, seed)
    } else {
        (train, load_dataset(&section.validation, &options, watch)?)
    };
    let leaks = train.leaks_into(&validation);
    let batching = Batching {
        packing: section.packing,
        max_tokens: section.max_tokens,
        shuffle: section.shuffle,
        seed,
        batch_sequences: recipe.training.batch_sequences,
        accumulation_steps: recipe.training.accumulation_steps,
    };
    let taken = taken(&train, &section.train_weights, seed);
    if taken.is_empty() {
        return Err(Error::NothingTaken);
    }
    let batches = Batches::new(&train.lengths(), &taken, batching);
    Ok(Samples { train, validation, leaks, batches })
}

/// Steps of the whole run, and the learning rate of each.
#[must_use]
pub fn schedule(recipe: &Recipe, batches: &Batches) -> Schedule {
    let total_steps = recipe.training.steps.unwrap_or_else(|| {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a step count")]
        let steps = (batches.steps_per_epoch() as f64 * recipe.training.epochs).ceil() as usize;
        steps
    });
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a step count")]
    let warmup_steps = (total_steps as f64 * recipe.schedule.warmup_fraction).ceil() as usize;
    Schedule {
        kind: recipe.schedule.kind,
        peak: recipe.optimizer.learning_rate,
        warmup_steps,
        total_steps,
        min_fraction: recipe.schedule.min_fraction,
    }
}

/// What is trained.
#[derive(Debug)]
pub enum Trained {
    /// Low-rank updates.
    Adapter(Adapter),
    /// Every weight.
    Everything,
}

/// Model, trainables and optimizer.
#[derive(Debug)]
pub struct Session {
    /// The model, updates attached.
    pub model: Transformer,
    /// Which kind of training this is.
    pub trained: Trained,
    /// The leaves.
    pub trainables: Vec<Trainable>,
    /// Their moments.
    pub optimizer: AdamW,
}

impl Session {
    /// Loads the base model and attaches what is trained.
    ///
    /// # Errors
    /// Those of the readers, a recipe that does not fit the model, or out of memory.
    pub fn open(recipe: &Recipe, checkpoint: &Checkpoint, observer: &mut dyn Observer) -> Result<Self> {
        let device = device::best();
        let kind = Kind::from(recipe.training.dtype);
        let lora = recipe.lora();
        let placement = match lora {
            Some(_) => Placement { experts: recipe.model.experts, ..Placement::frozen(kind, device) },
            None => Placement::trained(kind, device),
        };
        let total = checkpoint.total_bytes();
        let mut model = load(checkpoint, placement, &mut |bytes| observer.loading(bytes, total))?;
        let (trained, trainables) = match lora {
            None => (Trained::Everything, train_everything(&mut model)?),
            Some(lora) => {
                let spec = LoraSpec {
                    rank: lora.rank,
                    alpha: lora.alpha,
                    rslora: lora.rslora,
                    targets: targets(&lora.targets, &lora.layers, checkpoint.config())?,
                };
                let adapter = match &lora.initial_adapter {
                    None => Adapter::fresh(&mut model, spec, recipe.training.seed)?,
                    Some(path) => continued(&mut model, checkpoint.config(), path, spec)?,
                };
                let trainables = adapter.trainables();
                (Trained::Adapter(adapter), trainables)
            }
        };
        let leaves: Vec<Tensor> = trainables.iter().map(|trainable| trainable.tensor.shallow_clone()).collect();
        let section = &recipe.optimizer;
        let options = AdamWOptions {
            kind: section.kind,
            beta1: section.beta1,
            beta2: section.beta2,
            epsilon: section.epsilon,
            weight_decay: section.weight_decay,
        };
        let optimizer = AdamW::new(options, &leaves)?;
        Ok(Self { model, trained, trainables, optimizer })
    }
}

/// An adapter to train further: it must have been made the way the recipe says.
fn continued(model: &mut Transformer, config: &Config, path: &Path, spec: LoraSpec) -> Result<Adapter> {
    let adapter = Adapter::from_peft(model, config, path)?;
    let found = adapter.spec();
    let difference = |what, expected: String, found: String| {
        (expected != found).then(|| Error::AdapterRecipe { path: path.to_path_buf(), what, expected, found })
    };
    let sorted = |targets: &[AdapterTarget]| {
        let mut names: Vec<String> = targets.iter().map(|target| format!("{target:?}")).collect();
        names.sort();
        names
    };
    let missing = |left: &[AdapterTarget], right: &[AdapterTarget]| {
        let right = sorted(right);
        sorted(left).into_iter().filter(|name| !right.contains(name)).collect::<Vec<_>>().join(", ")
    };
    let problem = difference("lora.rank", spec.rank.to_string(), found.rank.to_string())
        .or_else(|| difference("lora.alpha", spec.alpha.to_string(), found.alpha.to_string()))
        .or_else(|| difference("lora.rslora", spec.rslora.to_string(), found.rslora.to_string()))
        .or_else(|| {
            (sorted(&spec.targets) != sorted(&found.targets)).then(|| Error::AdapterRecipe {
                path: path.to_path_buf(),
                what: "lora.targets",
                expected: format!("also [{}]", missing(&spec.targets, &found.targets)),
                found: format!("also [{}]", missing(&found.targets, &spec.targets)),
            })
        });
    problem.map_or(Ok(adapter), Err)
}

/// The weights that the recipe's targets and layers name, in the order of a forward pass.
///
/// # Errors
/// [`Error::NoSuchLayer`].
pub fn targets(targets: &[LoraTarget], layers: &Layers, config: &Config) -> Result<Vec<AdapterTarget>> {
    let num_layers = config.num_hidden_layers;
    let layers: Vec<usize> = match layers {
        Layers::All => (0..num_layers).collect(),
        Layers::List(list) => {
            let mut list = list.clone();
            list.sort_unstable();
            list.dedup();
            list
        }
    };
    if let Some(&layer) = layers.iter().find(|&&layer| layer >= num_layers) {
        return Err(Error::NoSuchLayer { layer, num_layers });
    }
    let mut named = Vec::new();
    for layer in layers {
        if targets.contains(&LoraTarget::Attention) {
            use AttentionProjection::{K, O, Q, V};
            named.extend([Q, K, V, O].map(|projection| AdapterTarget::Attention { layer, projection }));
        }
        if targets.contains(&LoraTarget::Router) {
            named.push(AdapterTarget::Router { layer });
        }
        if targets.contains(&LoraTarget::Experts) {
            named.extend([Projection::GateUp, Projection::Down].map(|projection| AdapterTarget::Experts { layer, projection }));
        }
    }
    if targets.contains(&LoraTarget::LmHead) {
        named.push(AdapterTarget::LmHead);
    }
    Ok(named)
}

/// What decides the run's numbers, as fingerprints.
///
/// # Errors
/// [`Error::Json`] when the recipe cannot be serialised.
pub fn identity(recipe: &Recipe, checkpoint: &Checkpoint, samples: &Samples) -> Result<Identity> {
    let mut decisive = recipe.clone();
    // Where results go, and how often one looks at them, changes no number of the training.
    decisive.output = Default::default();
    decisive.checkpoint = Default::default();
    decisive.evaluation = Default::default();
    decisive.sampling = Default::default();
    decisive.dataset.cache = true;
    decisive.tracking = Default::default();
    let text = serde_json::to_string(&decisive).map_err(|source| Error::Json { path: recipe.model.path.clone().into(), source })?;
    let mut model = blake3::Hasher::new();
    model.update(checkpoint.config().to_json().to_string().as_bytes());
    model.update(&checkpoint.total_bytes().to_le_bytes());
    let sample = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")?;
    model.update(&sample.bytes);
    Ok(Identity {
        recipe: blake3::hash(text.as_bytes()).to_hex().to_string(),
        model: model.finalize().to_hex().to_string(),
        dataset: samples.train.fingerprint().to_hex().to_string(),
    })
}
