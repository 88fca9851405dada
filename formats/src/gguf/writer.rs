//! Writing: the header first, then each tensor when its bytes are at hand, in any order; in one file or in several.
//!
//! A split model is several files of which each has a header of its own. The first one carries the metadata, all of them say which part
//! they are. Source: llama.cpp `tools/gguf-split/gguf-split.cpp`, `split_strategy`; gguf 0.19.0 `gguf_writer.py`, `add_shard_kv_data`.

mod header;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use header::{ALIGNMENT_KEY, Header};

use super::{DEFAULT_ALIGNMENT, Value};
use crate::error::{Error, InFile, Result};
use crate::output::{PartialFiles, Slots, WriteBehind, sync_file};
use crate::stream::TensorSink;

pub use header::{GgufSpec, TensorProblem};

/// Files of a model at most: their number is kept in 16 bits.
const LIMIT_FILES: usize = u16::MAX as usize;

/// The ending of a file's name.
const ENDING: &str = ".gguf";

/// A GGUF file in the making, or several; dropped, it leaves nothing.
#[derive(Debug)]
pub struct GgufWriter {
    // Before `files`, so that a drop closes them first.
    open: Vec<File>,
    files: PartialFiles,
    /// Where the first of them is.
    partial: PathBuf,
    slots: Slots,
    write_behind: WriteBehind,
}

/// A model in GGUF that is whole and synced, under a hidden name until it is published; it leaves nothing when it is dropped before.
#[derive(Debug)]
pub struct SealedGguf {
    files: PartialFiles,
    bytes: u64,
}

impl SealedGguf {
    /// Where the file is meanwhile, or the first of several beside which the others lie: it can be opened there.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.files.partial(0)
    }

    /// How many files there are.
    #[must_use]
    pub fn num_files(&self) -> usize {
        self.files.len()
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the files appear under their names, which it gives in order.
    ///
    /// Of several the first appears last, so that a set that is not complete cannot be loaded.
    ///
    /// # Errors
    /// [`Error::FileExists`] when something was put in their place meanwhile, [`Error::Io`]; none of the files is there then.
    pub fn publish(self) -> Result<Vec<PathBuf>> {
        self.files.publish()
    }
}

impl GgufWriter {
    /// Begins a file at `path` that will hold `metadata` and `tensors`, both in this order.
    ///
    /// With `split_bytes` a model of more bytes of tensors than that becomes several files NAME-00001-of-0000N.gguf of at most as many,
    /// unless a single tensor has more; `path` is NAME.gguf then. The directory is made. Tensors begin at multiples of
    /// `general.alignment`, or of 32 bytes.
    ///
    /// # Errors
    /// [`Error::FileExists`]; [`Error::Io`]; [`Error::GgufTensor`] for a tensor that cannot be stored so; [`Error::DuplicateTensor`] and
    /// [`Error::DuplicateKey`]; [`Error::GgufAlignment`]; [`Error::TooManySplits`].
    pub fn create(path: &Path, metadata: &[(String, Value)], tensors: &[GgufSpec], split_bytes: Option<u64>) -> Result<Self> {
        let alignment = checked_metadata(path, metadata)?;
        let mut names = HashSet::new();
        if let Some(spec) = tensors.iter().find(|spec| !names.insert(&spec.name)) {
            return Err(Error::DuplicateTensor { tensor: spec.name.clone(), path: path.to_owned() });
        }
        let groups = grouped(tensors, alignment, split_bytes)?;
        let count = groups.len();
        if count > LIMIT_FILES {
            return Err(Error::TooManySplits { path: path.to_owned(), count, limit: LIMIT_FILES });
        }
        // Without this, a name that ends in ".." would have no directory.
        let path = std::path::absolute(path).in_file("create", path)?;
        let targets = (0..count).map(|index| if count == 1 { path.clone() } else { split_path(&path, index, count) }).collect();
        let files = PartialFiles::create(&path, targets)?;
        let partial = files.partial(0);
        let (slots, write_behind) = (Slots::default(), WriteBehind::default());
        let mut writer = Self { open: Vec::new(), files, partial, slots, write_behind };
        for (index, group) in groups.iter().enumerate() {
            let keys = if count > 1 { split_keys(index, count, tensors.len()).to_vec() } else { Vec::new() };
            let metadata = if index == 0 { metadata } else { &[] };
            writer.begin_file(index, &Header::new(&[metadata, &keys], group, alignment)?)?;
        }
        Ok(writer)
    }

    fn begin_file(&mut self, index: usize, header: &Header) -> Result<()> {
        let path = self.files.partial(index);
        let file = File::create_new(&path).in_file("create", &path)?;
        file.write_all_at(&header.bytes, 0).in_file("write", &path)?;
        // What pads the tensors is never written, and reads as zeros.
        file.set_len(header.file_bytes).in_file("write", &path)?;
        header.tensors.iter().for_each(|(name, range)| self.slots.add(name, index, range));
        self.open.push(file);
        Ok(())
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.slots.total_bytes()
    }

    /// Writes the whole of a tensor.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::UnknownTensor`] for a name that was not announced; [`Error::WrittenLength`] when `bytes` is not what
    /// the tensor still lacks.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.slots.check_rest(name, bytes.len(), self.files.target(0))?;
        self.write_chunk(name, bytes)
    }

    /// Writes the next bytes of a tensor that comes in pieces.
    ///
    /// # Errors
    /// As [`GgufWriter::write`], with [`Error::WrittenLength`] when the tensor would become too long.
    pub fn write_chunk(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let place = self.slots.next(name, bytes.len(), self.files.target(0))?;
        let file = &self.open[place.file];
        let written = file.write_all_at(bytes, place.offset);
        written.map_err(|source| Error::Io { action: "write", path: self.files.partial(place.file), source })?;
        self.write_behind.advance(file, bytes.len() as u64);
        self.slots.advance(place, bytes.len());
        Ok(())
    }

    /// Syncs the files; all that is left to do then is to publish them.
    ///
    /// # Errors
    /// [`Error::WrittenLength`] for the first tensor that is not whole, [`Error::Io`].
    pub fn seal(self) -> Result<SealedGguf> {
        self.slots.check_whole(self.files.target(0))?;
        let mut bytes = 0;
        for (index, file) in self.open.iter().enumerate() {
            let path = self.files.partial(index);
            sync_file(file, &path)?;
            bytes += file.metadata().in_file("read", &path)?.len();
        }
        Ok(SealedGguf { files: self.files, bytes })
    }
}

impl TensorSink for GgufWriter {
    fn partial_path(&self) -> &Path {
        &self.partial
    }

    fn write_chunk(&mut self, tensor: &str, bytes: &[u8]) -> Result<()> {
        Self::write_chunk(self, tensor, bytes)
    }
}

/// The alignment that the metadata asks for; no key may stand twice.
fn checked_metadata(path: &Path, metadata: &[(String, Value)]) -> Result<u64> {
    let mut keys = HashSet::new();
    if let Some((key, _)) = metadata.iter().find(|(key, _)| !keys.insert(key)) {
        return Err(Error::DuplicateKey { path: path.to_owned(), key: key.clone() });
    }
    match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, Value::U32(alignment))) if alignment.is_power_of_two() && (8..=1 << 16).contains(alignment) => Ok((*alignment).into()),
        Some((key, _)) => Err(Error::GgufAlignment { key: key.clone() }),
    }
}

/// `tensors` in order, cut into files; one file at least.
fn grouped(tensors: &[GgufSpec], alignment: u64, split_bytes: Option<u64>) -> Result<Vec<&[GgufSpec]>> {
    let Some(split_bytes) = split_bytes else { return Ok(vec![tensors]) };
    let (mut groups, mut begin, mut bytes) = (Vec::new(), 0, 0_u64);
    for (index, spec) in tensors.iter().enumerate() {
        let more = spec.byte_length()?.next_multiple_of(alignment);
        bytes = bytes.saturating_add(more);
        if bytes > split_bytes && index > begin {
            groups.push(&tensors[begin..index]);
            (begin, bytes) = (index, more);
        }
    }
    groups.push(&tensors[begin..]);
    Ok(groups)
}

/// The name of part `index` of `count`. Source: llama.cpp `llama_split_path`: "%s-%05d-of-%05d.gguf", from 1.
fn split_path(path: &Path, index: usize, count: usize) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(ENDING).unwrap_or(&name);
    path.with_file_name(format!("{stem}-{:05}-of-{count:05}{ENDING}", index + 1))
}

/// What a part says about itself. Source: llama.cpp `src/llama-arch.cpp`, `LLM_KV_SPLIT_*`; the types are those of gguf-split.
fn split_keys(index: usize, count: usize, num_tensors: usize) -> [(String, Value); 3] {
    // Both numbers are at most LIMIT_FILES, and a model has at most 4096 layers.
    let part = |number: usize| Value::U16(u16::try_from(number).unwrap_or(u16::MAX));
    let num_tensors = i32::try_from(num_tensors).unwrap_or(i32::MAX);
    [
        ("split.no".to_owned(), part(index)),
        ("split.count".to_owned(), part(count)),
        ("split.tensors.count".to_owned(), Value::I32(num_tensors)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Array, TensorProblem, TensorType};
    use std::fs;

    fn spec(name: &str, tensor_type: TensorType, shape: &[usize]) -> GgufSpec {
        GgufSpec { name: name.to_owned(), tensor_type, shape: shape.to_vec() }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// Every byte of a small file, from the specification.
    #[test]
    fn a_file_is_as_the_specification_says() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("small.gguf");
        let metadata = [
            ("general.architecture".to_owned(), Value::String("gpt-oss".to_owned())),
            ("a".to_owned(), Value::Array(Array::I32(vec![1, -2]))),
            ("b".to_owned(), Value::Array(Array::String(vec![String::new(), "x".to_owned()]))),
            ("c".to_owned(), Value::Bool(true)),
        ];
        let tensors = [spec("one.weight", TensorType::F16, &[3]), spec("two.weight", TensorType::Mxfp4, &[2, 1, 64])];
        let mut writer = GgufWriter::create(&path, &metadata, &tensors, Some(1 << 40)).unwrap();
        assert_eq!(writer.total_bytes(), 6 + 68);
        let packed: Vec<u8> = (0..68).collect();
        writer.write_chunk("two.weight", &packed[..10]).unwrap();
        writer.write("one.weight", &[1, 2, 3, 4, 5, 6]).unwrap();
        writer.write_chunk("two.weight", &packed[10..]).unwrap();
        let sealed = writer.seal().unwrap();
        assert_eq!(names(root.path()), [".small.gguf.partial"]);
        assert_eq!(sealed.path(), root.path().join(".small.gguf.partial/small.gguf"));
        let bytes = fs::read(sealed.path()).unwrap();
        assert_eq!(sealed.bytes(), bytes.len() as u64);
        assert_eq!(sealed.publish().unwrap(), std::slice::from_ref(&path));
        assert_eq!(names(root.path()), ["small.gguf"]);
        let word = |number: u32| number.to_le_bytes().to_vec();
        let wide = |number: u64| number.to_le_bytes().to_vec();
        let mut expected = [
            b"GGUF".to_vec(),
            word(3),
            wide(2),
            wide(4),
            [string("general.architecture"), word(8), string("gpt-oss")].concat(),
            [string("a"), word(9), word(5), wide(2), word(1), (-2_i32).to_le_bytes().to_vec()].concat(),
            [string("b"), word(9), word(8), wide(2), wide(0), string("x")].concat(),
            [string("c"), word(7), vec![1]].concat(),
            [string("one.weight"), word(1), wide(3), word(1), wide(0)].concat(),
            [string("two.weight"), word(3), wide(64), wide(1), wide(2), word(39), wide(32)].concat(),
        ]
        .concat();
        expected.resize(expected.len().next_multiple_of(32), 0);
        expected.extend([1, 2, 3, 4, 5, 6]);
        expected.resize(expected.len().next_multiple_of(32), 0);
        expected.extend(packed);
        expected.resize(expected.len().next_multiple_of(32), 0);
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn parts_are_as_large_as_allowed_and_say_which_they_are() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.b.gguf");
        let sizes = [40, 8, 8, 100, 1].into_iter().enumerate();
        let tensors: Vec<GgufSpec> = sizes.clone().map(|(index, size)| spec(&format!("t{index}"), TensorType::F32, &[size])).collect();
        let metadata = [("general.alignment".to_owned(), Value::U32(64))];
        let mut writer = GgufWriter::create(&path, &metadata, &tensors, Some(256)).unwrap();
        for (index, size) in sizes {
            writer.write(&format!("t{index}"), &vec![index as u8 + 1; 4 * size]).unwrap();
        }
        let published = writer.seal().unwrap().publish().unwrap();
        let expected = [1, 2, 3, 4].map(|part| format!("a.b-0000{part}-of-00004.gguf"));
        assert_eq!(names(root.path()), expected);
        assert_eq!(published, expected.map(|name| root.path().join(name)));
        let files: Vec<Vec<u8>> = published.iter().map(|path| fs::read(path).unwrap()).collect();
        // 160 and 32 bytes take 192 + 64. The next 32 do not fit, the 400 go with nothing.
        let counts: Vec<(u8, u8)> = files.iter().map(|bytes| (bytes[8], bytes[16])).collect();
        assert_eq!(counts, [(2, 4), (1, 3), (1, 3), (1, 3)]);
        for (index, bytes) in files.iter().enumerate() {
            let key =
                |name: &str, value_type: u32, value: &[u8]| [string(name), value_type.to_le_bytes().to_vec(), value.to_vec()].concat();
            let keys =
                [key("split.no", 2, &[index as u8, 0]), key("split.count", 2, &[4, 0]), key("split.tensors.count", 5, &[5, 0, 0, 0])];
            let keys = keys.concat();
            assert!(bytes.windows(keys.len()).any(|window| window == keys), "{index}");
            assert_eq!(bytes.len() % 64, 0);
        }
        assert_eq!(files[1][files[1].len() - 64..][..32], [3; 32]);
        assert_eq!(files[3][files[3].len() - 64..][..5], [5, 5, 5, 5, 0]);
    }

    #[test]
    fn what_is_not_whole_is_refused_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.gguf");
        let tensors = [spec("t", TensorType::F32, &[2, 3])];
        let create = || GgufWriter::create(&path, &[], &tensors, None);
        let mut writer = create().unwrap();
        assert!(matches!(writer.write("t", &[0; 23]), Err(Error::WrittenLength { expected: 24, found: 23, .. })));
        assert!(matches!(writer.write_chunk("t", &[0; 25]), Err(Error::WrittenLength { expected: 24, found: 25, .. })));
        assert!(matches!(writer.write("u", &[0; 24]), Err(Error::UnknownTensor { .. })));
        writer.write_chunk("t", &[0; 20]).unwrap();
        assert!(matches!(writer.seal(), Err(Error::WrittenLength { expected: 24, found: 20, .. })));
        assert_eq!(names(root.path()), Vec::<String>::new());
        drop(create().unwrap());
        assert_eq!(names(root.path()), Vec::<String>::new());
        fs::write(&path, "mine").unwrap();
        assert!(matches!(create(), Err(Error::FileExists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn what_makes_no_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let create = |metadata: &[(&str, Value)], tensors: &[GgufSpec], split_bytes| {
            let metadata: Vec<(String, Value)> = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
            GgufWriter::create(&root.path().join("x.gguf"), &metadata, tensors, split_bytes).unwrap_err()
        };
        let twice = [spec("t", TensorType::F32, &[1]), spec("t", TensorType::F32, &[2])];
        assert!(matches!(create(&[], &twice, None), Error::DuplicateTensor { .. }));
        assert!(matches!(create(&[("a", Value::U8(1)), ("a", Value::U8(1))], &[], None), Error::DuplicateKey { .. }));
        for alignment in [Value::U32(0), Value::U32(48), Value::U32(4), Value::U64(32), Value::U32(1 << 17)] {
            assert!(matches!(create(&[("general.alignment", alignment)], &[], None), Error::GgufAlignment { .. }));
        }
        for (name, tensor_type, shape, expected) in [
            ("t", TensorType::Mxfp4, vec![2, 48], TensorProblem::PartialBlock { block: 32, row: 48 }),
            ("t", TensorType::F32, vec![1 << 40, 1 << 40], TensorProblem::TooLarge),
            ("t", TensorType::F32, vec![1; 5], TensorProblem::Dimensions { found: 5 }),
            ("t", TensorType::F32, vec![], TensorProblem::Dimensions { found: 0 }),
            ("t", TensorType::F32, vec![0, 3], TensorProblem::Empty),
            (&"n".repeat(64), TensorType::F32, vec![1], TensorProblem::Name { bytes: 64 }),
        ] {
            let Error::GgufTensor { problem, .. } = create(&[], &[spec(name, tensor_type, &shape)], None) else { panic!("{name}") };
            assert_eq!(problem, expected);
        }
        let many: Vec<GgufSpec> = (0..70_000).map(|index| spec(&index.to_string(), TensorType::F32, &[1])).collect();
        assert!(matches!(create(&[], &many, Some(1)), Error::TooManySplits { count: 70_000, .. }));
        assert_eq!(names(root.path()), Vec::<String>::new());
    }
}
