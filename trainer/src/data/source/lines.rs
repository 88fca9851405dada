//! JSON text: a value on each line, or one array of values.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufRead, Read};
use std::path::Path;

use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::Value;

use super::super::error::{DataError, Place};
use super::compressed::{self, Unpacked};
use super::format::Compression;
use super::{Content, Row};

/// Longest line, in bytes.
const LINE_LIMIT: u64 = 256 << 20;
/// Most bytes of text in a file that is one array: broken off or nested wrongly, it is one value to its end.
const ARRAY_LIMIT: u64 = 1 << 30;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Calls `visit` with each value of `path`.
pub(super) fn read(path: &Path, compression: Compression, visit: impl FnMut(Row) -> Result<(), DataError>) -> Result<(), DataError> {
    let Unpacked { mut reader, read_bytes } = compressed::open(path, compression)?;
    let broken = |error| compressed::problem(path, compression, error);
    let position = || read_bytes.get();
    let start = reader.fill_buf().map_err(broken)?;
    let is_array = start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if is_array { each_element(reader, path, &broken, &position, visit) } else { each_line(reader, path, &broken, &position, visit) }
}

/// Calls `visit` with each line of `text` that is not blank; places are in `path`.
pub(in crate::data) fn for_each_line(text: &[u8], path: &Path, visit: impl FnMut(Row) -> Result<(), DataError>) -> Result<(), DataError> {
    each_line(text, path, &|error| DataError::read(path, error), &|| 0, visit)
}

fn each_line(
    mut reader: impl BufRead,
    path: &Path,
    broken: &dyn Fn(io::Error) -> DataError,
    position: &dyn Fn() -> u64,
    mut visit: impl FnMut(Row) -> Result<(), DataError>,
) -> Result<(), DataError> {
    for line in 1.. {
        let mut text = Vec::new();
        let length = reader.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut text).map_err(broken)?;
        if length == 0 {
            break;
        }
        let place = Place { file: path.to_owned(), line };
        if length as u64 == LINE_LIMIT {
            return Err(DataError::LongLine { place, limit_bytes: LINE_LIMIT });
        }
        // A byte order mark is no part of the first object.
        if line == 1 && text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
        }
        if !text.iter().all(u8::is_ascii_whitespace) {
            visit(Row { place, position: position(), content: Content::Text(text) })?;
        }
    }
    Ok(())
}

/// Elements as they are met: the array is never whole in memory.
fn each_element(
    reader: impl BufRead,
    path: &Path,
    broken: &dyn Fn(io::Error) -> DataError,
    position: &dyn Fn() -> u64,
    visit: impl FnMut(Row) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let refused = RefCell::new(None);
    let mut limited = reader.take(ARRAY_LIMIT);
    let mut parser = serde_json::Deserializer::from_reader(&mut limited);
    let result = parser.deserialize_seq(Elements { path, position, visit, refused: &refused }).and_then(|()| parser.end());
    drop(parser);
    let Err(error) = result else { return Ok(()) };
    if let Some(refused) = refused.into_inner() {
        return Err(refused);
    }
    if limited.limit() == 0 {
        return Err(DataError::LargeArray { path: path.to_owned(), limit_bytes: ARRAY_LIMIT });
    }
    let line = error.line().max(1);
    match error.io_error_kind() {
        Some(_) => Err(broken(error.into())),
        None => Err(DataError::json(Place { file: path.to_owned(), line }, &error)),
    }
}

/// Hands each element of an array on.
struct Elements<'a, Visit> {
    path: &'a Path,
    position: &'a dyn Fn() -> u64,
    visit: Visit,
    /// Why `visit` would have no more.
    refused: &'a RefCell<Option<DataError>>,
}

impl<'de, Visit: FnMut(Row) -> Result<(), DataError>> Visitor<'de> for Elements<'_, Visit> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of conversations")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> Result<(), A::Error> {
        let mut line = 0;
        while let Some(value) = array.next_element::<Value>()? {
            line += 1;
            let place = Place { file: self.path.to_owned(), line };
            if let Err(error) = (self.visit)(Row { place, position: (self.position)(), content: Content::Value(value) }) {
                *self.refused.borrow_mut() = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
