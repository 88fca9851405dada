//! Files to a dataset, by way of the token cache.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::Dataset;
use crate::data::cache::{Entry, Found};
use crate::data::conversation::LoadedConversation;
use crate::data::error::DataError;
use crate::data::options::DatasetOptions;
use crate::data::reading::Reading;
use crate::data::source;
use crate::data::statistics::Counts;
use crate::data::tokenizing::{samples_of_conversations, tokenize};
use crate::data::tokens::{Made, SourceFile, batch_of};

/// Reads `sources` and makes their samples, or takes them from the token cache; `watch` is told how far it is.
///
/// # Errors
/// The first row, in order, that is broken, not understood, without anything to train on, or (with
/// [`crate::data::Overlong::Error`]) too long; a source without a conversation; a dataset of which nothing is left; a full disk.
pub fn load_dataset(sources: &[String], options: &DatasetOptions, watch: &mut dyn FnMut(Reading)) -> Result<Dataset, DataError> {
    let mut files = Vec::new();
    for (source, origin) in sources.iter().enumerate() {
        files.extend(source::files(origin)?.into_iter().map(|path| SourceFile { path, source }));
    }
    let entry = match &options.cache {
        Some(folder) => Entry::of(folder, &files, options)?,
        None => None,
    };
    match entry.as_ref().map_or(Ok(None), Entry::open) {
        Ok(Some(found)) => {
            let dataset = Dataset::new(&found.batches, files, found.counts)?;
            watch(Reading::Cached { conversations: dataset.statistics.conversations, tokens: dataset.statistics.tokens });
            return Ok(dataset);
        }
        Ok(None) => {}
        Err(reason) => watch(Reading::Warning(format!("the cached tokens of this dataset are made again: {reason}"))),
    }
    let (found, files) = build(files, sources, options, entry.as_ref(), watch)?;
    let dataset = Dataset::new(&found.batches, files, found.counts)?;
    if dataset.is_empty() {
        return Err(DataError::AllDropped { dropped: dataset.statistics.dropped, max_tokens: options.max_tokens });
    }
    Ok(dataset)
}

/// Makes the samples of `files`, and an entry of the cache where it can be written.
fn build(
    files: Vec<SourceFile>,
    sources: &[String],
    options: &DatasetOptions,
    entry: Option<&Entry>,
    watch: &mut dyn FnMut(Reading),
) -> Result<(Found, Vec<SourceFile>), DataError> {
    let total_bytes = files.iter().map(|file| fs::metadata(&file.path).map_or(0, |metadata| metadata.len())).sum();
    let mut writer = None;
    if let Some(entry) = entry {
        match entry.writer() {
            Ok(opened) => writer = Some(opened),
            Err(error) if is_disk_full(&error) => return Err(DataError::Cache { path: entry.samples(), source: error }),
            Err(error) => watch(Reading::Warning(format!(
                "tokens are not kept for the next start: cannot write to {}: {error}",
                entry.folder().display()
            ))),
        }
    }
    let mut batches = Vec::new();
    let mut is_met = vec![false; sources.len()];
    let path = |entry: Option<&Entry>| entry.map(Entry::samples).unwrap_or_default();
    let counts = tokenize(&files, options, &mut |made: Vec<Made>, file, read_bytes, counts| {
        is_met[files[file].source] |= counts.conversations > 0;
        if !made.is_empty() {
            let batch = batch_of(&made).map_err(|source| DataError::Columns { source })?;
            match &mut writer {
                Some(writer) => writer.write(&batch).map_err(|source| DataError::Cache { path: path(entry), source })?,
                None => batches.push(batch),
            }
        }
        watch(Reading::Progress { read_bytes, total_bytes });
        Ok(())
    })?;
    if let Some(source) = is_met.iter().position(|is_met| !is_met) {
        return Err(DataError::EmptySource { origin: sources[source].clone() });
    }
    let found = match (writer, entry) {
        (Some(writer), Some(entry)) => {
            entry.publish(writer, &counts).map_err(|source| DataError::Cache { path: path(Some(entry)), source })?
        }
        _ => Found { batches, counts },
    };
    Ok((found, files))
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes the samples of `conversations`.
///
/// # Errors
/// Those of [`load_dataset`] that are not about reading.
pub fn dataset_of(conversations: &[LoadedConversation], options: &DatasetOptions) -> Result<Dataset, DataError> {
    let mut counts = Counts::default();
    let made = samples_of_conversations(conversations, options, &mut counts)?;
    if made.is_empty() {
        return Err(DataError::AllDropped { dropped: counts.dropped, max_tokens: options.max_tokens });
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for conversation in conversations {
        if !paths.contains(&conversation.place.file) {
            paths.push(conversation.place.file.clone());
        }
    }
    let files = paths.into_iter().map(|path| SourceFile { path, source: 0 }).collect();
    Dataset::in_memory(&made, files, counts)
}
