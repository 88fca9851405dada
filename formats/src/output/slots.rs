//! Where the tensors of files in the making go, and what of them is there already.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

/// The place of every tensor.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    by_name: HashMap<String, usize>,
}

/// The place of a tensor.
#[derive(Debug)]
struct Slot {
    name: String,
    file: usize,
    /// Offset in the file.
    begin: u64,
    length: u64,
    written: u64,
}

/// Where the next bytes of a tensor go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    slot: usize,
    pub(crate) file: usize,
    pub(crate) offset: u64,
}

impl Slots {
    /// Adds a tensor, at `range` of file number `file`. No name may come twice.
    pub(crate) fn add(&mut self, name: &str, file: usize, range: &Range<u64>) {
        self.by_name.insert(name.to_owned(), self.slots.len());
        self.slots.push(Slot { name: name.to_owned(), file, begin: range.start, length: range.end - range.start, written: 0 });
    }

    /// Bytes of all tensors.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.length).sum()
    }

    /// Fails unless `bytes` are all that a tensor still lacks. `path` is for messages, here and below.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`], [`Error::WrittenLength`].
    pub(crate) fn check_rest(&self, name: &str, bytes: usize, path: &Path) -> Result<()> {
        let slot = &self.slots[self.index(name, path)?];
        if slot.written + bytes as u64 == slot.length { Ok(()) } else { Err(slot.wrong_length(bytes, path)) }
    }

    /// The place of the next `bytes` of a tensor.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`]; [`Error::WrittenLength`] when the tensor would become too long.
    pub(crate) fn next(&self, name: &str, bytes: usize, path: &Path) -> Result<Place> {
        let index = self.index(name, path)?;
        let slot = &self.slots[index];
        if slot.written + bytes as u64 > slot.length {
            return Err(slot.wrong_length(bytes, path));
        }
        Ok(Place { slot: index, file: slot.file, offset: slot.begin + slot.written })
    }

    /// Takes note that `bytes` are at a place that was given.
    pub(crate) fn advance(&mut self, place: Place, bytes: usize) {
        self.slots[place.slot].written += bytes as u64;
    }

    /// Fails for the first tensor that is not whole.
    ///
    /// # Errors
    /// [`Error::WrittenLength`].
    pub(crate) fn check_whole(&self, path: &Path) -> Result<()> {
        match self.slots.iter().find(|slot| slot.written != slot.length) {
            Some(slot) => Err(slot.wrong_length(0, path)),
            None => Ok(()),
        }
    }

    fn index(&self, name: &str, path: &Path) -> Result<usize> {
        let unknown = || Error::UnknownTensor { tensor: name.to_owned(), path: path.to_owned() };
        self.by_name.get(name).copied().ok_or_else(unknown)
    }
}

impl Slot {
    fn wrong_length(&self, more: usize, path: &Path) -> Error {
        let found = self.written + more as u64;
        Error::WrittenLength { tensor: self.name.clone(), path: path.to_owned(), expected: self.length, found }
    }
}
