//! Files to a dataset, by way of the token cache.

use std::fs;
use std::io;
use std::path::PathBuf;

use arrow::array::RecordBatch;

use super::Dataset;
use crate::data::cache::{Entry, Found, Writer, unpublished};
use crate::data::conversation::LoadedConversation;
use crate::data::error::DataError;
use crate::data::options::DatasetOptions;
use crate::data::reading::Reading;
use crate::data::source;
use crate::data::statistics::Counts;
use crate::data::tokenizing::{samples_of_conversations, tokenize};
use crate::data::tokens::{Made, SourceFile, batch_of};

/// Bytes of samples that are held in memory where there is no cache; more go to a file, so that they may be more than memory.
const MEMORY_BYTES: usize = if cfg!(test) { 1 << 16 } else { 64 << 20 };

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
    let is_entry = writer.is_some();
    let (mut batches, mut memory_bytes) = (Vec::new(), 0);
    let mut is_met = vec![false; sources.len()];
    let path = entry.filter(|_| is_entry).map_or_else(std::env::temp_dir, Entry::samples);
    let cannot_write = |source| DataError::Cache { path: path.clone(), source };
    let counts = tokenize(&files, options, &mut |made: Vec<Made>, file, read_bytes, counts| {
        is_met[files[file].source] |= counts.conversations > 0;
        if !made.is_empty() {
            let batch = batch_of(&made).map_err(|source| DataError::Columns { source })?;
            match &mut writer {
                Some(writer) => writer.write(&batch).map_err(cannot_write)?,
                None => {
                    memory_bytes += batch.get_array_memory_size();
                    batches.push(batch);
                }
            }
            if memory_bytes > MEMORY_BYTES && writer.is_none() {
                writer = Some(spilled(std::mem::take(&mut batches)).map_err(cannot_write)?);
            }
        }
        watch(Reading::Progress { read_bytes, total_bytes });
        Ok(())
    })?;
    if let Some(source) = is_met.iter().position(|is_met| !is_met) {
        return Err(DataError::EmptySource { origin: sources[source].clone() });
    }
    let found = match (writer, entry.filter(|_| is_entry)) {
        (Some(writer), Some(entry)) if entry.is_still_of(&files, options)? => entry.publish(writer, &counts).map_err(cannot_write)?,
        (Some(writer), entry) => {
            if entry.is_some() {
                watch(Reading::Warning("tokens are not kept for the next start: the data changed while it was read".to_owned()));
            }
            unpublished(writer, counts).map_err(cannot_write)?
        }
        (None, _) => Found { batches, counts },
    };
    Ok((found, files))
}

/// `batches` in a file, which more can follow.
fn spilled(batches: Vec<RecordBatch>) -> io::Result<Writer> {
    let mut writer = Writer::nameless(&std::env::temp_dir())?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    Ok(writer)
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
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
