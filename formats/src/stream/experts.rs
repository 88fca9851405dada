//! The experts' matrices of a layer on their way, one expert at a time.

use std::borrow::Cow;

use bytemuck::{Pod, pod_collect_to_vec, try_cast_slice};
use ft_quant::Float;
use ft_quant::cuda::CudaError;
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Buffer, Bytes, Output};
use crate::checkpoint::{Checkpoint, ExpertWeights, Projection};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// The experts' matrices of a layer.
#[derive(Clone, Copy)]
pub(crate) struct Matrices<'a> {
    pub(crate) layer: usize,
    pub(crate) projection: Projection,
    pub(crate) experts: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) weights: ExpertWeights<'a>,
    hints: Option<PackedBytes<'a>>,
}

/// Packed matrices: blocks [.., out, s, 16] and scales [.., out, s].
#[derive(Clone, Copy)]
pub(crate) struct PackedBytes<'a> {
    pub(crate) blocks: &'a [u8],
    pub(crate) scales: &'a [u8],
}

/// The matrix of an expert, as it is stored.
#[derive(Clone, Copy)]
pub(crate) enum ExpertBytes<'a> {
    /// Plain floats [in, out].
    Float { dtype: Dtype, bytes: &'a [u8] },
    /// MXFP4 [out, in].
    Mxfp4(PackedBytes<'a>),
}

impl ExpertBytes<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Float { bytes, .. } => bytes.len(),
            Self::Mxfp4(packed) => packed.blocks.len() + packed.scales.len(),
        }
    }
}

impl<'a> Matrices<'a> {
    /// Those of `source`, with the scales of `hints` to start from, or their own where they have any.
    pub(crate) fn of(source: &'a Checkpoint, hints: Option<&'a Checkpoint>, layer: usize, projection: Projection) -> Result<Self> {
        let config = source.config();
        let [inputs, outputs] = projection.dims(config);
        let weights = source.experts(layer, projection)?;
        let packed = match hints {
            Some(hints) => hints.experts(layer, projection)?,
            None => weights,
        };
        let hints = match packed {
            ExpertWeights::Mxfp4 { blocks, scales } => Some(PackedBytes { blocks: blocks.bytes, scales: scales.bytes }),
            ExpertWeights::Float(_) => None,
        };
        Ok(Self { layer, projection, experts: config.num_local_experts, inputs, outputs, weights, hints })
    }

    /// Their name in a checkpoint, without the endings of blocks and scales.
    pub(crate) fn name(&self) -> String {
        self.projection.tensor_name(self.layer)
    }

    /// The matrix of one of them.
    pub(crate) fn expert(&self, expert: usize) -> ExpertBytes<'a> {
        match self.weights {
            ExpertWeights::Float(view) => ExpertBytes::Float { dtype: view.dtype, bytes: self.part(view.bytes, expert) },
            ExpertWeights::Mxfp4 { blocks, scales } => {
                ExpertBytes::Mxfp4(PackedBytes { blocks: self.part(blocks.bytes, expert), scales: self.part(scales.bytes, expert) })
            }
        }
    }

    /// The packed matrix whose scales one of them starts from.
    pub(crate) fn hints(&self, expert: usize) -> Option<PackedBytes<'a>> {
        self.hints
            .map(|PackedBytes { blocks, scales }| PackedBytes { blocks: self.part(blocks, expert), scales: self.part(scales, expert) })
    }

    /// Has the system read the matrix after that of `expert`, where it is large.
    pub(crate) fn prefetch_after(&self, source: &Checkpoint, expert: usize) {
        if let ExpertWeights::Float(view) = self.weights
            && expert + 1 < self.experts
        {
            source.prefetch(self.part(view.bytes, expert + 1));
        }
    }

    /// Room for the blocks and scales of an expert.
    pub(crate) fn packed_buffers(&self, output: &Output<'_>) -> (Buffer, Buffer) {
        let blocks = self.inputs * self.outputs / BLOCK_ELEMENTS;
        (output.pool.take(blocks * BLOCK_BYTES), output.pool.take(blocks))
    }

    /// Puts out the blocks and scales of the next expert.
    pub(crate) fn write_packed<'b>(&self, blocks: Bytes<'b>, scales: Bytes<'b>, output: &Output<'b>) -> Result<()> {
        let name = self.name();
        output.write(format!("{name}_blocks"), blocks)?;
        output.write(format!("{name}_scales"), scales)
    }

    fn part(&self, bytes: &'a [u8], expert: usize) -> &'a [u8] {
        let length = bytes.len() / self.experts;
        &bytes[expert * length..(expert + 1) * length]
    }
}

/// Numbers of a file, which puts them at whatever address it likes.
pub(crate) fn floats<T: Pod>(bytes: &[u8]) -> Cow<'_, [T]> {
    try_cast_slice(bytes).map_or_else(|_| pod_collect_to_vec(bytes).into(), Cow::Borrowed)
}

/// A type that weights are stored in.
pub(crate) trait Stored: Float + Pod {
    const DTYPE: Dtype;

    /// The nearest number, ties to even; infinite where there is none.
    fn nearest(value: f32) -> Self;
}

impl Stored for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    fn nearest(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Stored for f16 {
    const DTYPE: Dtype = Dtype::F16;

    fn nearest(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Stored for f32 {
    const DTYPE: Dtype = Dtype::F32;

    fn nearest(value: f32) -> Self {
        value
    }
}

/// Rounds to the nearest number of another type, ties to even; the first value that is no number, or becomes infinite, is the error.
pub(crate) fn round<T: Float, R: Stored>(values: &[T], rounded: &mut [R]) -> Result<(), ft_quant::Error> {
    let is_finite = rounded.par_iter_mut().zip(values).all(|(rounded, value)| {
        *rounded = R::nearest(value.to_f32());
        rounded.to_f32().is_finite()
    });
    if is_finite {
        return Ok(());
    }
    let index = values.iter().position(|value| !R::nearest(value.to_f32()).to_f32().is_finite()).unwrap_or(0);
    Err(ft_quant::Error::NotFinite { index })
}

/// What can go wrong with an expert, before it is known where it is.
#[derive(Debug)]
pub(crate) enum Failure {
    Values(ft_quant::Error),
    Other(Error),
}

impl From<ft_quant::Error> for Failure {
    fn from(error: ft_quant::Error) -> Self {
        Self::Values(error)
    }
}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Codec(error) => Self::Values(error),
            source => Self::Other(Error::Device { source }),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    /// The error of an expert in `source`.
    pub(crate) fn at(self, source: &Checkpoint, matrices: &Matrices<'_>, expert: usize) -> Error {
        let error = match self {
            Self::Other(error) => return error,
            Self::Values(error) => error,
        };
        let name = matrices.name();
        match matrices.weights {
            ExpertWeights::Float(_) => Error::Unpackable { path: source.file_of(&name).to_owned(), tensor: name, expert, source: error },
            ExpertWeights::Mxfp4 { scales, .. } => {
                Error::Packed { path: source.file_of(scales.name).to_owned(), tensor: scales.name.to_owned(), expert, source: error }
            }
        }
    }
}
