//! Parquet.

use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::super::columns::Columns;
use super::super::error::DataError;
use super::Row;
use super::table::{Rows, decoded, wanted};

const FORMAT: &str = "Parquet";
/// Bytes of rows that are taken apart at a time, before compression.
const BATCH_BYTES: i64 = 8 << 20;
/// Rows at a time, at most.
const BATCH_ROWS: i64 = 1024;
/// Largest page, in bytes as it lies in the file: the usual is 1 MB.
const PAGE_LIMIT: usize = 256 << 20;

/// Calls `visit` with each row of `path`.
pub(super) fn read(path: &Path, columns: &Columns, visit: impl FnMut(Row) -> Result<(), DataError>) -> Result<(), DataError> {
    let file = File::open(path).map_err(|error| DataError::read(path, error))?;
    let length = file.metadata().map_err(|error| DataError::read(path, error))?.len();
    // The types that Arrow wrote beside Parquet's own add nothing here, and are one more thing to be broken.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let pages = Pages { file, length };
    let builder = decoded(path, FORMAT, || ParquetRecordBatchReaderBuilder::try_new_with_options(pages, options))?;
    let wanted = wanted(builder.schema(), columns, path)?;
    let metadata = builder.metadata();
    let num_rows = metadata.file_metadata().num_rows().max(1);
    let bytes: i64 = metadata.row_groups().iter().map(|group| group.total_byte_size().max(0)).fold(0, i64::saturating_add);
    let batch_rows = (BATCH_BYTES / (bytes / num_rows).max(1)).clamp(1, BATCH_ROWS);
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
    let builder = builder.with_projection(mask).with_batch_size(usize::try_from(batch_rows).unwrap_or(1));
    let mut batches = decoded(path, FORMAT, || builder.build())?;
    let mut rows = Rows::new(path, visit);
    let mut read_rows = 0;
    while let Some(batch) = decoded(path, FORMAT, || batches.next().transpose())? {
        read_rows += batch.num_rows() as u64;
        let fraction = read_rows as f64 / num_rows as f64;
        rows.batch(batch, (length as f64 * fraction) as u64)?;
    }
    Ok(())
}

/// A file that is read page by page; what a page claims to be is bounded before memory is taken for it.
struct Pages {
    file: File,
    length: u64,
}

impl Length for Pages {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Pages {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> Result<BufReader<File>, ParquetError> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if length > PAGE_LIMIT || start.saturating_add(length as u64) > self.length {
            return Err(ParquetError::General(format!("a part of {length} bytes at byte {start} of {}", self.length)));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}
