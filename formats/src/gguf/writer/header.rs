//! The header of a file: counts, metadata, and where each tensor is.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gguf::{Array, MAGIC, TensorType, VERSION, Value, ValueType};

/// The key that says where tensors begin.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// Dimensions of a tensor at most. Source: ggml `ggml.h`, `GGML_MAX_DIMS`.
const LIMIT_DIMENSIONS: usize = 4;

/// Bytes of a tensor's name at most. Source: ggml `ggml.h`, `GGML_MAX_NAME`, less the zero that ends it.
const LIMIT_NAME_BYTES: usize = 63;

/// Name, type and shape of a tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufSpec {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub tensor_type: TensorType,
    /// Its dimensions, the last one contiguous; the file lists them the other way round.
    pub shape: Vec<usize>,
}

/// Why a tensor cannot be stored in GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// Its rows are no whole number of blocks.
    #[error("a block holds {block} elements, which do not divide a row of {row}")]
    PartialBlock {
        /// Elements of a block.
        block: u64,
        /// Elements of a row.
        row: usize,
    },
    /// It has no elements.
    #[error("it has no elements")]
    Empty,
    /// It is too large for any file.
    #[error("it exceeds 2^63 bytes")]
    TooLarge,
    /// It has none or too many dimensions.
    #[error("it has {found} dimensions, and 1 to 4 are allowed")]
    Dimensions {
        /// How many it has.
        found: usize,
    },
    /// Its name is too long for ggml.
    #[error("its name takes {bytes} bytes, and 63 are allowed")]
    Name {
        /// Bytes of the name.
        bytes: usize,
    },
}

impl GgufSpec {
    /// Bytes of the tensor.
    ///
    /// # Errors
    /// [`Error::GgufTensor`] when it cannot be stored so.
    pub fn byte_length(&self) -> Result<u64> {
        let problem = match (&self.shape[..], self.tensor_type.byte_length(&self.shape)) {
            _ if self.name.len() > LIMIT_NAME_BYTES => TensorProblem::Name { bytes: self.name.len() },
            (shape, _) if shape.is_empty() || shape.len() > LIMIT_DIMENSIONS => TensorProblem::Dimensions { found: shape.len() },
            (shape, _) if shape.contains(&0) => TensorProblem::Empty,
            (_, Some(bytes)) => return Ok(bytes),
            (&[.., row], None) if !(row as u64).is_multiple_of(self.tensor_type.block_elements()) => {
                TensorProblem::PartialBlock { block: self.tensor_type.block_elements(), row }
            }
            _ => TensorProblem::TooLarge,
        };
        Err(self.refused(problem))
    }

    fn refused(&self, problem: TensorProblem) -> Error {
        Error::GgufTensor { tensor: self.name.clone(), shape: self.shape.clone(), tensor_type: self.tensor_type, problem }
    }
}

/// A header with the places that it gives to the tensors.
pub(super) struct Header {
    /// Its bytes, up to where the first tensor begins.
    pub(super) bytes: Vec<u8>,
    /// Name and bytes of each tensor, counted from the start of the file.
    pub(super) tensors: Vec<(String, Range<u64>)>,
    /// Length of the whole file.
    pub(super) file_bytes: u64,
}

impl Header {
    /// The header of a file that holds `metadata`, one list after the other, and `tensors`. Source: the GGUF specification, "File Structure".
    pub(super) fn new(metadata: &[&[(String, Value)]], tensors: &[GgufSpec], alignment: u64) -> Result<Self> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((metadata.iter().map(|keys| keys.len()).sum::<usize>() as u64).to_le_bytes());
        for (key, value) in metadata.iter().copied().flatten() {
            put_string(&mut bytes, key);
            bytes.extend(value.value_type().number().to_le_bytes());
            put_value(&mut bytes, value);
        }
        let mut end = 0_u64;
        let mut places = Vec::with_capacity(tensors.len());
        for spec in tensors {
            let too_large = || spec.refused(TensorProblem::TooLarge);
            let length = spec.byte_length()?;
            put_string(&mut bytes, &spec.name);
            // At most LIMIT_DIMENSIONS.
            bytes.extend((spec.shape.len() as u32).to_le_bytes());
            spec.shape.iter().rev().for_each(|&size| bytes.extend((size as u64).to_le_bytes()));
            bytes.extend(spec.tensor_type.number().to_le_bytes());
            bytes.extend(end.to_le_bytes());
            places.push((spec.name.clone(), end..end + length));
            // Half of the range is left for the header.
            let padded = (end + length).checked_next_multiple_of(alignment);
            end = padded.filter(|&end| end <= i64::MAX.unsigned_abs()).ok_or_else(too_large)?;
        }
        let start = (bytes.len() as u64).next_multiple_of(alignment);
        // No more than the bytes and an alignment.
        bytes.resize(start as usize, 0);
        let place = |(name, range): (String, Range<u64>)| (name, start + range.start..start + range.end);
        Ok(Self { bytes, tensors: places.into_iter().map(place).collect(), file_bytes: start + end })
    }
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => bytes.push(*value),
        Value::I8(value) => bytes.extend(value.to_le_bytes()),
        Value::U16(value) => bytes.extend(value.to_le_bytes()),
        Value::I16(value) => bytes.extend(value.to_le_bytes()),
        Value::U32(value) => bytes.extend(value.to_le_bytes()),
        Value::I32(value) => bytes.extend(value.to_le_bytes()),
        Value::F32(value) => bytes.extend(value.to_le_bytes()),
        Value::Bool(value) => bytes.push(u8::from(*value)),
        Value::String(text) => put_string(bytes, text),
        Value::Array(array) => put_array(bytes, array),
        Value::U64(value) => bytes.extend(value.to_le_bytes()),
        Value::I64(value) => bytes.extend(value.to_le_bytes()),
        Value::F64(value) => bytes.extend(value.to_le_bytes()),
    }
}

fn put_array(bytes: &mut Vec<u8>, array: &Array) {
    debug_assert_ne!(array.element_type(), ValueType::Array);
    bytes.extend(array.element_type().number().to_le_bytes());
    bytes.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(values) => bytes.extend(values),
        Array::I8(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U16(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I16(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::Bool(values) => bytes.extend(values.iter().map(|&value| u8::from(value))),
        Array::String(values) => values.iter().for_each(|text| put_string(bytes, text)),
        Array::U64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
    }
}
