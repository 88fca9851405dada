//! Writes the samples of an entry.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::writer::FileWriter;
use tempfile::{NamedTempFile, TempPath};

use super::super::mapped::map;
use super::super::tokens::SCHEMA;

/// An Arrow IPC file under a name of its own, or without one: unfinished, it is nobody's entry.
pub(in crate::data) struct Writer {
    path: Option<TempPath>,
    writer: FileWriter<BufWriter<File>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Writer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn new(folder: &Path) -> io::Result<Writer> {
        let (file, path) = tempfile::Builder::new().prefix(".partial-").tempfile_in(folder).map(NamedTempFile::into_parts)?;
        Writer::of(file, Some(path))
    }

    /// A file in `folder` that goes with this process, however it ends.
    pub(in crate::data) fn nameless(folder: &Path) -> io::Result<Writer> {
        Writer::of(tempfile::tempfile_in(folder)?, None)
    }

    fn of(file: File, path: Option<TempPath>) -> io::Result<Writer> {
        let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, file), &SCHEMA).map_err(io_error)?;
        Ok(Writer { path, writer })
    }

    pub(in crate::data) fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        self.writer.write(batch).map_err(io_error)
    }

    /// The name of the finished file, on disk for good, and its bytes.
    pub(super) fn finish(mut self) -> io::Result<(Option<TempPath>, Buffer)> {
        self.writer.finish().map_err(io_error)?;
        let file = self.writer.into_inner().map_err(io_error)?.into_inner().map_err(|error| error.into_error())?;
        if self.path.is_some() {
            file.sync_all()?;
        }
        let bytes = map(&file)?;
        Ok((self.path, bytes))
    }
}

/// What the operating system said stays what it is: a full disk has an exit code of its own.
fn io_error(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        other => io::Error::other(other),
    }
}
