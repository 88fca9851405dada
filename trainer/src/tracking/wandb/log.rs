//! The transaction log `run-ID.wandb`: records of protocol buffers in chunks, as LevelDB's log frames them.
//!
//! A file begins with `:W&B`, 0xBEE1 and a version. Chunks lie in blocks of 32 KiB counted from the start of the file: checksum, length, kind
//! (whole, first, middle or last part of a record), data. The checksum is CRC-32 over kind and data.
//! Source: wandb 0.31, core `pkg/leveldb/record.go`, `internal/transactionlog`.

use std::io::{self, Write};

use super::super::protobuf::Message;

const HEADER: [u8; 7] = [b':', b'W', b'&', b'B', 0xe1, 0xbe, 0];
const BLOCK_BYTES: usize = 32 * 1024;
const CHUNK_HEADER_BYTES: usize = 7;

/// Kinds of chunks.
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// Frames records.
#[derive(Debug)]
pub(super) struct TransactionLog<W> {
    file: W,
    /// Bytes written.
    position: usize,
    /// Records written.
    count: u64,
}

impl<W: Write> TransactionLog<W> {
    pub(super) fn new(mut file: W) -> io::Result<Self> {
        file.write_all(&HEADER)?;
        Ok(Self { file, position: HEADER.len(), count: 0 })
    }

    /// The same log, written to another file from here on.
    pub(super) fn into_file<Other>(self, file: impl FnOnce(W) -> io::Result<Other>) -> io::Result<TransactionLog<Other>> {
        Ok(TransactionLog { position: self.position, count: self.count, file: file(self.file)? })
    }

    /// Appends a record with `content` in the field `kind`.
    pub(super) fn append(&mut self, kind: u64, content: Message) -> io::Result<()> {
        self.count += 1;
        let record = Message::new().integer(1, self.count).message(kind, content).into_bytes();
        let mut framed = Vec::with_capacity(record.len() + CHUNK_HEADER_BYTES);
        let mut rest = &record[..];
        let mut is_first = true;
        loop {
            let room = BLOCK_BYTES - (self.position + framed.len()) % BLOCK_BYTES;
            if room < CHUNK_HEADER_BYTES {
                framed.resize(framed.len() + room, 0);
                continue;
            }
            let (part, left) = rest.split_at(rest.len().min(room - CHUNK_HEADER_BYTES));
            let kind = match (is_first, left.is_empty()) {
                (true, true) => FULL,
                (true, false) => FIRST,
                (false, false) => MIDDLE,
                (false, true) => LAST,
            };
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&[kind]);
            hasher.update(part);
            framed.extend_from_slice(&hasher.finalize().to_le_bytes());
            framed.extend_from_slice(&(part.len() as u16).to_le_bytes());
            framed.push(kind);
            framed.extend_from_slice(part);
            (rest, is_first) = (left, false);
            if rest.is_empty() {
                break;
            }
        }
        self.file.write_all(&framed)?;
        self.position += framed.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of all chunks, put together again.
    fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut at, mut records, mut open) = (HEADER.len(), Vec::new(), Vec::new());
        while at < bytes.len() {
            let room = BLOCK_BYTES - at % BLOCK_BYTES;
            if room < CHUNK_HEADER_BYTES {
                at += room;
                continue;
            }
            let length = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
            let kind = bytes[at + 6];
            let data = &bytes[at + CHUNK_HEADER_BYTES..at + CHUNK_HEADER_BYTES + length];
            assert!(CHUNK_HEADER_BYTES + length <= room, "a chunk crosses no block");
            open.extend_from_slice(data);
            if matches!(kind, FULL | LAST) {
                records.push(std::mem::take(&mut open));
            }
            at += CHUNK_HEADER_BYTES + length;
        }
        records
    }

    #[test]
    fn records_of_every_length_come_back() {
        let mut log = TransactionLog::new(Vec::new()).unwrap();
        let near = BLOCK_BYTES - HEADER.len();
        let lengths: Vec<usize> = (0..40).chain(near - 60..near + 20).chain([2 * BLOCK_BYTES, 3 * BLOCK_BYTES + 1]).collect();
        for &length in &lengths {
            log.append(2, Message::new().text(1, &"x".repeat(length))).unwrap();
        }
        let found = records(&log.file);
        assert_eq!(found.len(), lengths.len());
        for ((record, length), number) in found.iter().zip(&lengths).zip(1..) {
            let content = Message::new().text(1, &"x".repeat(*length));
            assert_eq!(*record, Message::new().integer(1, number).message(2, content).into_bytes());
        }
    }
}
