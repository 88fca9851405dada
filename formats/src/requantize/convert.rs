//! The conversion: tensor by tensor, the experts' matrices expert by expert.

use ft_quant::{Accuracy, Codec};
use half::{bf16, f16};

use super::ExpertTarget;
use crate::checkpoint::{Checkpoint, ExpertMatrix};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::peft::AdapterTarget;
use crate::report::TensorReport;
use crate::stream::{Bytes, Failure, Matrices, Output, PackedBytes, Part, Stored, carry_over, floats, parts, round};

/// What is converted, and how.
pub(super) struct Conversion<'a> {
    pub(super) source: &'a Checkpoint,
    pub(super) hints: Option<&'a Checkpoint>,
    pub(super) to: ExpertTarget,
    pub(super) codec: &'a Codec,
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
        for part in parts(self.source) {
            match part {
                Part::Experts { layer, projection } => {
                    let matrices = Matrices::of(self.source, self.hints, layer, projection);
                    let accuracy = self.convert(&matrices, output, &mut advance)?;
                    tensors.push(TensorReport { weight: AdapterTarget::Experts { layer, projection }, accuracy });
                }
                Part::Tensor { name } => carry_over(self.source, self.source.tensor(name)?, output, &mut advance)?,
            }
        }
        Ok(tensors)
    }

    fn convert(&self, matrices: &Matrices<'a>, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<Accuracy> {
        let mut total = Accuracy::default();
        for expert in 0..matrices.experts {
            let (matrix, hint) = (matrices.expert(expert)?, matrices.hint(expert)?);
            let hints = PackedBytes::of(hint.as_ref().unwrap_or(&matrix));
            let accuracy = match &matrix {
                ExpertMatrix::Float { dtype: Dtype::F32, values } => self.convert_floats::<f32>(matrices, values, hints, output),
                ExpertMatrix::Float { dtype: Dtype::F16, values } => self.convert_floats::<f16>(matrices, values, hints, output),
                ExpertMatrix::Float { values, .. } => self.convert_floats::<bf16>(matrices, values, hints, output),
                ExpertMatrix::Mxfp4 { blocks, scales } => self.convert_mxfp4(matrices, PackedBytes { blocks, scales }, hints, output),
            };
            total = total + accuracy.map_err(|failure| failure.at(matrices, expert))?;
            advance(matrix.len());
            hint.iter().chain([&matrix]).for_each(|matrix| matrices.release(matrix));
        }
        Ok(total)
    }

    /// Converts the plain matrix of an expert.
    fn convert_floats<T: Stored>(
        &self,
        matrices: &Matrices<'_>,
        bytes: &[u8],
        hints: Option<PackedBytes<'_>>,
        output: &Output<'a>,
    ) -> Result<Accuracy, Failure> {
        let values = floats::<T>(bytes);
        match self.to {
            ExpertTarget::Mxfp4(packing) => {
                let (mut blocks, mut scales) = matrices.packed_buffers(output);
                let hint_scales = hints.map(|hints| hints.scales);
                self.codec.pack_transposed(&values, matrices.outputs, packing, hint_scales, &mut blocks, &mut scales)?;
                let mut accuracy = Accuracy::of_transposed(&values, matrices.outputs, &blocks, &scales)?;
                if let Some(hints) = hints {
                    accuracy.compare(&blocks, &scales, hints.blocks, hints.scales)?;
                }
                matrices.write_packed(Bytes::New(blocks), Bytes::New(scales), output)?;
                Ok(accuracy)
            }
            ExpertTarget::Bf16 => {
                let mut rounded = output.pool.take(values.len() * size_of::<bf16>());
                round(&values, rounded.as_bf16_mut())?;
                let accuracy = Accuracy::of_floats(&values, rounded.as_bf16())?;
                output.write(matrices.name(), Bytes::New(rounded))?;
                Ok(accuracy)
            }
        }
    }

    /// Converts the packed matrix of an expert.
    fn convert_mxfp4(
        &self,
        matrices: &Matrices<'_>,
        PackedBytes { blocks, scales }: PackedBytes<'_>,
        hints: Option<PackedBytes<'_>>,
        output: &Output<'a>,
    ) -> Result<Accuracy, Failure> {
        let mut unpacked = output.pool.take(blocks.len() * 2 * size_of::<bf16>());
        let values = unpacked.as_bf16_mut();
        match self.to {
            ExpertTarget::Mxfp4(packing) => {
                self.codec.unpack(blocks, scales, values)?;
                let (mut new_blocks, mut new_scales) = matrices.packed_buffers(output);
                self.codec.pack(values, packing, hints.map(|hints| hints.scales), &mut new_blocks, &mut new_scales)?;
                let mut accuracy = Accuracy::of(values, &new_blocks, &new_scales)?;
                accuracy.compare(&new_blocks, &new_scales, blocks, scales)?;
                matrices.write_packed(Bytes::New(new_blocks), Bytes::New(new_scales), output)?;
                output.pool.give_back(unpacked);
                Ok(accuracy)
            }
            ExpertTarget::Bf16 => {
                self.codec.unpack_transposed(blocks, scales, matrices.outputs, values)?;
                output.write(matrices.name(), Bytes::New(unpacked))?;
                let accuracy = Accuracy::of_unpacked(blocks, scales)?;
                Ok(accuracy)
            }
        }
    }
}
