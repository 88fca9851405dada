//! The conversion: tensor by tensor, the experts' matrices expert by expert.

use std::borrow::Cow;

use bytemuck::{Pod, pod_collect_to_vec, try_cast_slice};
use ft_quant::cuda::CudaError;
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};
use ft_quant::{Accuracy, Codec, Float};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{ExpertTarget, TensorReport};
use crate::checkpoint::{Checkpoint, ExpertWeights, Projection};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::safetensors::TensorView;
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
struct Matrices<'a> {
    layer: usize,
    projection: Projection,
    experts: usize,
    inputs: usize,
    outputs: usize,
    weights: ExpertWeights<'a>,
    hints: Option<Hints<'a>>,
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
                        let accuracy = self.convert(&self.matrices(layer, projection)?, output, &mut advance)?;
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
    fn carry_over(&self, view: TensorView<'a>, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<()> {
        for (piece, bytes) in view.bytes.chunks(PIECE_BYTES).enumerate() {
            if let Some(index) = view.dtype.first_not_finite(bytes) {
                let index = piece * PIECE_BYTES / view.dtype.size() + index;
                return Err(Error::NotFinite { tensor: view.name.to_owned(), path: self.source.file_of(view.name).to_owned(), index });
            }
            output.write(view.name.to_owned(), Bytes::Mapped(bytes))?;
            advance(bytes.len());
        }
        Ok(())
    }

    fn matrices(&self, layer: usize, projection: Projection) -> Result<Matrices<'a>> {
        let config = self.source.config();
        let [inputs, outputs] = projection.dims(config);
        let weights = self.source.experts(layer, projection)?;
        let packed = match self.hints {
            Some(hints) => hints.experts(layer, projection)?,
            None => weights,
        };
        let hints = match packed {
            ExpertWeights::Mxfp4 { blocks, scales } => Some(Hints { blocks: blocks.bytes, scales: scales.bytes }),
            ExpertWeights::Float(_) => None,
        };
        Ok(Matrices { layer, projection, experts: config.num_local_experts, inputs, outputs, weights, hints })
    }

    fn convert(&self, matrices: &Matrices<'a>, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<Accuracy> {
        let mut total = Accuracy::default();
        for expert in 0..matrices.experts {
            let of_expert = |bytes: &'a [u8], expert: usize| {
                let length = bytes.len() / matrices.experts;
                &bytes[expert * length..(expert + 1) * length]
            };
            let hints = matrices
                .hints
                .map(|Hints { blocks, scales }| Hints { blocks: of_expert(blocks, expert), scales: of_expert(scales, expert) });
            let (bytes, accuracy) = match matrices.weights {
                ExpertWeights::Float(view) => {
                    let bytes = of_expert(view.bytes, expert);
                    if expert + 1 < matrices.experts {
                        self.source.prefetch(of_expert(view.bytes, expert + 1));
                    }
                    let converted = match view.dtype {
                        Dtype::F32 => self.convert_floats::<f32>(matrices, bytes, hints, output),
                        Dtype::F16 => self.convert_floats::<f16>(matrices, bytes, hints, output),
                        _ => self.convert_floats::<bf16>(matrices, bytes, hints, output),
                    };
                    self.source.release(bytes);
                    (bytes.len(), converted)
                }
                ExpertWeights::Mxfp4 { blocks, scales } => {
                    let (blocks, scales) = (of_expert(blocks.bytes, expert), of_expert(scales.bytes, expert));
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
        matrices: &Matrices<'_>,
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
        matrices: &Matrices<'_>,
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

    fn packed_buffers(matrices: &Matrices<'_>, output: &Output<'a>) -> (Buffer, Buffer) {
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
    fn at(self, source: &Checkpoint, matrices: &Matrices<'_>, expert: usize) -> Error {
        let error = match self {
            Self::Other(error) => return error,
            Self::Values(error) => error,
        };
        let name = matrices.projection.tensor_name(matrices.layer);
        match matrices.weights {
            ExpertWeights::Float(_) => Error::Unpackable { path: source.file_of(&name).to_owned(), tensor: name, expert, source: error },
            ExpertWeights::Mxfp4 { scales, .. } => {
                Error::Packed { path: source.file_of(scales.name).to_owned(), tensor: scales.name.to_owned(), expert, source: error }
            }
        }
    }
}
