//! Whether a model in one form is the model that it was made of in another: tensor by tensor, and by what both answer.

use std::path::Path;

use ft_formats::checkpoint::Checkpoint;
use ft_formats::comparison::{TensorComparison, compare};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::evaluation::{Evaluation, EvaluationData, EvaluationProgress, EvaluationRequest, Held, evaluate};
use crate::recipe::TrainingDtype;

/// Short conversations in harmony: reasoning, turns, a tool, several languages; together longer than a window.
const PROMPTS: &str = include_str!("verification/prompts.jsonl");

/// Sequences of tokens for a vocabulary that is too small for harmony, and their lengths.
const SEQUENCES: usize = 4;
const SEQUENCE_TOKENS: u32 = 200;

/// What is compared, with what.
#[derive(Debug, Clone)]
pub struct VerificationRequest<'a> {
    /// The model that is in question: a directory or a GGUF file.
    pub model: &'a Path,
    /// The model that it was made of.
    pub source: &'a Path,
    /// Conversations for both to answer, instead of some short ones that this program brings along.
    pub data: Option<&'a [String]>,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy)]
pub enum VerificationProgress<'a> {
    /// Elements of tensors compared, and all.
    Tensors {
        /// Elements done.
        done: u64,
        /// All of them.
        total: u64,
    },
    /// Both models answer.
    Answers(EvaluationProgress<'a>),
}

/// What was found.
#[derive(Debug)]
pub struct Verification {
    /// Every tensor.
    pub tensors: Vec<TensorComparison>,
    /// What the model answers, beside what its source does.
    pub evaluation: Evaluation,
    /// Where the conversations come from.
    pub prompts: Prompts,
    /// False when the ramp of rotary periods ends elsewhere in one of them, which GGUF has no place for.
    pub has_same_ramp: bool,
}

/// What the models were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompts {
    /// Conversations in harmony.
    Conversations,
    /// Arbitrary tokens: the vocabulary has none of those that harmony needs.
    Tokens,
}

impl Verification {
    /// True when every number of every tensor is the same.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.deviation.is_none())
    }

    /// The tensor that differs most, if any does.
    #[must_use]
    pub fn worst(&self) -> Option<&TensorComparison> {
        let differing = self.tensors.iter().filter(|tensor| tensor.deviation.is_some());
        differing.min_by(|left, right| left.sqnr_db().total_cmp(&right.sqnr_db()))
    }
}

/// Compares every tensor, then what both models answer in f32. Of each model embedding, head and one layer are in memory at a time.
///
/// # Errors
/// Those of [`compare`], of [`evaluate`], and [`ft_formats::Error::Gguf`] for tokens that are not those of o200k_harmony.
pub fn verify(request: &VerificationRequest<'_>, progress: &mut dyn FnMut(VerificationProgress<'_>)) -> Result<Verification> {
    let (model, source) = (Checkpoint::open(request.model)?, Checkpoint::open(request.source)?);
    model.check_vocabulary()?;
    let tensors = compare(&model, &source, &mut |done, total| progress(VerificationProgress::Tensors { done, total }))?;
    let truncates = |model: &Checkpoint| model.config().rope_scaling.as_ref().is_some_and(|scaling| scaling.truncate);
    let has_same_ramp = truncates(&model) == truncates(&source);
    let mut answers = |data| {
        let request = EvaluationRequest {
            model: request.model,
            adapter: None,
            reference: Some(request.source),
            data,
            max_tokens: None,
            limit: None,
            dtype: TrainingDtype::F32,
            held: Held::OneLayer,
        };
        evaluate(&request, &mut |answers| progress(VerificationProgress::Answers(answers)))
    };
    let data = request.data.map_or(EvaluationData::Text { name: "prompts.jsonl", text: PROMPTS }, EvaluationData::Files);
    let (evaluation, prompts) = match answers(data) {
        Err(Error::TokenOutsideVocabulary { vocabulary, .. }) if request.data.is_none() => {
            (answers(EvaluationData::Tokens(&arbitrary_tokens(vocabulary)))?, Prompts::Tokens)
        }
        result => (result?, Prompts::Conversations),
    };
    Ok(Verification { tensors, evaluation, prompts, has_same_ramp })
}

/// Tokens below `vocabulary`, the same every time.
fn arbitrary_tokens(vocabulary: usize) -> Vec<Vec<u32>> {
    let vocabulary = u32::try_from(vocabulary).unwrap_or(u32::MAX).max(1);
    let mut state = 1u32;
    let mut token = || {
        // Source: Numerical Recipes, a linear congruential generator of 32 bits; the upper bits are the better ones.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    (0..SEQUENCES).map(|_| (0..SEQUENCE_TOKENS).map(|_| token()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use ft_formats::checkpoint::{Config, ExpertStorage, write_random_model};
    use ft_formats::dtype::Dtype;

    use super::*;
    use crate::data::{Columns, DatasetOptions, Overlong, SampleOptions, conversations_of_text, dataset_of};

    fn model(path: &Path, vocabulary: usize, seed: u64) {
        let config = Config { vocab_size: vocabulary, ..Config::nano() };
        write_random_model(path, &config, ExpertStorage::Float(Dtype::Bf16), seed, &mut |_, _| {}).unwrap();
    }

    fn verified(model: &Path, source: &Path) -> Result<Verification> {
        verify(&VerificationRequest { model, source, data: None }, &mut |_| {})
    }

    #[test]
    fn a_model_is_itself_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two, other) = (folder.path().join("one"), folder.path().join("two"), folder.path().join("other"));
        model(&one, 517, 1);
        model(&two, 517, 2);
        model(&other, 518, 1);
        let same = verified(&one, &one).unwrap();
        assert!(same.is_exact() && same.worst().is_none());
        assert_eq!(same.prompts, Prompts::Tokens);
        let comparison = same.evaluation.comparison.unwrap();
        assert_eq!((comparison.kl_divergence.mean.mean, comparison.same_top_fraction), (0.0, 1.0));
        assert!(same.evaluation.counted_tokens > 128);
        let different = verified(&two, &one).unwrap();
        assert!(!different.is_exact());
        assert!(different.worst().unwrap().sqnr_db() < 3.0);
        assert!(verified(&other, &one).unwrap_err().to_string().contains("vocab_size"));
    }

    #[test]
    fn the_prompts_reach_beyond_the_window() {
        let conversations = conversations_of_text(Path::new("prompts.jsonl"), PROMPTS).unwrap();
        let options = DatasetOptions {
            cache: None,
            columns: Columns::default(),
            samples: SampleOptions::default(),
            max_tokens: 4096,
            overlong: Overlong::Error,
        };
        let dataset = dataset_of(&conversations, &options).unwrap();
        assert!(dataset.statistics.lengths.longest > 2 * 128, "{:?}", dataset.statistics.lengths);
        assert!(dataset.statistics.trained.commentary > 0);
    }
}
