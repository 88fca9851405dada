//! The experts' matrices of a layer on their way, one expert at a time.

use std::borrow::Cow;

use bytemuck::{Pod, pod_collect_to_vec, try_cast_slice};
use ft_quant::Float;
use ft_quant::cuda::CudaError;
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Buffer, Bytes, Output};
use crate::checkpoint::{Checkpoint, ExpertMatrix, ExpertStorage, Projection};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// The scale that stands for no number.
const RESERVED_SCALE: u8 = 255;

/// The experts' matrices of a layer.
#[derive(Clone, Copy)]
pub(crate) struct Matrices<'a> {
    source: &'a Checkpoint,
    /// The model whose scales they start from, if it is not their own.
    hints: Option<&'a Checkpoint>,
    pub(crate) layer: usize,
    pub(crate) projection: Projection,
    pub(crate) experts: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// A packed matrix: blocks [out, s, 16] and scales [out, s].
#[derive(Clone, Copy)]
pub(crate) struct PackedBytes<'a> {
    pub(crate) blocks: &'a [u8],
    pub(crate) scales: &'a [u8],
}

impl<'a> PackedBytes<'a> {
    /// Those of a matrix, if it is packed.
    pub(crate) fn of(matrix: &'a ExpertMatrix<'_>) -> Option<Self> {
        match matrix {
            ExpertMatrix::Mxfp4 { blocks, scales } => Some(Self { blocks, scales }),
            ExpertMatrix::Float { .. } => None,
        }
    }
}

impl<'a> Matrices<'a> {
    /// Those of `source`, with the scales of `hints` to start from, or their own where they have any.
    pub(crate) fn of(source: &'a Checkpoint, hints: Option<&'a Checkpoint>, layer: usize, projection: Projection) -> Self {
        let config = source.config();
        let [inputs, outputs] = projection.dims(config);
        Self { source, hints, layer, projection, experts: config.num_local_experts, inputs, outputs }
    }

    /// Their name in a checkpoint, without the endings of blocks and scales.
    pub(crate) fn name(&self) -> String {
        self.projection.tensor_name(self.layer)
    }

    /// The matrix of one of them. The system is told to read the next one.
    pub(crate) fn expert(&self, expert: usize) -> Result<ExpertMatrix<'a>> {
        self.source.prefetch_expert(self.layer, self.projection, expert + 1);
        self.source.expert(self.layer, self.projection, expert)
    }

    /// The packed matrix of another model whose scales one of them starts from.
    pub(crate) fn hint(&self, expert: usize) -> Result<Option<ExpertMatrix<'a>>> {
        self.hints.map(|model| model.expert(self.layer, self.projection, expert)).transpose()
    }

    /// Puts out all of them as they are.
    ///
    /// # Errors
    /// [`Error::Unpackable`] or [`Error::Packed`] for what stands for no number.
    pub(crate) fn carry_over(&self, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<()> {
        for expert in 0..self.experts {
            let matrix = self.expert(expert)?;
            advance(matrix.len());
            let refused = |error: ft_quant::Error| Failure::Values(error).at(self, expert);
            match matrix {
                ExpertMatrix::Float { dtype, values } => match dtype.first_not_finite(&values) {
                    Some(index) => return Err(refused(ft_quant::Error::NotFinite { index })),
                    None => output.write(self.name(), values.into())?,
                },
                ExpertMatrix::Mxfp4 { blocks, scales } => match scales.iter().position(|&scale| scale == RESERVED_SCALE) {
                    Some(index) => return Err(refused(ft_quant::Error::ReservedScale { index })),
                    None => self.write_packed(blocks.into(), scales.into(), output)?,
                },
            }
        }
        Ok(())
    }

    /// Takes a matrix that was asked for out of this process's memory.
    pub(crate) fn release(&self, matrix: &ExpertMatrix<'_>) {
        let (ExpertMatrix::Float { values: bytes, .. } | ExpertMatrix::Mxfp4 { blocks: bytes, .. }) = matrix;
        self.source.release(bytes);
        if let Some(model) = self.hints {
            model.release(bytes);
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
    /// The error of an expert.
    pub(crate) fn at(self, matrices: &Matrices<'_>, expert: usize) -> Error {
        let error = match self {
            Self::Other(error) => return error,
            Self::Values(error) => error,
        };
        let source = matrices.source;
        match source.expert_storage() {
            ExpertStorage::Float(_) => {
                let tensor = matrices.name();
                Error::Unpackable { path: source.file_of(&tensor).to_owned(), tensor, expert, source: error }
            }
            ExpertStorage::Mxfp4 => {
                let tensor = format!("{}_scales", matrices.name());
                Error::Packed { path: source.file_of(&tensor).to_owned(), tensor, expert, source: error }
            }
        }
    }
}
