//! Arrow IPC, both of its forms: a file holds the messages of a stream between its first bytes and its footer.
//!
//! Source: "IPC Streaming Format" and "IPC File Format" of Arrow's columnar format, version 1.5.

use std::fs::File;
use std::path::Path;

use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::{Message, MessageHeader, root_as_message};

use super::super::columns::Columns;
use super::super::error::DataError;
use super::super::mapped::map;
use super::Row;
use super::format::Kind;
use super::table::{Rows, broken, decoded, wanted};

const FORMAT: &str = "Arrow IPC";
/// `ARROW1`, after which a file is padded to a multiple of 8 bytes, or of 64.
const MAGIC_BYTES: usize = 6;
const MOST_PADDING: usize = 64;
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Most bytes that a packed buffer may become.
const UNPACKED_LIMIT: i64 = 1 << 30;

/// Calls `visit` with each row of `path`.
pub(super) fn read(path: &Path, kind: Kind, columns: &Columns, visit: impl FnMut(Row) -> Result<(), DataError>) -> Result<(), DataError> {
    let file = File::open(path).map_err(|error| DataError::read(path, error))?;
    let bytes = map(&file).map_err(|error| DataError::read(path, error))?;
    let damaged = |what: &'static str| broken(path, FORMAT, what);
    let mut rows = Rows::new(path, visit);
    let mut decoder = StreamDecoder::new();
    let mut projection = None;
    let mut start = 0;
    if kind == Kind::ArrowFile {
        let padding = bytes[MAGIC_BYTES..].iter().take(MOST_PADDING).take_while(|byte| **byte == 0).count();
        start = MAGIC_BYTES + padding;
    }
    let mut is_ended = false;
    while start < bytes.len() {
        let Some(message) = message_at(&bytes, start).map_err(damaged)? else {
            is_ended = true;
            break;
        };
        let mut span = bytes.slice_with_length(start, message.length);
        let batch = decoded(path, FORMAT, || decoder.decode(&mut span))?;
        start += message.length;
        if projection.is_none()
            && let Some(schema) = decoder.schema()
        {
            projection = Some(wanted(&schema, columns, path)?);
        }
        if let (Some(batch), Some(wanted)) = (batch, &projection) {
            let batch = batch.project(wanted).map_err(|error| broken(path, FORMAT, error))?;
            rows.batch(batch, start as u64)?;
        }
    }
    // A stream may end with the connection; a file says where it ends.
    if projection.is_none() || (kind == Kind::ArrowFile && !is_ended) {
        return Err(damaged("it ends in the midst of its messages"));
    }
    Ok(())
}

struct Span {
    length: usize,
}

/// The message at `start`, or `None` where the stream says that it ends. Every length is checked against the file.
fn message_at(bytes: &Buffer, start: usize) -> Result<Option<Span>, &'static str> {
    const CUT: &str = "a message is cut off";
    let number = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes).ok_or(CUT);
    if bytes.get(start..start + 4) != Some(&CONTINUATION) {
        return Err("a message does not begin where one should");
    }
    let metadata_bytes = number(start + 4)? as usize;
    if metadata_bytes == 0 {
        return Ok(None);
    }
    let body_start = (start + 8).checked_add(metadata_bytes).ok_or(CUT)?;
    let metadata = bytes.get(start + 8..body_start).ok_or(CUT)?;
    let message = root_as_message(metadata).map_err(|_| "the description of a message is damaged")?;
    let body_bytes = usize::try_from(message.bodyLength()).map_err(|_| "a message has a negative length")?;
    let body = body_start.checked_add(body_bytes).and_then(|end| bytes.get(body_start..end)).ok_or(CUT)?;
    check_buffers(&message, body)?;
    Ok(Some(Span { length: body_start + body_bytes - start }))
}

/// A packed buffer says in its first eight bytes how large it becomes.
fn check_buffers(message: &Message<'_>, body: &[u8]) -> Result<(), &'static str> {
    let batch = match message.header_type() {
        MessageHeader::RecordBatch => message.header_as_record_batch(),
        MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()),
        _ => return Ok(()),
    };
    let batch = batch.ok_or("a batch has no description")?;
    for buffer in batch.buffers().into_iter().flatten() {
        let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let range = range.and_then(|(offset, length)| Some(offset..offset.checked_add(length)?));
        let packed = range.and_then(|range| body.get(range)).ok_or("a buffer lies outside its message")?;
        if batch.compression().is_some()
            && let Some(Ok(unpacked_bytes)) = packed.get(..8).map(<[u8; 8]>::try_from)
            && i64::from_le_bytes(unpacked_bytes) > UNPACKED_LIMIT
        {
            return Err("a buffer claims to unpack to more than 1 GB");
        }
    }
    Ok(())
}
