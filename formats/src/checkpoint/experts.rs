//! The experts' matrices, as they are stored.

use crate::safetensors::TensorView;

/// The experts' matrices of a layer, as they lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertWeights<'a> {
    /// Plain floats [e, in, out].
    Float(TensorView<'a>),
    /// MXFP4, each matrix as [out, in].
    Mxfp4 {
        /// Bytes [e, out, s, 16].
        blocks: TensorView<'a>,
        /// Bytes [e, out, s].
        scales: TensorView<'a>,
    },
}
