//! Writing: the header first, then each tensor when its bytes are at hand, in any order.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::TensorSpec;
use super::header::{LIMIT_BYTES, PREFIX_BYTES};
use crate::error::{Error, InFile, Result};
use crate::output::{WriteBehind, partial_path, sync_parent};

/// A safetensors file in the making.
///
/// It appears under its name when it is finished; one that is dropped before leaves nothing.
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    slots: Vec<Slot>,
    by_name: HashMap<String, usize>,
    write_behind: WriteBehind,
    is_finished: bool,
}

/// The place of a tensor in the file.
#[derive(Debug)]
struct Slot {
    name: String,
    /// Offset in the file.
    begin: u64,
    length: u64,
    written: u64,
}

impl SafetensorsWriter {
    /// Begins a file that will hold `specs`, and `metadata` with `"format": "pt"` added, which transformers asks for.
    ///
    /// The widest elements come first in the file, so that every tensor is aligned to its elements.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::DuplicateTensor`] for a name given twice; [`Error::TensorTooLarge`] for a shape without a size;
    /// [`Error::HeaderTooLarge`] when the header would exceed what the format allows.
    pub fn create(path: &Path, specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Self> {
        let mut order: Vec<&TensorSpec> = specs.iter().collect();
        order.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.bits()));
        let (mut header, mut slots, mut by_name) = (Map::new(), Vec::new(), HashMap::new());
        let mut pairs: Map<String, Value> = metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        pairs.entry("format").or_insert_with(|| "pt".into());
        header.insert("__metadata__".to_owned(), Value::Object(pairs));
        let mut end = 0u64;
        for spec in order {
            let too_large = || Error::TensorTooLarge { tensor: spec.name.clone(), shape: spec.shape.clone(), dtype: spec.dtype };
            let length = spec.byte_length().ok_or_else(too_large)?;
            let begin = end;
            end = begin.checked_add(length).filter(|&end| end <= i64::MAX.unsigned_abs()).ok_or_else(too_large)?;
            let entry = json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [begin, end]});
            if header.insert(spec.name.clone(), entry).is_some() {
                return Err(Error::DuplicateTensor { tensor: spec.name.clone(), path: path.to_owned() });
            }
            by_name.insert(spec.name.clone(), slots.len());
            slots.push(Slot { name: spec.name.clone(), begin, length, written: 0 });
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        if text.len() as u64 > LIMIT_BYTES {
            return Err(Error::HeaderTooLarge { path: path.to_owned(), bytes: text.len() as u64, limit_bytes: LIMIT_BYTES });
        }
        let data_start = PREFIX_BYTES + text.len() as u64;
        slots.iter_mut().for_each(|slot| slot.begin += data_start);
        let partial = partial_path(path);
        let file = File::create(&partial).in_file("create", &partial)?;
        let write_behind = WriteBehind::default();
        let writer = Self { path: path.to_owned(), partial, file, slots, by_name, write_behind, is_finished: false };
        let prefix = (text.len() as u64).to_le_bytes();
        writer.put(&[&prefix[..], &text].concat(), 0)?;
        writer.file.set_len(data_start + end).in_file("write", &writer.partial)?;
        Ok(writer)
    }

    /// Writes the whole of a tensor.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::UnknownTensor`] for a name that was not announced; [`Error::WrittenLength`] when `bytes` is not what
    /// the tensor still lacks.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let slot = &self.slots[self.index(name)?];
        if slot.written + bytes.len() as u64 != slot.length {
            return Err(self.wrong_length(slot, bytes.len()));
        }
        self.write_chunk(name, bytes)
    }

    /// Writes the next bytes of a tensor that comes in pieces.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::write`], with [`Error::WrittenLength`] when the tensor would become too long.
    pub fn write_chunk(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let index = self.index(name)?;
        let slot = &self.slots[index];
        if slot.written + bytes.len() as u64 > slot.length {
            return Err(self.wrong_length(slot, bytes.len()));
        }
        self.put(bytes, slot.begin + slot.written)?;
        self.write_behind.advance(&self.file, bytes.len() as u64);
        self.slots[index].written += bytes.len() as u64;
        Ok(())
    }

    /// Makes the file appear under its name, synced to the disk.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::WrittenLength`] for the first tensor that is not whole.
    pub fn finish(mut self) -> Result<()> {
        if let Some(slot) = self.slots.iter().find(|slot| slot.written != slot.length) {
            return Err(self.wrong_length(slot, 0));
        }
        self.file.sync_all().in_file("sync", &self.partial)?;
        fs::rename(&self.partial, &self.path).in_file("rename", &self.partial)?;
        self.is_finished = true;
        sync_parent(&self.path)
    }

    fn index(&self, name: &str) -> Result<usize> {
        let unknown = || Error::UnknownTensor { tensor: name.to_owned(), path: self.path.clone() };
        self.by_name.get(name).copied().ok_or_else(unknown)
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).in_file("write", &self.partial)
    }

    fn wrong_length(&self, slot: &Slot, more: usize) -> Error {
        Error::WrittenLength {
            tensor: slot.name.clone(),
            path: self.path.clone(),
            expected: slot.length,
            found: slot.written + more as u64,
        }
    }
}

impl Drop for SafetensorsWriter {
    fn drop(&mut self) {
        if !self.is_finished {
            // Nothing can be reported here, and the next attempt replaces what is left.
            let _ = fs::remove_file(&self.partial);
        }
    }
}
