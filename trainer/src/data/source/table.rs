//! What Parquet and Arrow have in common: columns with names, and rows counted from 1.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;

use super::super::columns::Columns;
use super::super::error::{DataError, Place};
use super::super::shape::Shape;
use super::guarded::guarded;
use super::{Content, Row};

/// Rows of a table that is read batch by batch.
pub(super) struct Rows<'a, Visit> {
    path: &'a Path,
    count: usize,
    visit: Visit,
}

impl<'a, Visit: FnMut(Row) -> Result<(), DataError>> Rows<'a, Visit> {
    pub(super) fn new(path: &'a Path, visit: Visit) -> Rows<'a, Visit> {
        Rows { path, count: 0, visit }
    }

    /// Hands on the rows of `batch`, which ends `position` bytes into the file.
    pub(super) fn batch(&mut self, batch: RecordBatch, position: u64) -> Result<(), DataError> {
        let batch = Arc::new(batch);
        for index in 0..batch.num_rows() {
            self.count += 1;
            let place = Place { file: self.path.to_owned(), line: self.count };
            (self.visit)(Row { place, position, content: Content::Record(Arc::clone(&batch), index) })?;
        }
        Ok(())
    }
}

/// Indices of the columns of `schema` that mean something, or are close to one that does.
///
/// # Errors
/// A table that has the columns of no shape: refused before a row is read.
pub(super) fn wanted(schema: &Schema, columns: &Columns, path: &Path) -> Result<Vec<usize>, DataError> {
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let place = || Place { file: path.to_owned(), line: 1 };
    columns.check(&place(), names.iter().map(String::as_str))?;
    Shape::check_names(&place(), &columns.renamed(&names))?;
    Ok((0..names.len()).filter(|&index| columns.is_wanted(&names[index])).collect())
}

/// What `read` says about the bytes of `path`.
///
/// # Errors
/// [`DataError::Table`], also where the reader would have panicked.
pub(super) fn decoded<T, E: Into<Box<dyn Error + Send + Sync>>>(
    path: &Path,
    format: &'static str,
    read: impl FnOnce() -> Result<T, E>,
) -> Result<T, DataError> {
    match guarded(read) {
        Some(result) => result.map_err(|error| broken(path, format, error)),
        None => Err(broken(path, format, "its parts contradict one another")),
    }
}

/// A table that is broken.
pub(super) fn broken(path: &Path, format: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> DataError {
    DataError::Table { path: path.to_owned(), format, source: source.into() }
}
