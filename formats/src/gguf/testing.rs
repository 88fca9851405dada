//! Files built by hand, right or wrong.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Array, TensorType, Value};

/// A tensor for [`File`]; dimensions in the order of the file, the contiguous one first.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) number: u32,
    /// Counted from the first tensor's; `None` for the next aligned place.
    pub(crate) offset: Option<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// A file in parts, each of which can be made wrong.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    /// Key, number of the type, and bytes of the value.
    pub(crate) pairs: Vec<(String, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<Listed>,
    /// Instead of the true numbers of tensors and of keys.
    pub(crate) counts: Option<[u64; 2]>,
    /// After the last tensor and its padding.
    pub(crate) tail: Vec<u8>,
}

impl Default for File {
    fn default() -> Self {
        Self { version: 3, alignment: 32, pairs: Vec::new(), tensors: Vec::new(), counts: None, tail: Vec::new() }
    }
}

impl File {
    pub(crate) fn with(mut self, key: &str, value: &Value) -> Self {
        self.pairs.push((key.to_owned(), value.value_type().number(), value_bytes(value)));
        self
    }

    pub(crate) fn with_raw(mut self, key: &str, number: u32, bytes: &[u8]) -> Self {
        self.pairs.push((key.to_owned(), number, bytes.to_vec()));
        self
    }

    /// Adds a tensor of `shape`, the last dimension contiguous.
    pub(crate) fn with_tensor(mut self, name: &str, tensor_type: TensorType, shape: &[usize], bytes: &[u8]) -> Self {
        let dims = shape.iter().rev().map(|&size| size as u64).collect();
        self.tensors.push(Listed { name: name.to_owned(), dims, number: tensor_type.number(), offset: None, bytes: bytes.to_vec() });
        self
    }

    pub(crate) fn with_listed(mut self, listed: Listed) -> Self {
        self.tensors.push(listed);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        let [num_tensors, num_pairs] = self.counts.unwrap_or([self.tensors.len() as u64, self.pairs.len() as u64]);
        bytes.extend(num_tensors.to_le_bytes());
        bytes.extend(num_pairs.to_le_bytes());
        for (key, number, value) in &self.pairs {
            bytes.extend(string(key));
            bytes.extend(number.to_le_bytes());
            bytes.extend(value);
        }
        let mut end = 0u64;
        for tensor in &self.tensors {
            bytes.extend(string(&tensor.name));
            bytes.extend(u32::try_from(tensor.dims.len()).unwrap().to_le_bytes());
            tensor.dims.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(tensor.number.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(end).to_le_bytes());
            end = (end + tensor.bytes.len() as u64).next_multiple_of(self.alignment as u64);
        }
        for tensor in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(&tensor.bytes);
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.tail);
        bytes
    }

    pub(crate) fn write(&self, path: &Path) -> PathBuf {
        fs::write(path, self.bytes()).unwrap();
        path.to_owned()
    }
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn value_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::U8(value) => vec![*value],
        Value::I8(value) => value.to_le_bytes().to_vec(),
        Value::U16(value) => value.to_le_bytes().to_vec(),
        Value::I16(value) => value.to_le_bytes().to_vec(),
        Value::U32(value) => value.to_le_bytes().to_vec(),
        Value::I32(value) => value.to_le_bytes().to_vec(),
        Value::F32(value) => value.to_le_bytes().to_vec(),
        Value::Bool(value) => vec![u8::from(*value)],
        Value::String(text) => string(text),
        Value::Array(array) => {
            let head = [&array.element_type().number().to_le_bytes()[..], &(array.len() as u64).to_le_bytes()].concat();
            [head, array_bytes(array)].concat()
        }
        Value::U64(value) => value.to_le_bytes().to_vec(),
        Value::I64(value) => value.to_le_bytes().to_vec(),
        Value::F64(value) => value.to_le_bytes().to_vec(),
    }
}

fn array_bytes(array: &Array) -> Vec<u8> {
    match array {
        Array::U8(values) => values.clone(),
        Array::I8(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Array::U16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Array::I16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Array::U32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Array::I32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Array::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Array::Bool(values) => values.iter().map(|&value| u8::from(value)).collect(),
        Array::String(values) => values.iter().flat_map(|value| string(value)).collect(),
        Array::U64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Array::I64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Array::F64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}
