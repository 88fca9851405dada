//! Rows to samples, on all cores, in the order of the rows.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::conversation::{LoadedConversation, read_row};
use super::error::DataError;
use super::options::{DatasetOptions, Overlong};
use super::sample::Draft;
use super::source::{self, Row};
use super::statistics::Counts;
use super::tokens::{DIGEST_BYTES, Digest, Made, SourceFile};
use super::turns;

/// Rows that are taken apart together.
const CHUNK_ROWS: usize = 1024;
/// Bytes of files in a chunk, at most.
const CHUNK_BYTES: u64 = 32 << 20;

/// Takes the samples of a chunk, the index of their file, the bytes of all files read so far, and the counts of the chunk.
pub(super) type Sink<'a> = dyn FnMut(Vec<Made>, usize, u64, &Counts) -> Result<(), DataError> + 'a;

/// Reads `files` and hands the samples of each chunk of rows to `sink`.
///
/// # Errors
/// The first row, in order, that is broken, not understood, without anything to train on or too long, whatever thread met it.
pub(super) fn tokenize(files: &[SourceFile], options: &DatasetOptions, sink: &mut Sink<'_>) -> Result<Counts, DataError> {
    let mut counts = Counts::default();
    let mut before = 0;
    for (index, file) in (0u32..).zip(files) {
        let mut chunk = Chunk { rows: Vec::new(), start: 0, end: 0 };
        let mut process = |chunk: &mut Chunk, counts: &mut Counts| {
            let rows = std::mem::take(&mut chunk.rows);
            let mut of_chunk = Counts::default();
            let made = samples_of_rows(rows, index, options, &mut of_chunk)?;
            chunk.start = chunk.end;
            sink(made, index as usize, before + chunk.end, &of_chunk)?;
            *counts += of_chunk;
            Ok(())
        };
        source::for_each_row(&file.path, &options.columns, |row| {
            chunk.end = row.position;
            chunk.rows.push(row);
            if chunk.rows.len() >= CHUNK_ROWS || chunk.end - chunk.start >= CHUNK_BYTES {
                process(&mut chunk, &mut counts)?;
            }
            Ok(())
        })?;
        process(&mut chunk, &mut counts)?;
        before += chunk.end;
    }
    Ok(counts)
}

struct Chunk {
    rows: Vec<Row>,
    /// Bytes of the file before the first row, and up to the last.
    start: u64,
    end: u64,
}

fn samples_of_rows(rows: Vec<Row>, file: u32, options: &DatasetOptions, counts: &mut Counts) -> Result<Vec<Made>, DataError> {
    let read = |row: Row| {
        let (place, value) = row.parse()?;
        samples_of(&read_row(place, value, &options.columns)?, file, options)
    };
    // Collected before the errors are looked at, so that the first in order is reported whatever thread is faster.
    let results: Vec<Result<Converted, DataError>> = rows.into_par_iter().map(read).collect();
    collect(results, counts)
}

/// The samples of conversations that are in memory.
pub(super) fn samples_of_conversations(
    conversations: &[LoadedConversation],
    options: &DatasetOptions,
    counts: &mut Counts,
) -> Result<Vec<Made>, DataError> {
    let mut files: BTreeMap<&std::path::Path, u32> = BTreeMap::new();
    let mut numbers = Vec::with_capacity(conversations.len());
    for conversation in conversations {
        let next = u32::try_from(files.len()).unwrap_or(u32::MAX);
        numbers.push(*files.entry(&conversation.place.file).or_insert(next));
    }
    let convert = |(conversation, file): (&LoadedConversation, &u32)| samples_of(conversation, *file, options);
    let results = conversations.par_iter().zip(&numbers).map(convert).collect();
    collect(results, counts)
}

fn collect(results: Vec<Result<Converted, DataError>>, counts: &mut Counts) -> Result<Vec<Made>, DataError> {
    let mut all = Vec::with_capacity(results.len());
    for result in results {
        let Converted { made, counts: of_row } = result?;
        *counts += of_row;
        all.extend(made);
    }
    Ok(all)
}

/// What one conversation became.
struct Converted {
    made: Vec<Made>,
    counts: Counts,
}

fn samples_of(conversation: &LoadedConversation, file: u32, options: &DatasetOptions) -> Result<Converted, DataError> {
    let mut counts = Counts { conversations: 1, shapes: [(conversation.shape, 1)].into(), ..Counts::default() };
    for key in &conversation.ignored_keys {
        *counts.ignored_keys.entry(key.clone()).or_default() += 1;
    }
    let turns::Drafts { drafts, untrained } = turns::drafts(conversation, &options.samples)?;
    counts.untrained = untrained;
    let mut hasher = blake3::Hasher::new();
    drafts.iter().for_each(|draft| {
        hasher.update(bytemuck::cast_slice(&draft.ids));
    });
    let whole = digest(&hasher.finalize());
    let prompt = match drafts.first().map(Draft::first_prompt) {
        None | Some([]) => whole,
        Some(ids) => digest(&blake3::hash(bytemuck::cast_slice(ids))),
    };
    let mut made = Vec::with_capacity(drafts.len());
    for draft in drafts {
        if let Some(draft) = fit(draft, options, &mut counts)? {
            let spoken = draft.spoken();
            made.push(Made { sample: draft.finish(), spoken, file, conversation: whole, prompt });
        }
    }
    Ok(Converted { made, counts })
}

fn digest(hash: &blake3::Hash) -> Digest {
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(&hash.as_bytes()[..DIGEST_BYTES]);
    digest
}

/// Applies the rule for over-long samples; `None` when the sample is dropped.
fn fit(mut draft: Draft, options: &DatasetOptions, counts: &mut Counts) -> Result<Option<Draft>, DataError> {
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
