//! What kind of file a file is.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::super::error::DataError;

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON: a value on each line, or one array.
    Text,
    Parquet,
    ArrowFile,
    ArrowStream,
}

/// Both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) compression: Compression,
    pub(super) kind: Kind,
}

/// Extensions of files with one JSON object on each line.
const LINE_EXTENSIONS: [&str; 2] = ["jsonl", "ndjson"];
/// Extensions of tables, and what they promise.
const TABLE_EXTENSIONS: [(&str, &str); 5] =
    [("parquet", "Parquet"), ("pq", "Parquet"), ("arrow", "Arrow IPC"), ("feather", "Arrow IPC"), ("ipc", "Arrow IPC")];
const COMPRESSED_EXTENSIONS: [(&str, &str); 4] = [("gz", "gzip"), ("gzip", "gzip"), ("zst", "zstd"), ("zstd", "zstd")];
/// Extensions that a person may well point at, and that are not read.
const UNSUPPORTED_EXTENSIONS: [&str; 7] = ["csv", "tsv", "zip", "bz2", "xz", "xlsx", "7z"];

/// First bytes. Sources: RFC 1952 section 2.3.1; RFC 8878 sections 3.1.1 and 3.1.2; Parquet's file format; Arrow's IPC file
/// format, and the continuation marker that begins a message of its stream.
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const PARQUET: &[u8] = b"PAR1";
const ARROW_FILE: &[u8] = b"ARROW1";
const ARROW_STREAM: &[u8] = &[0xff; 4];
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Whether a file of this name is data where a folder is searched. `.json` is not: configurations are.
pub(super) fn is_read(path: &Path) -> bool {
    let extension = extension(path);
    let is_packed = COMPRESSED_EXTENSIONS.iter().any(|(packed, _)| *packed == extension);
    let inner =
        if is_packed { path.file_stem().map(|stem| self::extension(Path::new(stem))).unwrap_or_default() } else { extension.clone() };
    LINE_EXTENSIONS.contains(&inner.as_str()) || (!is_packed && TABLE_EXTENSIONS.iter().any(|(table, _)| *table == extension))
}

/// What the first bytes of `path` say it is.
///
/// # Errors
/// A file that is not what its name says, or of a kind that is not read.
pub(super) fn recognise(path: &Path) -> Result<Format, DataError> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|error| DataError::read(path, error))?;
    file.take(64).read_to_end(&mut start).map_err(|error| DataError::read(path, error))?;
    let found = [
        (GZIP, Compression::Gzip, Kind::Text),
        (ZSTD, Compression::Zstd, Kind::Text),
        (PARQUET, Compression::None, Kind::Parquet),
        (ARROW_FILE, Compression::None, Kind::ArrowFile),
        (ARROW_STREAM, Compression::None, Kind::ArrowStream),
    ]
    .into_iter()
    .find(|(magic, ..)| start.starts_with(magic));
    if let Some((_, compression, kind)) = found {
        return Ok(Format { compression, kind });
    }
    if start.starts_with(LFS_POINTER) {
        return Err(DataError::LfsPointer { path: path.to_owned() });
    }
    let extension = extension(path);
    let promised = TABLE_EXTENSIONS.into_iter().chain(COMPRESSED_EXTENSIONS).find(|(name, _)| *name == extension);
    if let Some((_, expected)) = promised {
        return Err(DataError::NotOfItsKind { path: path.to_owned(), expected });
    }
    if UNSUPPORTED_EXTENSIONS.contains(&extension.as_str()) {
        return Err(DataError::UnsupportedFormat { path: path.to_owned(), extension });
    }
    Ok(Format { compression: Compression::None, kind: Kind::Text })
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}
