//! The files behind a recipe's sources, and their rows.
//!
//! A file is what its content says it is: lines of JSON, one JSON array, Parquet or Arrow IPC, the first two also compressed.
//! Rows are read in their order, and in memory that does not grow with the file; taking a row apart is left to whoever has a
//! thread to spare.

mod arrow_messages;
mod compressed;
mod files;
mod format;
mod guarded;
mod lines;
mod parquet_file;
mod table;
mod values;

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use serde_json::Value;

pub(super) use files::files;
pub use guarded::is_guarded;
pub(super) use lines::for_each_line;

use super::columns::Columns;
use super::error::{DataError, Place};
use format::{Format, Kind};

/// A row as it stands in its file.
#[derive(Debug)]
pub(super) struct Row {
    /// Where it stands.
    pub(super) place: Place,
    /// How far into the file it is, in bytes; of tables an estimate.
    pub(super) position: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// The text of a JSON value.
    Text(Vec<u8>),
    /// A value that had to be read to find its end.
    Value(Value),
    /// A row of a table.
    Record(Arc<RecordBatch>, usize),
}

impl Row {
    /// Its place and value.
    ///
    /// # Errors
    /// Broken JSON, with its line and column; a cell that has no JSON value.
    pub(super) fn parse(self) -> Result<(Place, Value), DataError> {
        match self.content {
            Content::Value(value) => Ok((self.place, value)),
            Content::Text(text) => match serde_json::from_slice(&text) {
                Ok(value) => Ok((self.place, value)),
                Err(error) => Err(DataError::json(self.place, &error)),
            },
            Content::Record(batch, index) => {
                let value = values::row(&batch, index, &self.place)?;
                Ok((self.place, value))
            }
        }
    }
}

/// Calls `visit` with each row of the file `path`, in order: lines that are not blank, elements of an array, rows of a table.
///
/// Of a table only the columns that `columns` or a shape ask for are read.
pub(super) fn for_each_row(path: &Path, columns: &Columns, visit: impl FnMut(Row) -> Result<(), DataError>) -> Result<(), DataError> {
    let Format { compression, kind } = format::recognise(path)?;
    match kind {
        Kind::Text => lines::read(path, compression, visit),
        Kind::Parquet => parquet_file::read(path, columns, visit),
        Kind::ArrowFile | Kind::ArrowStream => arrow_messages::read(path, kind, columns, visit),
    }
}

#[cfg(test)]
mod tests;
