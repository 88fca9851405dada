//! The conversion: tensor by tensor, the experts' matrices expert by expert.

use std::borrow::Cow;

use bytemuck::{Pod, pod_collect_to_vec, try_cast_slice};
use ft_quant::cuda::CudaError;
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};
use ft_quant::{Accuracy, Codec, Float};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{ExpertTarget, TensorReport};
use crate::checkpoint::{Checkpoint, CheckpointTensor, ExpertMatrix, ExpertStorage, Projection};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::stream::{Buffer, Bytes, Output};

/// Bytes of a tensor that are carried over together.
const PIECE_BYTES: usize = 16 << 20;

/// What is converted, and how.
pub(super) struct Conversion<'a> {
    pub(super) source: &'a Checkpoint,
    pub(super) hints: Option<&'a Checkpoint>,
    pub(super) to: ExpertTarget,
    pub(super) codec: &'a Codec,
}

/// The experts' matrices of a layer.
#[derive(Clone, Copy)]
struct Matrices {
    layer: usize,
    projection: Projection,
    experts: usize,
    inputs: usize,
    outputs: usize,
}

/// The packed matrices that scales are taken from.
#[derive(Clone, Copy)]
struct Hints<'a> {
    blocks: &'a [u8],
    scales: &'a [u8],
}

impl<'a> Conversion<'a> {
    /// Puts out every tensor of the result and says what became of the experts' matrices.
    pub(super) fn run(&self, output: &Output<'a>, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<TensorReport>> {
        let total = self.source.total_bytes();
        let mut done = 0;
        let mut advance = |bytes: usize| {
            done += bytes as u64;
            progress(done, total);
        };
        let mut tensors = Vec::new();
        let mut matrices = self.source.expert_matrices().peekable();
        for spec in self.source.specs() {
            match matrices.peek() {
                Some(&(layer, projection)) if spec.name.strip_prefix(&projection.tensor_name(layer)).is_some_and(is_weights) => {
                    // Blocks and scales are converted when the first of them comes.
                    if !spec.name.ends_with("_scales") {
                        let accuracy = self.convert(&self.matrices(layer, projection), output, &mut advance)?;
                        tensors.push(TensorReport { layer, projection, accuracy });
                    }
                    if !spec.name.ends_with("_blocks") {
                        matrices.next();
                    }
                }
                _ => self.carry_over(self.source.tensor(&spec.name)?, output, &mut advance)?,
            }
        }
        Ok(tensors)
    }

    /// Puts out a tensor as it is.
    fn carry_over(&self, tensor: CheckpointTensor<'a>, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<()> {
        let CheckpointTensor { name, dtype, bytes: all, .. } = tensor;
        for start in (0..all.len()).step_by(PIECE_BYTES) {
            let range = start..all.len().min(start + PIECE_BYTES);
            let piece = &all[range.clone()];
            if let Some(index) = dtype.first_not_finite(piece) {
                let index = start / dtype.size() + index;
                return Err(Error::NotFinite { tensor: name.to_owned(), path: self.source.file_of(name).to_owned(), index });
            }
            advance(piece.len());
            let bytes = match all {
                Cow::Borrowed(mapped) => Bytes::Mapped(&mapped[range]),
                Cow::Owned(_) => {
                    let mut copy = output.pool.take(piece.len());
                    copy.copy_from_slice(piece);
                    Bytes::New(copy)
                }
            };
            output.write(name.to_owned(), bytes)?;
        }
        Ok(())
    }

    fn matrices(&self, layer: usize, projection: Projection) -> Matrices {
        let config = self.source.config();
        let [inputs, outputs] = projection.dims(config);
        Matrices { layer, projection, experts: config.num_local_experts, inputs, outputs }
    }

    fn convert(&self, matrices: &Matrices, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<Accuracy> {
        let &Matrices { layer, projection, experts, .. } = matrices;
        let mut total = Accuracy::default();
        for expert in 0..experts {
            let matrix = self.source.expert(layer, projection, expert)?;
            let given = self.hints.map(|model| model.expert(layer, projection, expert)).transpose()?;
            let hints = match given.as_ref().unwrap_or(&matrix) {
                ExpertMatrix::Mxfp4 { blocks, scales } => Some(Hints { blocks, scales }),
                ExpertMatrix::Float { .. } => None,
            };
            let (bytes, accuracy) = match &matrix {
                ExpertMatrix::Float { dtype, values } => {
                    self.source.prefetch_expert(layer, projection, expert + 1);
                    let converted = match dtype {
                        Dtype::F32 => self.convert_floats::<f32>(matrices, values, hints, output),
                        Dtype::F16 => self.convert_floats::<f16>(matrices, values, hints, output),
                        _ => self.convert_floats::<bf16>(matrices, values, hints, output),
                    };
                    self.source.release(values);
                    (values.len(), converted)
                }
                ExpertMatrix::Mxfp4 { blocks, scales } => {
                    let converted = self.convert_mxfp4(matrices, blocks, scales, hints, output);
                    self.source.release(blocks);
                    (blocks.len() + scales.len(), converted)
                }
            };
            let accuracy = accuracy.map_err(|failure| failure.at(self.source, matrices, expert))?;
            if let (Some(hints), Some(model)) = (hints, self.hints) {
                model.release(hints.blocks);
            }
            total = total + accuracy;
            advance(bytes);
        }
        Ok(total)
    }

    /// Converts the plain matrix of an expert.
    fn convert_floats<T: Float + Pod>(
        &self,
        matrices: &Matrices,
        bytes: &[u8],
        hints: Option<Hints<'_>>,
        output: &Output<'a>,
    ) -> Result<Accuracy, Failure> {
        // A file puts its tensors at whatever address it likes.
        let values: Cow<'_, [T]> = try_cast_slice(bytes).map_or_else(|_| pod_collect_to_vec(bytes).into(), Cow::Borrowed);
        let name = matrices.projection.tensor_name(matrices.layer);
        match self.to {
            ExpertTarget::Mxfp4(packing) => {
                let (mut blocks, mut scales) = Self::packed_buffers(matrices, output);
                let hint_scales = hints.map(|hints| hints.scales);
                self.codec.pack_transposed(&values, matrices.outputs, packing, hint_scales, &mut blocks, &mut scales)?;
                let mut accuracy = Accuracy::of_transposed(&values, matrices.outputs, &blocks, &scales)?;
                if let Some(hints) = hints {
                    accuracy.compare(&blocks, &scales, hints.blocks, hints.scales)?;
                }
                write_packed(name, blocks, scales, output)?;
                Ok(accuracy)
            }
            ExpertTarget::Bf16 => {
                let mut rounded = output.pool.take(values.len() * size_of::<bf16>());
                round(&values, rounded.as_bf16_mut())?;
                let accuracy = Accuracy::of_floats(&values, rounded.as_bf16())?;
                output.write(name, Bytes::New(rounded))?;
                Ok(accuracy)
            }
        }
    }

    /// Converts the packed matrix of an expert.
    fn convert_mxfp4(
        &self,
        matrices: &Matrices,
        blocks: &[u8],
        scales: &[u8],
        hints: Option<Hints<'_>>,
        output: &Output<'a>,
    ) -> Result<Accuracy, Failure> {
        let mut unpacked = output.pool.take(blocks.len() * 2 * size_of::<bf16>());
        let values = unpacked.as_bf16_mut();
        let name = matrices.projection.tensor_name(matrices.layer);
        match self.to {
            ExpertTarget::Mxfp4(packing) => {
                self.codec.unpack(blocks, scales, values)?;
                let (mut new_blocks, mut new_scales) = Self::packed_buffers(matrices, output);
                self.codec.pack(values, packing, hints.map(|hints| hints.scales), &mut new_blocks, &mut new_scales)?;
                let mut accuracy = Accuracy::of(values, &new_blocks, &new_scales)?;
                accuracy.compare(&new_blocks, &new_scales, blocks, scales)?;
                write_packed(name, new_blocks, new_scales, output)?;
                output.pool.give_back(unpacked);
                Ok(accuracy)
            }
            ExpertTarget::Bf16 => {
                self.codec.unpack_transposed(blocks, scales, matrices.outputs, values)?;
                output.write(name, Bytes::New(unpacked))?;
                let accuracy = Accuracy::of_unpacked(blocks, scales)?;
                Ok(accuracy)
            }
        }
    }

    fn packed_buffers(matrices: &Matrices, output: &Output<'a>) -> (Buffer, Buffer) {
        let blocks = matrices.inputs * matrices.outputs / BLOCK_ELEMENTS;
        (output.pool.take(blocks * BLOCK_BYTES), output.pool.take(blocks))
    }
}

/// Whether what follows the name of the experts' matrices makes it that of their weights.
fn is_weights(ending: &str) -> bool {
    matches!(ending, "" | "_blocks" | "_scales")
}

fn write_packed(name: String, blocks: Buffer, scales: Buffer, output: &Output<'_>) -> Result<()> {
    output.write(format!("{name}_blocks"), Bytes::New(blocks))?;
    output.write(format!("{name}_scales"), Bytes::New(scales))
}

/// Rounds to the nearest bf16, ties to even; the first value that is no number, or becomes infinite, is the error.
fn round<T: Float>(values: &[T], rounded: &mut [bf16]) -> Result<(), ft_quant::Error> {
    let is_finite = rounded.par_iter_mut().zip(values).all(|(rounded, value)| {
        *rounded = bf16::from_f32(value.to_f32());
        rounded.is_finite()
    });
    if is_finite {
        return Ok(());
    }
    let index = values.iter().position(|value| !bf16::from_f32(value.to_f32()).is_finite()).unwrap_or(0);
    Err(ft_quant::Error::NotFinite { index })
}

/// What can go wrong with an expert, before it is known where it is.
enum Failure {
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
    fn at(self, source: &Checkpoint, matrices: &Matrices, expert: usize) -> Error {
        let error = match self {
            Self::Other(error) => return error,
            Self::Values(error) => error,
        };
        let name = matrices.projection.tensor_name(matrices.layer);
        match source.expert_storage() {
            ExpertStorage::Float(_) => Error::Unpackable { path: source.file_of(&name).to_owned(), tensor: name, expert, source: error },
            ExpertStorage::Mxfp4 => {
                let tensor = format!("{name}_scales");
                Error::Packed { path: source.file_of(&tensor).to_owned(), tensor, expert, source: error }
            }
        }
    }
}
