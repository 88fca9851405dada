//! The token cache: what a dataset became, kept so that a second start need not make it again.
//!
//! An entry is an Arrow IPC file, mapped rather than read, and beside it a small JSON file that is written last and holds the
//! hash of the first: without it, or with another hash, the entry is not trusted. The name of an entry is the hash of all that
//! decides its content: see `key`.

mod key;
mod store;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::{Block, root_as_footer};
use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::mapped::map;
use super::options::DatasetOptions;
use super::statistics::Counts;
use super::tokens::SourceFile;
pub(super) use store::Writer;

/// Entries that were not used for longest go when all together are larger than this.
const LIMIT_BYTES: u64 = 20_000_000_000;
/// Unfinished files of a process that is gone are removed after this time.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Where the cache lies: `$FT_CACHE`, or `ft` in the user's cache folder. `None` when there is neither.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("FT_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("ft")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/ft")))
}

/// What stands beside the samples of an entry.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    /// blake3 of the samples' file.
    hash: String,
    bytes: u64,
    counts: Counts,
}

/// A dataset's place in the cache.
#[derive(Debug)]
pub(super) struct Entry {
    folder: PathBuf,
    name: String,
}

/// What an entry holds.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) batches: Vec<RecordBatch>,
    pub(super) counts: Counts,
}

impl Entry {
    /// The place of `files` under `options`; `None` when the state of a file says too little to tell it from a later one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn of(folder: &Path, files: &[SourceFile], options: &DatasetOptions) -> Result<Option<Entry>, DataError> {
        let Some(name) = key::of(files, options)? else { return Ok(None) };
        Ok(Some(Entry { folder: folder.join("tokens"), name }))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where its samples lie.
    pub(super) fn samples(&self) -> PathBuf {
        self.folder.join(format!("{}.arrow", self.name))
    }

    fn seal(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.name))
    }

    /// The entry, if there is one and every byte of it is as it was written; `Err` says why one cannot be used.
    pub(super) fn open(&self) -> Result<Option<Found>, String> {
        let Ok(text) = fs::read(self.seal()) else { return Ok(None) };
        let seal: Seal = serde_json::from_slice(&text).map_err(|_| "its seal is damaged".to_owned())?;
        let bytes = File::open(self.samples()).and_then(|file| map(&file)).map_err(|error| error.to_string())?;
        if bytes.len() as u64 != seal.bytes {
            return Err(format!("it has {} bytes and should have {}", bytes.len(), seal.bytes));
        }
        if blake3::Hasher::new().update_rayon(&bytes).finalize().to_hex().as_str() != seal.hash {
            return Err("its hash is another".to_owned());
        }
        let batches = batches(&bytes).ok_or_else(|| "it is of another version".to_owned())?;
        // A use that cannot be noted only makes the entry look older.
        let _ = File::open(self.seal()).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(Found { batches, counts: seal.counts }))
    }

    /// Whether `files` are still what the entry is named after: they may have changed while they were read.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn is_still_of(&self, files: &[SourceFile], options: &DatasetOptions) -> Result<bool, DataError> {
        Ok(key::of(files, options)?.as_ref() == Some(&self.name))
    }

    /// Begins to write the entry.
    pub(super) fn writer(&self) -> io::Result<Writer> {
        fs::create_dir_all(&self.folder)?;
        Writer::new(&self.folder)
    }

    /// Puts what was written in its place.
    pub(super) fn publish(&self, writer: Writer, counts: &Counts) -> io::Result<Found> {
        let (Some(partial), bytes) = writer.finish()? else { return Err(io::Error::other("a file without a name is no entry")) };
        let hash = blake3::Hasher::new().update_rayon(&bytes).finalize().to_hex().to_string();
        let seal = Seal { hash, bytes: bytes.len() as u64, counts: counts.clone() };
        // An old seal must not vouch for new samples.
        match fs::remove_file(self.seal()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        partial.persist(self.samples()).map_err(|error| error.error)?;
        let mut file = tempfile::Builder::new().prefix(".partial-").tempfile_in(&self.folder)?;
        serde_json::to_writer(&mut file, &seal)?;
        file.as_file().sync_all()?;
        file.persist(self.seal()).map_err(|error| error.error)?;
        self.prune();
        let batches = batches(&bytes).ok_or_else(|| io::Error::other("what was written cannot be read"))?;
        Ok(Found { batches, counts: counts.clone() })
    }

    /// Removes the entries that were not used for longest while all are too large, and what dead processes left.
    fn prune(&self) {
        let Ok(listing) = fs::read_dir(&self.folder) else { return };
        let mut entries: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
        for entry in listing.flatten() {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_partial = entry.file_name().to_string_lossy().starts_with(".partial-");
            if is_partial && modified.elapsed().is_ok_and(|age| age > STALE) {
                let _ = fs::remove_file(&path);
            } else if path.extension().is_some_and(|extension| extension == "json") && path != self.seal() {
                let bytes = fs::metadata(path.with_extension("arrow")).map_or(0, |samples| samples.len());
                entries.push((modified, path, bytes));
            }
        }
        let mut total: u64 = entries.iter().map(|(_, _, bytes)| bytes).sum();
        entries.sort();
        for (_, seal, bytes) in entries {
            if total <= LIMIT_BYTES {
                break;
            }
            let _ = fs::remove_file(&seal);
            let _ = fs::remove_file(seal.with_extension("arrow"));
            total -= bytes;
        }
    }
}

/// What was written, for this process alone: the file goes when it is not used any more.
pub(super) fn unpublished(writer: Writer, counts: Counts) -> io::Result<Found> {
    let (_, bytes) = writer.finish()?;
    let batches = batches(&bytes).ok_or_else(|| io::Error::other("what was written cannot be read"))?;
    Ok(Found { batches, counts })
}

/// The batches of an Arrow IPC file, whose arrays lie in `bytes`; `None` when it is no such file.
fn batches(bytes: &Buffer) -> Option<Vec<RecordBatch>> {
    /// The length of the footer, and `ARROW1`.
    const TRAILER_BYTES: usize = 10;
    let trailer = bytes.len().checked_sub(TRAILER_BYTES)?;
    let footer_bytes = read_footer_length(bytes[trailer..].try_into().ok()?).ok()?;
    let footer = root_as_footer(bytes.get(trailer.checked_sub(footer_bytes)?..trailer)?).ok()?;
    let decoder = FileDecoder::new(try_fb_to_schema(footer.schema()?).ok()?.into(), footer.version());
    let read = |block: &Block| {
        let (offset, metadata) = (usize::try_from(block.offset()).ok()?, usize::try_from(block.metaDataLength()).ok()?);
        let length = metadata.checked_add(usize::try_from(block.bodyLength()).ok()?)?;
        offset.checked_add(length).filter(|end| *end <= bytes.len())?;
        decoder.read_record_batch(block, &bytes.slice_with_length(offset, length)).ok()?
    };
    footer.recordBatches()?.iter().map(read).collect()
}

#[cfg(test)]
mod tests;
