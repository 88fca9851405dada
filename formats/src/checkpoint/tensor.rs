//! A tensor of a checkpoint, wherever its bytes are.

use std::borrow::Cow;

use crate::dtype::Dtype;

/// A tensor by its Hugging Face name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, the last one contiguous.
    pub shape: &'a [usize],
    /// Its elements, little endian, at whatever address they are: in the mapped file where it holds them like this, else made of it.
    pub bytes: Cow<'a, [u8]>,
}
