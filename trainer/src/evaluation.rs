//! How well a model predicts conversations, and how far it is from a reference: what tells whether a requantized checkpoint may be
//! released.
//!
//! Data is read and rendered as for training; counted are the tokens that training would train on with every channel's weight at 1: what
//! the assistant writes. [`evaluate`] runs the reference first and keeps of it only hidden states, the routers' choices and the head, so
//! that the two models are never in memory at once, and the logits of no more than a chunk of tokens.

mod figures;
mod layers;
mod routing;
mod statistics;
mod tokens;
mod walk;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use ft_formats::checkpoint::Checkpoint;
use ft_formats::harmony::Channel;
use tch::Device;

pub use figures::{ChannelFigures, Comparison, Evaluation, Prediction, ProbabilityChange, Spread};
pub use routing::{LayerAgreement, RouterAgreement, RouterMismatch};
pub use statistics::{Mean, Percentiles, correlation};
pub use walk::PASS_TOKENS;

use crate::adapters::lora::Adapter;
use crate::data::{
    Columns, DataError, Dataset, DatasetOptions, Overlong, Sample, SampleOptions, SampleOrigin, TrainedSpan, TrainedTokens,
    conversations_of_text, dataset_of, load_conversations,
};
use crate::error::{Error, Result};
use crate::model::weights::{Placement, load};
use crate::recipe::TrainingDtype;
use crate::torch::device::best;
use layers::EvaluatedModel;
use tokens::TokenFigures;
use walk::{Corpus, Reference, run_model};

/// What is evaluated, on what.
#[derive(Debug, Clone)]
pub struct EvaluationRequest<'a> {
    /// The model directory.
    pub model: &'a Path,
    /// An adapter on top of the model; the reference has none.
    pub adapter: Option<&'a Path>,
    /// The directory of the model to compare with.
    pub reference: Option<&'a Path>,
    /// Conversations.
    pub data: EvaluationData<'a>,
    /// Samples are cut at this many tokens; `None` takes them whole.
    pub max_tokens: Option<usize>,
    /// Only this many conversations, the first; `None` takes all.
    pub limit: Option<usize>,
    /// Type of weights and activations.
    pub dtype: TrainingDtype,
    /// What of a model is in memory at a time.
    pub held: Held,
}

/// Where conversations come from.
#[derive(Debug, Clone, Copy)]
pub enum EvaluationData<'a> {
    /// Files, folders and patterns.
    Files(&'a [String]),
    /// A text, a conversation in each line.
    Text {
        /// The file that errors place it in.
        name: &'a str,
        /// The lines.
        text: &'a str,
    },
    /// Sequences of ids, every one counted but the first of each.
    Tokens(&'a [Vec<u32>]),
}

/// What of a model is in memory while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// All of it.
    Whole,
    /// Embedding, head and one layer: it is read anew for every [`PASS_TOKENS`] tokens. Without adapters.
    OneLayer,
}

/// How far an evaluation is.
#[derive(Debug, Clone, Copy)]
pub struct EvaluationProgress<'a> {
    /// What is being done.
    pub stage: EvaluationStage,
    /// With which model.
    pub model: &'a Path,
    /// Bytes or tokens done in this stage with this model.
    pub done: u64,
    /// Bytes or tokens of the stage.
    pub total: u64,
}

/// A stage of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvaluationStage {
    /// Reading the model, counted in bytes.
    Reading,
    /// Running it over the samples, counted in tokens.
    Running,
}

/// Evaluates a model, and compares it with a reference where one is given.
///
/// # Errors
/// Before a model is read: [`Error::Data`], [`Error::NothingCounted`], [`Error::TokenOutsideVocabulary`], [`Error::TooLong`] and
/// [`Error::VocabularyMismatch`]. Then those of the readers and of the forward pass, and [`Error::NotFiniteLogit`].
pub fn evaluate(request: &EvaluationRequest<'_>, progress: &mut dyn FnMut(EvaluationProgress<'_>)) -> Result<Evaluation> {
    let started = Instant::now();
    let checkpoint = Checkpoint::open(request.model)?;
    let reference_checkpoint = request.reference.map(Checkpoint::open).transpose()?;
    let dataset = read_samples(request)?;
    let mismatch = match &reference_checkpoint {
        Some(reference) => {
            check_vocabularies(reference, &checkpoint)?;
            RouterMismatch::between(reference.config(), checkpoint.config())
        }
        None => None,
    };
    let samples: Vec<Sample> = dataset.iter().collect();
    for checkpoint in std::iter::once(&checkpoint).chain(&reference_checkpoint) {
        checkpoint.check_vocabulary()?;
        check_samples(&samples, checkpoint)?;
    }

    let corpus = Corpus::new(&samples);
    let total = dataset.statistics.tokens as u64;
    let mut stages = Stages { progress, total };
    let reference = match (&reference_checkpoint, request.reference) {
        (Some(checkpoint), Some(path)) => {
            let model = stages.read(checkpoint, path, None, request)?;
            Some(Reference::run(path, model, &corpus, &mut |done| stages.ran(path, done))?)
        }
        _ => None,
    };
    let model = stages.read(&checkpoint, request.model, request.adapter, request)?;
    let device = model.frame().device;
    let (tokens, agreement) =
        run_model(request.model, &model, reference.as_ref(), mismatch.is_none(), &corpus, &mut |done| stages.ran(request.model, done))?;

    let comparison = request.reference.and_then(|path| {
        let router = match mismatch {
            Some(mismatch) => Err(mismatch),
            None => Ok(agreement.finish()),
        };
        Comparison::of(path.to_path_buf(), &tokens, router)
    });
    Ok(Evaluation {
        model: request.model.to_path_buf(),
        adapter: request.adapter.map(Path::to_path_buf),
        dtype: request.dtype,
        device: if device == Device::Cpu { "cpu" } else { "cuda:0" },
        counted_tokens: tokens.len(),
        prediction: Prediction::of_model(&tokens),
        channels: by_channel(&corpus, &tokens),
        comparison,
        dataset: dataset.statistics,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn read_samples(request: &EvaluationRequest<'_>) -> Result<Dataset> {
    let mut conversations = match request.data {
        EvaluationData::Files(sources) => load_conversations(sources, &Columns::default())?,
        EvaluationData::Text { name, text } => conversations_of_text(Path::new(name), text)?,
        EvaluationData::Tokens(sequences) => return Ok(Dataset::of_samples(sequences.iter().zip(1..).map(sample_of_tokens).collect())?),
    };
    conversations.truncate(request.limit.unwrap_or(usize::MAX));
    let options = DatasetOptions {
        cache: None,
        columns: Columns::default(),
        samples: SampleOptions::default(),
        max_tokens: request.max_tokens.unwrap_or(usize::MAX),
        overlong: Overlong::Truncate,
    };
    dataset_of(&conversations, &options).map_err(|error| match error {
        DataError::AllDropped { dropped, max_tokens } => Error::NothingCounted { samples: dropped, max_tokens },
        other => other.into(),
    })
}

fn sample_of_tokens((ids, line): (&Vec<u32>, usize)) -> Sample {
    let counted = 1..ids.len();
    let weights = std::iter::once(0.0).chain(counted.clone().map(|_| 1.0)).take(ids.len()).collect();
    Sample {
        ids: ids.clone(),
        weights,
        origin: SampleOrigin { file: "tokens".into(), line, turn: None },
        trained: TrainedTokens { text: counted.len(), ..TrainedTokens::default() },
        spans: vec![TrainedSpan { tokens: counted, channel: None }],
    }
}

/// What would fail after the model is read, found before.
fn check_samples(samples: &[Sample], checkpoint: &Checkpoint) -> Result<()> {
    let (vocabulary, limit) = (checkpoint.config().vocab_size, checkpoint.config().max_position_embeddings);
    let is_outside = |id: &&u32| usize::try_from(**id).map_or(true, |id| id >= vocabulary);
    if let Some(&token) = samples.iter().flat_map(|sample| &sample.ids).find(is_outside) {
        return Err(Error::TokenOutsideVocabulary { token: token.into(), vocabulary });
    }
    match samples.iter().map(|sample| sample.ids.len()).max() {
        Some(length) if length > limit => Err(Error::TooLong { length, limit }),
        _ => Ok(()),
    }
}

fn check_vocabularies(reference: &Checkpoint, model: &Checkpoint) -> Result<()> {
    let (expected, found) = (reference.config().vocab_size, model.config().vocab_size);
    if expected == found {
        return Ok(());
    }
    Err(Error::VocabularyMismatch { model: model.path().into(), found, reference: reference.path().into(), expected })
}

/// Tells how far reading and running are.
struct Stages<'a> {
    progress: &'a mut dyn FnMut(EvaluationProgress<'_>),
    /// Tokens of the samples.
    total: u64,
}

impl Stages<'_> {
    fn read<'a>(
        &mut self,
        checkpoint: &'a Checkpoint,
        path: &Path,
        adapter: Option<&Path>,
        request: &EvaluationRequest<'_>,
    ) -> Result<EvaluatedModel<'a>> {
        let placement = Placement::frozen(request.dtype.into(), best());
        if request.held == Held::OneLayer {
            return EvaluatedModel::by_layer(checkpoint, placement);
        }
        let (mut done, total) = (0, checkpoint.total_bytes());
        let mut model = load(checkpoint, placement, &mut |bytes| {
            done += bytes;
            (self.progress)(EvaluationProgress { stage: EvaluationStage::Reading, model: path, done, total });
        })?;
        if let Some(path) = adapter {
            Adapter::from_peft(&mut model, checkpoint.config(), path)?;
        }
        Ok(EvaluatedModel::whole(model))
    }

    fn ran(&mut self, path: &Path, tokens: usize) {
        let (done, total) = (tokens as u64, self.total);
        (self.progress)(EvaluationProgress { stage: EvaluationStage::Running, model: path, done, total });
    }
}

/// Figures of each channel; `tokens` are those of the corpus in its order.
fn by_channel(corpus: &Corpus<'_>, tokens: &[TokenFigures]) -> BTreeMap<&'static str, ChannelFigures> {
    let names = corpus.in_order().flat_map(|sample| &sample.spans).flat_map(|span| {
        let name = match span.channel {
            Some(Channel::Analysis) => "analysis",
            Some(Channel::Commentary) => "commentary",
            Some(Channel::Final) => "final",
            None => "text",
        };
        std::iter::repeat_n(name, span.tokens.len())
    });
    let mut channels: BTreeMap<&'static str, Vec<TokenFigures>> = BTreeMap::new();
    for (name, token) in names.zip(tokens) {
        channels.entry(name).or_default().push(*token);
    }
    channels.into_iter().map(|(name, tokens)| (name, ChannelFigures::of(&tokens))).collect()
}
