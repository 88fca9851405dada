//! Writing: the header first, then each tensor when its bytes are at hand, in any order.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::TensorSpec;
use super::header::{LIMIT_BYTES, PREFIX_BYTES};
use crate::error::{Error, InFile, Result};
use crate::output::{Slots, WriteBehind, partial_path, sync_parent};

/// A safetensors file in the making.
///
/// It appears under its name when it is finished; one that is dropped before leaves nothing.
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    slots: Slots,
    write_behind: WriteBehind,
    is_finished: bool,
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
        let (mut header, mut ranges) = (Map::new(), Vec::new());
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
            ranges.push((&spec.name, begin..end));
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        if text.len() as u64 > LIMIT_BYTES {
            return Err(Error::HeaderTooLarge { path: path.to_owned(), bytes: text.len() as u64, limit_bytes: LIMIT_BYTES });
        }
        let data_start = PREFIX_BYTES + text.len() as u64;
        let mut slots = Slots::default();
        ranges.iter().for_each(|(name, range)| slots.add(name, 0, &(data_start + range.start..data_start + range.end)));
        let partial = partial_path(path);
        let file = File::create(&partial).in_file("create", &partial)?;
        let write_behind = WriteBehind::default();
        let writer = Self { path: path.to_owned(), partial, file, slots, write_behind, is_finished: false };
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
        self.slots.check_rest(name, bytes.len(), &self.path)?;
        self.write_chunk(name, bytes)
    }

    /// Writes the next bytes of a tensor that comes in pieces.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::write`], with [`Error::WrittenLength`] when the tensor would become too long.
    pub fn write_chunk(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let place = self.slots.next(name, bytes.len(), &self.path)?;
        self.put(bytes, place.offset)?;
        self.write_behind.advance(&self.file, bytes.len() as u64);
        self.slots.advance(place, bytes.len());
        Ok(())
    }

    /// Makes the file appear under its name, synced to the disk.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::WrittenLength`] for the first tensor that is not whole.
    pub fn finish(mut self) -> Result<()> {
        self.slots.check_whole(&self.path)?;
        self.file.sync_all().in_file("sync", &self.partial)?;
        fs::rename(&self.partial, &self.path).in_file("rename", &self.partial)?;
        self.is_finished = true;
        sync_parent(&self.path)
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).in_file("write", &self.partial)
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
