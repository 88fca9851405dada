//! The experts' matrices, all of a layer or one at a time.

use std::borrow::Cow;

use super::CheckpointTensor;
use crate::dtype::Dtype;

/// The experts' matrices of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpertWeights<'a> {
    /// Plain floats [e, in, out].
    Float(CheckpointTensor<'a>),
    /// MXFP4, each matrix as [out, in].
    Mxfp4 {
        /// Bytes [e, out, s, 16].
        blocks: CheckpointTensor<'a>,
        /// Bytes [e, out, s].
        scales: CheckpointTensor<'a>,
    },
}

/// The matrix of one expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpertMatrix<'a> {
    /// Plain floats [in, out].
    Float {
        /// Type of the elements.
        dtype: Dtype,
        /// The elements, little endian, at whatever address they are.
        values: Cow<'a, [u8]>,
    },
    /// MXFP4, the matrix as [out, in].
    Mxfp4 {
        /// Bytes [out, s, 16].
        blocks: Cow<'a, [u8]>,
        /// Bytes [out, s].
        scales: Cow<'a, [u8]>,
    },
}

impl ExpertMatrix<'_> {
    /// Its bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Float { values, .. } => values.len(),
            Self::Mxfp4 { blocks, scales } => blocks.len() + scales.len(),
        }
    }
}
