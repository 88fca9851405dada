//! A place in a file's bytes that moves forward; nothing is taken that is not there.

use super::GgufProblem;
use super::problem::{LIMIT_KEY_BYTES, LIMIT_NAME_BYTES};

/// Characters of a bad name that an error shows.
const SHOWN: usize = 40;

/// Reads the head of a file from front to back.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Where it is.
    pub(super) fn offset(&self) -> u64 {
        self.offset as u64
    }

    /// Bytes from here to the end.
    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.offset) as u64
    }

    /// The next bytes, which are part of `what`.
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufProblem> {
        let Some(found) = self.bytes[self.offset..].first_chunk() else {
            return Err(GgufProblem::Truncated { what, offset: self.offset(), bytes: N as u64, available: self.bytes.len() as u64 });
        };
        self.offset += N;
        Ok(*found)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, GgufProblem> {
        self.array(what).map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufProblem> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufProblem> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A little-endian number, by its bytes.
    pub(super) fn number<const N: usize, T>(&mut self, what: &'static str, from: fn([u8; N]) -> T) -> Result<T, GgufProblem> {
        self.array(what).map(from)
    }

    /// A count of things that take at least `least_bytes` each: one that the rest of the file can hold.
    pub(super) fn count(&mut self, what: &'static str, least_bytes: u64) -> Result<usize, GgufProblem> {
        let offset = self.offset();
        let found = self.u64(what)?;
        self.check_count(what, offset, found, least_bytes)
    }

    /// Checks a count that stands at `offset` against what is left from here on.
    pub(super) fn check_count(&self, what: &'static str, offset: u64, found: u64, least_bytes: u64) -> Result<usize, GgufProblem> {
        let available = self.remaining();
        let limit = available / least_bytes;
        match usize::try_from(found) {
            Ok(count) if found <= limit => Ok(count),
            _ => Err(GgufProblem::Count { what, offset, found, available, limit }),
        }
    }

    /// A string: its length, then UTF-8.
    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a str, GgufProblem> {
        let offset = self.offset();
        let found = self.u64(what)?;
        let available = self.remaining();
        // What is not above the remaining bytes is a usize.
        let bytes = match usize::try_from(found) {
            Ok(length) if found <= available => &self.bytes[self.offset..self.offset + length],
            _ => return Err(GgufProblem::StringBeyondEnd { what, offset, found, available }),
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|error| GgufProblem::NotUtf8 { what, offset: self.offset() + error.valid_up_to() as u64 })?;
        self.offset += bytes.len();
        Ok(text)
    }

    /// The key of a value.
    pub(super) fn key(&mut self) -> Result<&'a str, GgufProblem> {
        self.name("key", LIMIT_KEY_BYTES)
    }

    /// The name of a tensor.
    pub(super) fn tensor_name(&mut self) -> Result<&'a str, GgufProblem> {
        self.name("tensor name", LIMIT_NAME_BYTES)
    }

    fn name(&mut self, what: &'static str, limit_bytes: u64) -> Result<&'a str, GgufProblem> {
        let offset = self.offset();
        let name = self.string(what)?;
        if name.is_empty() || name.len() as u64 > limit_bytes || name.chars().any(char::is_control) {
            return Err(GgufProblem::BadName { what, offset, found: name.chars().take(SHOWN).collect(), limit_bytes });
        }
        Ok(name)
    }
}
