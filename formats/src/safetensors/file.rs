//! Reading: a memory map, and views into it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::header::{self, Entry, HeaderProblem, PREFIX_BYTES};
use crate::dtype::Dtype;
use crate::error::{Error, InFile, Result};

/// A tensor that lies in a mapped file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, the last one contiguous.
    pub shape: &'a [usize],
    /// Its elements, little endian, at whatever address the file puts them.
    pub bytes: &'a [u8],
}

/// A safetensors file, memory-mapped, with its header checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    /// Offset of the first tensor's bytes.
    data_start: usize,
    tensors: Vec<Entry>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Maps the file and checks its header; no tensor is read yet.
    ///
    /// The file must not be shortened while it is mapped: a read past its new end would end the process.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Safetensors`] with the rule of the format that it breaks.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).in_file("read", path)?;
        let status = file.metadata().in_file("read", path)?;
        if !status.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let malformed = |problem| Error::Safetensors { path: path.to_owned(), problem };
        // The length is judged before anything is mapped.
        let mut prefix = [0; PREFIX_BYTES as usize];
        if status.len() < PREFIX_BYTES {
            return Err(malformed(HeaderProblem::TooShort { found: status.len() }));
        }
        file.read_exact(&mut prefix).in_file("read", path)?;
        header::length(&prefix, status.len()).map_err(malformed)?;
        // SAFETY: the map is private to this value and read only. Another process that shortens the file meanwhile can only make
        // a later read end this process with SIGBUS, which is documented above.
        let map = unsafe { Mmap::map(&file) }.in_file("map", path)?;
        // The file may have changed since its length was asked for: from here on only the map counts.
        let file_bytes = map.len() as u64;
        let header_bytes = header::length(&map, file_bytes).map_err(malformed)?;
        let data_bytes = file_bytes - PREFIX_BYTES - header_bytes;
        // Both are no more than the length of the map, a usize.
        let data_start = map.len() - data_bytes as usize;
        let header = header::parse(&map[PREFIX_BYTES as usize..data_start], data_bytes).map_err(malformed)?;
        let by_name = header.tensors.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index)).collect();
        Ok(Self { path: path.to_owned(), map, data_start, tensors: header.tensors, by_name, metadata: header.metadata })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.get(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned(), path: self.path.clone() })
    }

    /// The tensor of that name, if there is one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).map(|&index| self.view(&self.tensors[index]))
    }

    /// Every tensor, in the order of their bytes.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|entry| self.view(entry))
    }

    /// The header's `__metadata__`.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        (self.map.len() - self.data_start) as u64
    }

    /// Has the system read these bytes ahead, if they are of this file. Whether it does is its own business.
    pub(crate) fn prefetch(&self, bytes: &[u8]) {
        if let Some(offset) = self.offset_of(bytes) {
            // Advice that is not taken changes nothing.
            let _ = self.map.advise_range(Advice::WillNeed, offset, bytes.len());
        }
    }

    /// Takes these bytes out of this process's memory, if they are of this file; they are read again when they are asked for.
    pub(crate) fn release(&self, bytes: &[u8]) {
        if let Some(offset) = self.offset_of(bytes) {
            // SAFETY: the map is of a file and never written to, so that its pages can be read again.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, bytes.len()) };
        }
    }

    fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = bytes.as_ptr().addr().checked_sub(self.map.as_ptr().addr())?;
        (offset + bytes.len() <= self.map.len() && !bytes.is_empty()).then_some(offset)
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> TensorView<'a> {
        let data = &self.map[self.data_start..];
        // The header was checked against the length of the map, a usize.
        let bytes = &data[entry.range.start as usize..entry.range.end as usize];
        TensorView { name: &entry.name, dtype: entry.dtype, shape: &entry.shape, bytes }
    }
}
