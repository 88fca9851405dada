//! Reading: a memory map for each file of a model, and views into them.

mod vocabulary;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::{GgufEntry, GgufHeader, GgufProblem, MAGIC, TensorType, Value};
use crate::error::{Error, InFile, Result};

/// A tensor that lies in a mapped file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Type of its elements.
    pub tensor_type: TensorType,
    /// Its dimensions, the last one contiguous.
    pub shape: &'a [usize],
    /// Its blocks, row by row, at whatever address the file puts them.
    pub bytes: &'a [u8],
}

/// A GGUF file, or all files of a model that is split into several, memory-mapped, with their heads checked.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    parts: Vec<Part>,
    /// Part and index in it of each tensor.
    by_name: HashMap<String, (usize, usize)>,
}

/// One of the files.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    map: Mmap,
    header: GgufHeader,
}

/// What a part says of itself; counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Split {
    number: u64,
    count: u64,
}

impl GgufFile {
    /// Maps a file and checks its head; no tensor is read yet. Of a split model any file will do: all of them are opened. In a
    /// directory, the only model there is meant.
    ///
    /// The files must not be shortened while they are mapped: a read past their new end would end the process.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Gguf`] with the rule of the format that it breaks, or the part of the model that is
    /// missing; [`Error::NoGguf`] or [`Error::SeveralGguf`] for a directory without a model or with more than one.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { only_model(path)? } else { path.to_owned() };
        let first = Part::open(&file)?;
        let parts = match first.split()? {
            None | Some(Split { count: 1, .. }) => vec![first],
            Some(split) => open_parts(first, split)?,
        };
        let mut by_name = HashMap::new();
        for (index, part) in parts.iter().enumerate() {
            for (place, entry) in part.header.tensors.iter().enumerate() {
                if by_name.insert(entry.name.clone(), (index, place)).is_some() {
                    return Err(Error::DuplicateTensor { tensor: entry.name.clone(), path: part.path.clone() });
                }
            }
        }
        let file = Self { path: path.to_owned(), parts, by_name };
        if file.parts.len() > 1 {
            file.check_tensor_count()?;
        }
        Ok(file)
    }

    /// True for a file that begins as GGUF does or has a name as if it did, and for a directory with such names.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read.
    pub fn is_at(path: &Path) -> Result<bool> {
        if path.is_dir() {
            return Ok(!models_in(path)?.is_empty());
        }
        if !path.is_file() || path.extension().is_some_and(|ending| ending == "gguf") {
            return Ok(path.is_file());
        }
        let mut magic = Vec::new();
        File::open(path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut magic)).in_file("read", path)?;
        Ok(magic == MAGIC)
    }

    /// The path, as given to [`GgufFile::open`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order of their parts.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.parts.iter().map(|part| &*part.path)
    }

    /// The file with the metadata: the first.
    #[must_use]
    pub fn main_file(&self) -> &Path {
        &self.parts[0].path
    }

    /// Version of the format: 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.parts[0].header.version
    }

    /// Bytes of all files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.map.len() as u64).sum()
    }

    /// Keys and values, in the order of the file. Those of a split model are in its first part.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.parts[0].header.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key, if there is one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.parts[0].get(key)
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<GgufView<'_>> {
        self.find(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned(), path: self.path.clone() })
    }

    /// The tensor of that name, if there is one.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<GgufView<'_>> {
        self.by_name.get(name).map(|&(part, place)| self.parts[part].view(&self.parts[part].header.tensors[place]))
    }

    /// Every tensor, in the order of the files' lists.
    pub fn tensors(&self) -> impl Iterator<Item = GgufView<'_>> {
        self.parts.iter().flat_map(|part| part.header.tensors.iter().map(|entry| part.view(entry)))
    }

    /// Number of tensors.
    #[must_use]
    pub fn num_tensors(&self) -> usize {
        self.by_name.len()
    }

    /// The file that holds a tensor; the path of the model for a name that it does not have.
    #[must_use]
    pub fn file_of(&self, name: &str) -> &Path {
        self.by_name.get(name).map_or(&*self.path, |&(part, _)| &self.parts[part].path)
    }

    /// Has the system read these bytes ahead, if they are of these files. Whether it does is its own business.
    pub(crate) fn prefetch(&self, bytes: &[u8]) {
        for part in &self.parts {
            if let Some(offset) = part.offset_of(bytes) {
                // Advice that is not taken changes nothing.
                let _ = part.map.advise_range(Advice::WillNeed, offset, bytes.len());
            }
        }
    }

    /// Takes these bytes out of this process's memory, if they are of these files; they are read again when they are asked for.
    pub(crate) fn release(&self, bytes: &[u8]) {
        for part in &self.parts {
            if let Some(offset) = part.offset_of(bytes) {
                // SAFETY: the map is of a file and never written to, so that its pages can be read again.
                let _ = unsafe { part.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, bytes.len()) };
            }
        }
    }

    fn check_tensor_count(&self) -> Result<()> {
        let found = self.by_name.len() as u64;
        match self.parts[0].whole_number("split.tensors.count")? {
            Some(expected) if expected != found => {
                Err(Error::Gguf { path: self.parts[0].path.clone(), problem: GgufProblem::TensorCount { expected, found } })
            }
            _ => Ok(()),
        }
    }
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).in_file("read", path)?;
        let status = file.metadata().in_file("read", path)?;
        if !status.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let malformed = |problem| Error::Gguf { path: path.to_owned(), problem };
        if status.len() == 0 {
            return Err(malformed(GgufProblem::Magic { found: Vec::new() }));
        }
        // SAFETY: the map is private to this value and read only. Another process that shortens the file meanwhile can only make
        // a later read end this process with SIGBUS, which is documented above.
        let map = unsafe { Mmap::map(&file) }.in_file("map", path)?;
        let header = GgufHeader::parse(&map).map_err(malformed)?;
        Ok(Self { path: path.to_owned(), map, header })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.header.metadata.iter().find(|(found, _)| found == key).map(|(_, value)| value)
    }

    fn whole_number(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || {
            let problem = GgufProblem::WrongType { key: key.to_owned(), expected: "a whole number", found: value.value_type() };
            Error::Gguf { path: self.path.clone(), problem }
        };
        value.as_u64().map(Some).ok_or_else(wrong)
    }

    /// Which part of a split model it is. Source: gguf 0.19.0 `constants.py`, `Keys.Split`.
    fn split(&self) -> Result<Option<Split>> {
        let (number, count) = (self.whole_number("split.no")?, self.whole_number("split.count")?);
        match (number, count) {
            (_, None | Some(0)) => Ok(None),
            (number, Some(count)) => Ok(Some(Split { number: number.unwrap_or(0).saturating_add(1), count })),
        }
    }

    fn view<'a>(&'a self, entry: &'a GgufEntry) -> GgufView<'a> {
        let GgufEntry { name, tensor_type, shape, range } = entry;
        GgufView { name, tensor_type: *tensor_type, shape, bytes: &self.map[range.clone()] }
    }

    fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = bytes.as_ptr().addr().checked_sub(self.map.as_ptr().addr())?;
        (offset + bytes.len() <= self.map.len() && !bytes.is_empty()).then_some(offset)
    }
}

/// The rest of a name when the part's number is taken off. Source: llama.cpp `llama.cpp`, `llama_split_path`.
fn part_ending(number: u64, count: u64) -> String {
    format!("-{number:05}-of-{count:05}.gguf")
}

/// All parts of the model that `given` is a part of, in order.
fn open_parts(given: Part, split: Split) -> Result<Vec<Part>> {
    let malformed = |problem| Error::Gguf { path: given.path.clone(), problem };
    let Split { number, count } = split;
    let name = given.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(&part_ending(number, count)) else {
        return Err(malformed(GgufProblem::PartName { number, count }));
    };
    let mut parts = Vec::new();
    for expected in 1..=count {
        let file = format!("{stem}{}", part_ending(expected, count));
        let path = given.path.with_file_name(&file);
        if !path.exists() {
            return Err(malformed(GgufProblem::MissingPart { file, count }));
        }
        let part = Part::open(&path)?;
        let found = part.split()?.unwrap_or(Split { number: 1, count: 1 });
        if found != (Split { number: expected, count }) {
            let problem = GgufProblem::OtherPart { expected, count, found: found.number, found_count: found.count };
            return Err(Error::Gguf { path, problem });
        }
        parts.push(part);
    }
    Ok(parts)
}

/// The model in a directory: its only GGUF file, or the first of its only split model.
fn only_model(directory: &Path) -> Result<PathBuf> {
    let mut models = models_in(directory)?;
    match (models.pop(), models.pop()) {
        (Some(only), None) => Ok(only),
        (Some(one), Some(another)) => Err(Error::SeveralGguf { path: directory.to_owned(), found: [another, one] }),
        (None, _) => Err(Error::NoGguf { path: directory.to_owned() }),
    }
}

/// The GGUF files in a directory, in the order of their names; of a split model the first.
fn models_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut models = Vec::new();
    for entry in fs::read_dir(directory).in_file("read", directory)? {
        let path = entry.in_file("read", directory)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(".gguf") && !name.starts_with('.') && !is_later_part(name) && path.is_file() {
            models.push(path);
        }
    }
    models.sort();
    Ok(models)
}

/// True for the second part of a split model and those after it, by the name.
fn is_later_part(name: &str) -> bool {
    let numbers = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-"));
    let number = numbers.filter(|(_, count)| count.parse::<u64>().is_ok()).and_then(|(rest, _)| rest.rsplit_once('-'));
    number.and_then(|(_, number)| number.parse::<u64>().ok()).is_some_and(|number| number > 1)
}
