//! What decides the samples of a dataset, as a name.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::super::columns::Columns;
use super::super::error::DataError;
use super::super::mapped::map;
use super::super::options::{ChannelWeights, DatasetOptions, Overlong, Turns};
use super::super::tokens::SourceFile;

/// Of the columns and of what they mean.
const VERSION: u32 = 1;
/// Datasets up to this size are told apart by their content, so that a copy is known and a touched file is not made again;
/// hashing them takes less than a second. Larger ones are told apart by the state of their files.
const CONTENT_BYTES: u64 = 1 << 30;
/// A file that was changed just now may be changed again within one tick of its clock (2 s on the coarsest file systems).
const TICK: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Key<'a> {
    version: u32,
    program: (&'static str, u64, u128),
    turns: Turns,
    weights: ChannelWeights,
    max_tokens: usize,
    overlong: Overlong,
    columns: &'a Columns,
    files: Vec<FileKey>,
}

/// What tells a file from any other.
#[derive(Serialize)]
enum FileKey {
    Content {
        source: usize,
        hash: String,
        /// A table and a text of the same bytes are read differently.
        name: Option<String>,
    },
    /// The change time is set by the kernel alone: a modification time that was put back does not hide a change.
    State { source: usize, device: u64, inode: u64, bytes: u64, modified: (i64, i64), changed: (i64, i64) },
}

/// The name of the samples of `files` under `options`; `None` when a large file is too fresh to be told from a later one, or when one is a
/// pipe, whose content can be read only once.
pub(super) fn of(files: &[SourceFile], options: &DatasetOptions) -> Result<Option<String>, DataError> {
    if !files.iter().all(|file| file.path.is_file()) {
        return Ok(None);
    }
    let mut opened = Vec::with_capacity(files.len());
    for file in files {
        let read = File::open(&file.path).and_then(|handle| Ok((handle.metadata()?, handle)));
        opened.push((file, read.map_err(|error| DataError::read(&file.path, error))?));
    }
    let is_small = opened.iter().map(|(_, (metadata, _))| metadata.len()).sum::<u64>() <= CONTENT_BYTES;
    let mut keys = Vec::with_capacity(files.len());
    for (file, (metadata, handle)) in opened {
        if is_small {
            let bytes = map(&handle).map_err(|error| DataError::read(&file.path, error))?;
            let hash = blake3::Hasher::new().update_rayon(&bytes).finalize().to_hex().to_string();
            let name = file.path.extension().map(|extension| extension.to_string_lossy().into_owned());
            keys.push(FileKey::Content { source: file.source, hash, name });
        } else if is_settled(&metadata) {
            keys.push(FileKey::State {
                source: file.source,
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            });
        } else {
            return Ok(None);
        }
    }
    let DatasetOptions { columns, samples, max_tokens, overlong, .. } = options;
    let key = Key {
        version: VERSION,
        program: program(),
        turns: samples.turns,
        weights: samples.weights,
        max_tokens: *max_tokens,
        overlong: *overlong,
        columns,
        files: keys,
    };
    Ok(serde_json::to_vec(&key).ok().map(|text| blake3::hash(&text).to_hex().to_string()))
}

fn is_settled(metadata: &Metadata) -> bool {
    let changed =
        UNIX_EPOCH + Duration::new(u64::try_from(metadata.ctime()).unwrap_or(0), u32::try_from(metadata.ctime_nsec()).unwrap_or(0));
    SystemTime::now().duration_since(changed).is_ok_and(|age| age > TICK)
}

/// This program: another build may render a conversation otherwise.
fn program() -> (&'static str, u64, u128) {
    let metadata = std::env::current_exe().and_then(|path| path.metadata());
    let modified = |metadata: &Metadata| metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok().map(|age| age.as_nanos());
    let (bytes, time) = metadata.map_or((0, 0), |metadata| (metadata.len(), modified(&metadata).unwrap_or(0)));
    (env!("CARGO_PKG_VERSION"), bytes, time)
}
