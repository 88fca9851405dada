//! Tensors on their way from one file to another: what is converted next overlaps with the writing of what was converted before.

mod buffer;
mod carry_over;
mod experts;
mod output;

use std::path::Path;

use crate::error::Result;

pub(crate) use buffer::Buffer;
pub(crate) use carry_over::{Part, carry_over, parts, piece};
pub(crate) use experts::{Failure, Matrices, PackedBytes, Stored, floats, round};
pub(crate) use output::{Bytes, Output, in_background};

/// Takes the bytes of tensors, in pieces.
pub(crate) trait TensorSink: Send {
    /// Where the bytes go, for messages.
    fn partial_path(&self) -> &Path;

    /// Writes the next bytes of a tensor.
    fn write_chunk(&mut self, tensor: &str, bytes: &[u8]) -> Result<()>;
}
