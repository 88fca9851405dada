//! The safetensors container: a strict reader over a memory map, and a streaming writer.
//!
//! A file is the length of a header, the header in JSON, and the bytes of the tensors without a gap. The reader accepts what the format's
//! specification allows and nothing else; in particular no byte of the file is outside the header and the tensors, and no name stands twice.
//!
//! Source: <https://github.com/huggingface/safetensors>, README, section "Format".

mod file;
mod header;
#[cfg(test)]
mod malformed;
#[cfg(test)]
mod round_trip;
mod writer;

pub use file::{SafetensorsFile, TensorView};
pub use header::HeaderProblem;
pub use writer::SafetensorsWriter;

use crate::dtype::Dtype;

/// Name, type and shape of a tensor that is to be written, or expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, the last one contiguous.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of the tensor, or `None` when they exceed 2^63 or do not end on a byte.
    #[must_use]
    pub fn byte_length(&self) -> Option<u64> {
        self.dtype.byte_length(&self.shape)
    }
}
