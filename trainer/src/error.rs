//! What can go wrong in the trainer.

use std::path::PathBuf;

use tch::TchError;

use crate::optimizer::MomentsKind;
use crate::run::plan::Remedy;
use crate::tracking::TrackingError;

/// The result of the trainer's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong: the thing, the place, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Trackers that cannot begin.
    #[error(transparent)]
    Tracking(#[from] TrackingError),
    /// An epoch without a sample.
    #[error("no sample is taken: the weights of `dataset.train_weights` round to none of any source")]
    NothingTaken,
    /// libtorch refused an operation, or ran out of memory in it.
    #[error("`{operation}` failed on shapes {shapes:?}")]
    Torch {
        /// The operation of the `ops` module.
        operation: &'static str,
        /// Shapes of its tensor arguments.
        shapes: Vec<Vec<i64>>,
        /// What libtorch said.
        #[source]
        source: TchError,
    },
    /// A tensor has other dimensions than the operation takes.
    #[error("`{operation}` takes `{tensor}` as {expected}, found shape {found:?}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// The argument.
        tensor: &'static str,
        /// The expected dims, by letter.
        expected: &'static str,
        /// The shape it has.
        found: Vec<i64>,
    },
    /// A span of attention that does not fit those around it.
    #[error("attention span {index}, of queries {queries:?} and keys {keys:?}, {problem}")]
    AttentionSpan {
        /// Its place among the spans.
        index: usize,
        /// Its rows of the query tensor.
        queries: std::ops::Range<i64>,
        /// Its rows of the key tensor.
        keys: std::ops::Range<i64>,
        /// What is wrong, as the end of a sentence.
        problem: &'static str,
    },
    /// Rows that no span of attention covers, or spans beyond the rows.
    #[error("attention spans end at row {found} of {what}, expected {expected}")]
    AttentionRows {
        /// `queries` or `keys`.
        what: &'static str,
        /// Rows of the tensor.
        expected: i64,
        /// End of the last span.
        found: i64,
    },
    /// A window that leaves a token nothing to see.
    #[error("attention takes a window of at least 1 key, the token itself, found {window}")]
    AttentionWindow {
        /// The window.
        window: i64,
    },
    /// A conversion from or to MXFP4, or a kernel of ours, that was refused.
    #[error("`{operation}` was refused")]
    Codec {
        /// The operation.
        operation: &'static str,
        /// Why.
        #[source]
        source: ft_quant::cuda::CudaError,
    },
    /// A loss or gradient that is no number.
    #[error("{what} is not a finite number at step {step}{samples}")]
    NotFinite {
        /// What was not finite, such as `the loss`.
        what: String,
        /// The training step, counted from 1.
        step: usize,
        /// Where the samples of the step come from, beginning with a comma, or empty.
        samples: String,
    },
    /// A model whose logits are no numbers.
    #[error("{model} gives a logit that is not a finite number for {place}")]
    NotFiniteLogit {
        /// The model directory.
        model: PathBuf,
        /// The sample.
        place: String,
    },
    /// A model that cannot be compared with its reference.
    #[error("{model} has a vocabulary of {found}, but its reference {reference} one of {expected}")]
    VocabularyMismatch {
        /// The model directory.
        model: PathBuf,
        /// Tokens of its vocabulary.
        found: usize,
        /// The reference's directory.
        reference: PathBuf,
        /// Tokens of the reference's vocabulary.
        expected: usize,
    },
    /// Samples that hold nothing to be evaluated on once they are cut.
    #[error("no sample has an assistant token among its first {max_tokens} tokens, though {samples} were read")]
    NothingCounted {
        /// Samples.
        samples: usize,
        /// Where they are cut.
        max_tokens: usize,
    },
    /// A weight of the checkpoint that is no number.
    #[error("`{tensor}` in {path} holds a value that is not a finite number")]
    NotFiniteWeight {
        /// Name in the checkpoint.
        tensor: String,
        /// The checkpoint.
        path: PathBuf,
    },
    /// A weight that the written model needs and the trained one does not have.
    #[error("the trained model has no `{tensor}`")]
    MissingWeight {
        /// Its name in a checkpoint.
        tensor: String,
    },
    /// A token id outside the vocabulary of the model.
    #[error("token {token} is outside the model's vocabulary of {vocabulary}")]
    TokenOutsideVocabulary {
        /// The id.
        token: i64,
        /// Number of rows of the embedding.
        vocabulary: usize,
    },
    /// A sequence that exceeds what the model's positions reach.
    #[error("a sequence of {length} tokens exceeds the model's {limit} positions")]
    TooLong {
        /// Tokens in the sequence.
        length: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// An adapter whose content contradicts the recipe that continues it.
    #[error("initial adapter {path}: {what} is {found}, but the recipe says {expected}")]
    AdapterRecipe {
        /// The adapter directory.
        path: PathBuf,
        /// The setting, as a recipe key.
        what: &'static str,
        /// The value of the recipe.
        expected: String,
        /// The value of the adapter.
        found: String,
    },
    /// A layer index of the recipe that the model does not have.
    #[error("`lora.layers` names layer {layer}, but the model has {num_layers}")]
    NoSuchLayer {
        /// The index.
        layer: usize,
        /// Layers of the model.
        num_layers: usize,
    },
    /// A run directory that cannot be used as the recipe asks.
    #[error("run directory {path} {problem}")]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What stands in the way.
        problem: RunDirectoryProblem,
    },
    /// A checkpoint that belongs to another recipe, model or dataset.
    #[error("checkpoint {path} was written with another {what}")]
    CheckpointMismatch {
        /// The checkpoint directory.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// A checkpoint of an optimizer that keeps its moments otherwise.
    #[error("checkpoint {path} holds {found} of `{parameter}`, but the recipe asks for {expected}")]
    CheckpointMoments {
        /// The checkpoint directory.
        path: PathBuf,
        /// The first parameter that differs.
        parameter: String,
        /// How the recipe's optimizer keeps them.
        expected: MomentsKind,
        /// How they were kept.
        found: MomentsKind,
    },
    /// A tensor of a checkpoint that is not what the run has under its name.
    #[error("`{tensor}` in {path} is {found}, but this run needs {expected}")]
    CheckpointTensor {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// Element type and shape of the run's tensor.
        expected: String,
        /// Element type and shape in the file.
        found: String,
    },
    /// A plan that needs more than the machine has.
    #[error("this run needs about {} of {resource}, but {} are free{place}", gigabytes(*needed_bytes), gigabytes(*available_bytes))]
    DoesNotFit {
        /// `device memory`, `memory` or `disk space`.
        resource: &'static str,
        /// Bytes needed, by estimate.
        needed_bytes: u64,
        /// Bytes free now.
        available_bytes: u64,
        /// Where, beginning with a space, or empty.
        place: String,
        /// The settings that would help.
        remedy: Remedy,
    },
    /// A stop that was asked for by a signal; the checkpoint is written.
    #[error("interrupted at step {step}; checkpoint written to {checkpoint}")]
    Interrupted {
        /// Steps done.
        step: usize,
        /// The checkpoint.
        checkpoint: PathBuf,
    },
    /// A file that could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried: `read`, `write`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file that is not what it should be.
    #[error("{path} is not the JSON that was expected")]
    Json {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        #[source]
        source: serde_json::Error,
    },
    /// Trouble with a checkpoint, adapter or tokenizer file.
    #[error(transparent)]
    Format(#[from] ft_formats::Error),
    /// Trouble with a dataset.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// Trouble with a recipe.
    #[error(transparent)]
    Recipe(#[from] crate::recipe::RecipeError),
}

/// Why a run directory cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunDirectoryProblem {
    /// It holds a run, and the run was not asked to go on.
    #[error("already holds a run")]
    HoldsRun,
    /// Another process trains in it.
    #[error("is in use by another process")]
    InUse,
}

impl Error {
    /// True when memory, on the host or on the device, or disk space ran out.
    #[must_use]
    pub fn is_out_of_resources(&self) -> bool {
        match self {
            Self::Torch { source: TchError::Torch(text), .. } => {
                let text = text.to_ascii_lowercase();
                text.contains("out of memory") || text.contains("not enough memory") || text.contains("can't allocate memory")
            }
            Self::Format(error) => error.is_out_of_resources(),
            Self::DoesNotFit { .. } | Self::Codec { source: ft_quant::cuda::CudaError::OutOfMemory { .. }, .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::OutOfMemory)
            }
            _ => false,
        }
    }
}

impl ft_formats::Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Format(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Tracking(error) => error.hint(),
            Self::Recipe(error) => error.hint(),
            Self::NotFinite { .. } => Some(
                "lower `optimizer.learning_rate`, lengthen `schedule.warmup_fraction`, or look at the named samples with `ft preview`; \
                 the last checkpoint is from before this step, and `--resume` goes on from it"
                    .to_owned(),
            ),
            Self::RunDirectory { problem: RunDirectoryProblem::HoldsRun, .. } => {
                Some("go on with it by `--resume`, or choose another `output.name`".to_owned())
            }
            Self::CheckpointMoments { .. } => {
                Some("go on with the `optimizer.kind` that the run began with, or choose another `output.name`".to_owned())
            }
            Self::CheckpointMismatch { .. } => {
                Some("resume with the recipe saved in the run directory, or choose another `output.name`".to_owned())
            }
            Self::DoesNotFit { resource, remedy, .. } => Some(fitting(resource, remedy)),
            Self::Torch { .. } if self.is_out_of_resources() => {
                Some("lower `dataset.max_tokens` or `training.batch_sequences`, or set `training.checkpoint_activations = true`".to_owned())
            }
            Self::NoSuchLayer { num_layers, .. } => Some(format!("layers count from 0 to {}", num_layers.saturating_sub(1))),
            Self::TooLong { .. } => Some("lower `dataset.max_tokens`; `ft eval --max-tokens` cuts what it reads".to_owned()),
            Self::TokenOutsideVocabulary { .. } => {
                Some("conversations are encoded with the 201,088 tokens of gpt-oss; was the model made for another vocabulary?".to_owned())
            }
            Self::NotFiniteLogit { .. } => {
                Some("the weights overflow in this type, or the checkpoint is damaged: try `--dtype f32`, or write it again".to_owned())
            }
            Self::VocabularyMismatch { .. } => Some("compare with the model that this one was made from".to_owned()),
            Self::NothingCounted { .. } => Some("raise `--max-tokens`".to_owned()),
            _ => None,
        }
    }
}

/// What would make a run fit.
fn fitting(resource: &str, remedy: &Remedy) -> String {
    let needed = gigabytes(remedy.needed_bytes);
    if remedy.suffices {
        return format!("it fits with {remedy}: it needs about {needed} then");
    }
    let place = match (resource, remedy.device_gigabytes()) {
        ("device memory", Some(gigabytes)) => format!("that takes a device of {gigabytes} GB"),
        ("device memory", None) => "that is more than one device has: train `[lora]` instead of `[full]`, or a smaller model".to_owned(),
        ("memory", _) => "that takes another machine, or a smaller model".to_owned(),
        _ => "free some space, or choose another `output.directory`".to_owned(),
    };
    let needs = match remedy.settings.is_empty() {
        true => format!("it needs {needed}"),
        false => format!("with {remedy} it needs about {needed}"),
    };
    format!("no setting makes it fit; {needs}: {place}")
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

/// The message of `error` and of all its sources on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
