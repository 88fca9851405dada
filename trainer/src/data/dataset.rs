//! A whole dataset, ready to be packed.

use rayon::prelude::*;

use super::conversation::{LoadedConversation, load_conversations};
use super::error::DataError;
use super::options::{DatasetOptions, Overlong};
use super::sample::{Draft, Sample};
use super::statistics::Statistics;
use super::turns;

/// Samples in the order of their files and lines, and what was counted on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The samples.
    pub samples: Vec<Sample>,
    /// The counts.
    pub statistics: Statistics,
}

impl Dataset {
    /// Samples that were made elsewhere.
    #[must_use]
    pub fn of_samples(samples: Vec<Sample>) -> Self {
        Self { statistics: Statistics::of_samples(&samples), samples }
    }

    /// Hash of all ids and weights, in order: equal fingerprints mean equal training data, wherever the files lie.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for sample in &self.samples {
            hasher.update(&(sample.ids.len() as u64).to_le_bytes());
            for (id, weight) in sample.ids.iter().zip(&sample.weights) {
                hasher.update(&id.to_le_bytes());
                hasher.update(&weight.to_bits().to_le_bytes());
            }
        }
        hasher.finalize()
    }

    /// Lengths of the samples in tokens, for [`super::pack`].
    pub fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(|sample| sample.ids.len()).collect()
    }
}

/// Reads `sources` and makes their samples.
///
/// # Errors
/// The first line, in order, that is broken, not understood, without anything to train on, or (with
/// [`Overlong::Error`]) too long; a dataset of which nothing is left.
pub fn load_dataset(sources: &[String], options: &DatasetOptions) -> Result<Dataset, DataError> {
    dataset_of(&load_conversations(sources)?, options)
}

/// Makes the samples of `conversations`.
///
/// # Errors
/// Those of [`load_dataset`] that are not about reading.
pub fn dataset_of(conversations: &[LoadedConversation], options: &DatasetOptions) -> Result<Dataset, DataError> {
    // Collected before the errors are looked at, so that the first in order is reported whatever thread is faster.
    let drafts: Vec<_> = conversations.par_iter().map(|conversation| turns::drafts(conversation, &options.samples)).collect();
    let mut samples = Vec::with_capacity(drafts.len());
    let mut counts = Statistics::default();
    for result in drafts {
        let made = result?;
        counts.untrained += made.untrained;
        for draft in made.drafts {
            samples.extend(fit(draft, options, &mut counts)?.map(Draft::finish));
        }
    }
    if samples.is_empty() {
        return Err(DataError::AllDropped { dropped: counts.dropped, max_tokens: options.max_tokens });
    }
    count_lines(conversations, &mut counts);
    let statistics = Statistics {
        conversations: counts.conversations,
        shapes: counts.shapes,
        truncated: counts.truncated,
        dropped: counts.dropped,
        untrained: counts.untrained,
        ignored_keys: counts.ignored_keys,
        ..Statistics::of_samples(&samples)
    };
    Ok(Dataset { samples, statistics })
}

/// Applies the rule for over-long samples; `None` when the sample is dropped.
fn fit(mut draft: Draft, options: &DatasetOptions, counts: &mut Statistics) -> Result<Option<Draft>, DataError> {
    let (tokens, max_tokens) = (draft.ids.len(), options.max_tokens);
    if tokens <= max_tokens {
        return Ok(Some(draft));
    }
    match options.overlong {
        Overlong::Error => return Err(DataError::Overlong { origin: draft.origin, tokens, max_tokens }),
        Overlong::Drop => {}
        Overlong::Truncate => {
            draft.truncate(max_tokens);
            if draft.is_trained() {
                counts.truncated += 1;
                return Ok(Some(draft));
            }
        }
    }
    counts.dropped += 1;
    Ok(None)
}

fn count_lines(conversations: &[LoadedConversation], counts: &mut Statistics) {
    counts.conversations = conversations.len();
    for conversation in conversations {
        *counts.shapes.entry(conversation.shape).or_default() += 1;
        for key in &conversation.ignored_keys {
            *counts.ignored_keys.entry(key.clone()).or_default() += 1;
        }
    }
}

/// Takes a `fraction` of the conversations out of `dataset` for validation: (training, validation).
///
/// All samples of a conversation go the same way, or a turn would be trained whose later turns validate. The choice
/// depends on `seed` and on each conversation's tokens, not on its place. At least one conversation is taken, and at least
/// one is left, when there are two or more; counts about lines stay with the training part.
pub fn split_validation(dataset: Dataset, fraction: f64, seed: u64) -> (Dataset, Dataset) {
    let mut groups: Vec<Vec<Sample>> = Vec::new();
    for sample in dataset.samples {
        let is_same = |other: &Sample| other.origin.file == sample.origin.file && other.origin.line == sample.origin.line;
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(is_same) => group.push(sample),
            _ => groups.push(vec![sample]),
        }
    }
    let count = groups.len();
    let wanted = ((count as f64 * fraction).round() as usize).clamp(1, count.saturating_sub(1).max(1));
    let taken = if fraction <= 0.0 || count < 2 { 0 } else { wanted };
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|&index| (draw(&groups[index], seed), index));
    let mut is_taken = vec![false; count];
    for &index in &order[..taken] {
        is_taken[index] = true;
    }
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for (group, is_taken) in groups.into_iter().zip(is_taken) {
        if is_taken { validation.extend(group) } else { training.extend(group) }
    }
    let counts = dataset.statistics;
    let training = Dataset {
        statistics: Statistics {
            samples: training.len(),
            conversations: counts.conversations - taken,
            truncated: counts.truncated,
            dropped: counts.dropped,
            untrained: counts.untrained,
            shapes: counts.shapes,
            ignored_keys: counts.ignored_keys,
            ..Statistics::of_samples(&training)
        },
        samples: training,
    };
    let statistics = Statistics { conversations: taken, ..Statistics::of_samples(&validation) };
    (training, Dataset { samples: validation, statistics })
}

fn draw(group: &[Sample], seed: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for id in group.iter().flat_map(|sample| &sample.ids) {
        hasher.update(&id.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;
    use crate::data::options::SampleOptions;

    fn options(max_tokens: usize, overlong: Overlong) -> DatasetOptions {
        DatasetOptions { samples: SampleOptions::default(), max_tokens, overlong }
    }

    fn load(lines: &[Value], options: &DatasetOptions) -> Result<Dataset, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        load_dataset(&[path.to_string_lossy().into_owned()], options)
    }

    fn lines() -> Vec<Value> {
        vec![
            json!({"prompt": "Q", "completion": "A", "id": 1}),
            json!({"text": "word ".repeat(300)}),
            json!({"prompt": "long ".repeat(300), "completion": "A", "id": 2}),
        ]
    }

    #[test]
    fn an_overlong_sample_is_refused_with_its_place() {
        let error = load(&lines(), &options(200, Overlong::Error)).unwrap_err();
        assert!(error.to_string().contains("d.jsonl:2: sample of 302 tokens is longer than `dataset.max_tokens` = 200"), "{error}");
    }

    #[test]
    fn overlong_samples_are_cut_while_something_is_trained() {
        let dataset = load(&lines(), &options(200, Overlong::Truncate)).unwrap();
        let statistics = &dataset.statistics;
        assert_eq!(dataset.lengths()[1], 200);
        assert_eq!((statistics.samples, statistics.truncated, statistics.dropped), (2, 1, 1));
        assert_eq!(statistics.trained.text, 199);
        assert_eq!(statistics.conversations, 3);
        assert_eq!(statistics.ignored_keys["id"], 2);
    }

    #[test]
    fn overlong_samples_are_dropped_and_counted() {
        let dataset = load(&lines(), &options(200, Overlong::Drop)).unwrap();
        assert_eq!((dataset.statistics.samples, dataset.statistics.dropped), (1, 2));
        assert!(matches!(load(&lines(), &options(10, Overlong::Drop)), Err(DataError::AllDropped { dropped: 3, .. })));
    }

    #[test]
    fn statistics_are_those_of_the_samples() {
        let dataset = load(&lines(), &options(4096, Overlong::Error)).unwrap();
        let weighted = |sample: &Sample| sample.weights.iter().filter(|weight| **weight != 0.0).count();
        assert_eq!(dataset.statistics.trained.total(), dataset.samples.iter().map(weighted).sum::<usize>());
        assert_eq!(dataset.statistics.tokens, dataset.lengths().iter().sum::<usize>());
        assert_eq!(dataset.statistics.lengths.buckets.iter().map(|(_, count)| count).sum::<usize>(), 3);
    }

    #[test]
    fn the_fingerprint_is_of_ids_and_weights() {
        let all = options(4096, Overlong::Error);
        let first = load(&lines(), &all).unwrap().fingerprint();
        assert_eq!(first, load(&lines(), &all).unwrap().fingerprint());
        let mut changed = load(&lines(), &all).unwrap();
        changed.samples[0].weights[5] = 0.5;
        assert_ne!(first, changed.fingerprint());
    }

    #[test]
    fn validation_takes_whole_conversations() {
        let turns = |index: usize| {
            json!({"messages": [
                {"role": "user", "content": format!("Q{index}")}, {"role": "assistant", "thinking": "T", "content": "A"},
                {"role": "user", "content": "R"}, {"role": "assistant", "thinking": "T", "content": "B"},
            ]})
        };
        let lines: Vec<Value> = (0..20).map(turns).collect();
        let dataset = load(&lines, &options(4096, Overlong::Error)).unwrap();
        let (training, validation) = split_validation(dataset.clone(), 0.25, 1);
        assert_eq!((training.samples.len(), validation.samples.len()), (30, 10));
        assert_eq!((training.statistics.conversations, validation.statistics.conversations), (15, 5));
        assert_ne!(validation.samples, split_validation(dataset.clone(), 0.25, 2).1.samples);
        assert_eq!(split_validation(dataset.clone(), 0.001, 1).1.statistics.conversations, 1);
        assert!(split_validation(dataset, 0.0, 1).1.samples.is_empty());
    }
}
