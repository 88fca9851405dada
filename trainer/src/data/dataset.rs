//! A whole dataset, ready to be packed.

mod loading;
mod repeats;
mod splitting;

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::error::DataError;
use super::sample::{Sample, SampleOrigin, TrainedTokens};
use super::speakers::SpokenTokens;
use super::statistics::{Counts, Statistics};
use super::tokens::{Made, SourceFile, Tokens, batch_of};
pub use loading::{dataset_of, load_dataset};
pub use repeats::{Duplicates, Leaks};
pub use splitting::split_validation;

/// Samples in the order of their files and rows, and what was counted on the way.
///
/// They lie in columns, mapped from the token cache where there is one, and are put together when they are asked for.
#[derive(Debug, Clone)]
pub struct Dataset {
    tokens: Arc<Tokens>,
    /// Indices of the samples that are in this dataset, in order; `None` for all.
    chosen: Option<Arc<[usize]>>,
    /// The counts.
    pub statistics: Statistics,
}

impl Dataset {
    /// Samples that were made elsewhere.
    ///
    /// # Errors
    /// [`DataError::Columns`] when they are too many for columns of Arrow.
    pub fn of_samples(samples: Vec<Sample>) -> Result<Self, DataError> {
        let mut files: Vec<SourceFile> = Vec::new();
        let mut made = Vec::with_capacity(samples.len());
        for sample in samples {
            let path = &sample.origin.file;
            let known = files.iter().position(|file| file.path == *path);
            let file = known.unwrap_or_else(|| {
                files.push(SourceFile { path: path.clone(), source: 0 });
                files.len() - 1
            });
            let spoken = SpokenTokens { text: sample.ids.len(), ..SpokenTokens::default() };
            made.push(Made { sample, spoken, file: file as u32, conversation: [0; 16], prompt: [0; 16] });
        }
        Dataset::in_memory(&made, files, Counts::default())
    }

    fn in_memory(made: &[Made], files: Vec<SourceFile>, counts: Counts) -> Result<Dataset, DataError> {
        let batch = batch_of(made).map_err(|source| DataError::Columns { source })?;
        Dataset::new(&[batch], files, counts)
    }

    fn new(batches: &[RecordBatch], files: Vec<SourceFile>, counts: Counts) -> Result<Dataset, DataError> {
        let tokens = Tokens::new(batches, files).ok_or(DataError::ForeignColumns)?;
        Ok(Dataset::choose(Arc::new(tokens), None, counts))
    }

    fn choose(tokens: Arc<Tokens>, chosen: Option<Arc<[usize]>>, counts: Counts) -> Dataset {
        let mut dataset = Dataset { tokens, chosen, statistics: Statistics::default() };
        dataset.statistics = Statistics::of(&dataset, counts);
        dataset
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chosen.as_ref().map_or_else(|| self.tokens.len(), |chosen| chosen.len())
    }

    /// Whether there is no sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn at(&self, index: usize) -> usize {
        self.chosen.as_ref().map_or(index, |chosen| chosen[index])
    }

    /// Sample `index`, put together.
    ///
    /// # Panics
    /// When there is none of that index.
    #[must_use]
    pub fn sample(&self, index: usize) -> Sample {
        self.tokens.sample(self.at(index))
    }

    /// All samples, put together one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Sample> {
        (0..self.len()).map(|index| self.sample(index))
    }

    /// Number of tokens of sample `index`.
    #[must_use]
    pub fn length(&self, index: usize) -> usize {
        self.tokens.ids(self.at(index)).len()
    }

    /// Tokens of sample `index` with a weight, by channel.
    #[must_use]
    pub fn trained(&self, index: usize) -> TrainedTokens {
        self.tokens.trained(self.at(index))
    }

    /// Index of the source, among those that were loaded together, that sample `index` comes from.
    #[must_use]
    pub fn source(&self, index: usize) -> usize {
        self.tokens.source(self.at(index))
    }

    pub(super) fn spoken(&self, index: usize) -> SpokenTokens {
        self.tokens.spoken(self.at(index))
    }

    /// Where sample `index` comes from.
    #[must_use]
    pub fn origin(&self, index: usize) -> SampleOrigin {
        self.tokens.origin(self.at(index))
    }

    /// Lengths of the samples in tokens, for [`super::pack`].
    pub fn lengths(&self) -> Vec<usize> {
        (0..self.len()).map(|index| self.length(index)).collect()
    }

    /// Hash of all ids and weights, in order: equal fingerprints mean equal training data, wherever the files lie.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = Vec::new();
        for sample in self.iter() {
            bytes.clear();
            bytes.extend_from_slice(&(sample.ids.len() as u64).to_le_bytes());
            for (id, weight) in sample.ids.iter().zip(&sample.weights) {
                bytes.extend_from_slice(&id.to_le_bytes());
                bytes.extend_from_slice(&weight.to_bits().to_le_bytes());
            }
            hasher.update(&bytes);
        }
        hasher.finalize()
    }

    /// Indices of the first sample of each conversation.
    fn conversations(&self) -> impl Iterator<Item = usize> {
        let row = |index: usize| self.tokens.row(self.at(index));
        (0..self.len()).filter(move |&index| index == 0 || row(index) != row(index - 1))
    }
}

#[cfg(test)]
mod tests;
