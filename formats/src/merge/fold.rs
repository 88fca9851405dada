//! The merge: tensor by tensor, the experts' matrices expert by expert and large tensors in pieces of rows.

use std::borrow::Cow;
use std::collections::HashMap;

use ft_quant::mxfp4::{self, Packing};
use ft_quant::{Accuracy, Float};
use half::{bf16, f16};

use super::product::LowRank;
use crate::checkpoint::{Checkpoint, CheckpointTensor, ExpertMatrix, ExpertStorage, Projection};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::peft::{AdapterPair, AdapterTarget, PeftAdapter};
use crate::report::TensorReport;
use crate::stream::{Buffer, Bytes, Failure, Matrices, Output, PackedBytes, Part, Stored, carry_over, floats, parts, piece, round};

/// Elements of a tensor that are merged together: as many as an expert of gpt-oss has.
const PIECE_ELEMENTS: usize = 1 << 24;

/// What is merged, and how.
pub(super) struct Folding<'a> {
    pub(super) source: &'a Checkpoint,
    pub(super) adapter: &'a PeftAdapter,
    pub(super) hints: Option<&'a Checkpoint>,
    pub(super) to: ExpertStorage,
    pub(super) packing: Packing,
}

/// What became of the tensors.
#[derive(Debug, Default)]
pub(super) struct Folded {
    pub(super) tensors: Vec<TensorReport>,
    pub(super) changed_tensors: usize,
    pub(super) kept_tensors: usize,
    /// Per expert of all layers, whether the adapter changes one of its matrices.
    pub(super) experts: Vec<bool>,
}

impl Folded {
    fn count(&mut self, is_changed: bool) {
        *(if is_changed { &mut self.changed_tensors } else { &mut self.kept_tensors }) += 1;
    }
}

/// What became of a tensor or an expert.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    accuracy: Accuracy,
    is_changed: bool,
}

impl Outcome {
    fn and(self, other: Self) -> Self {
        Self { accuracy: self.accuracy + other.accuracy, is_changed: self.is_changed | other.is_changed }
    }
}

impl<'a> Folding<'a> {
    /// Puts out every tensor of the result.
    pub(super) fn run(&self, output: &Output<'a>, progress: &mut dyn FnMut(u64, u64)) -> Result<Folded> {
        let total = self.source.total_bytes();
        let mut done = 0;
        let mut advance = |bytes: usize| {
            done += bytes as u64;
            progress(done, total);
        };
        let pairs: HashMap<String, &AdapterPair> = self.adapter.pairs().iter().map(|pair| (pair.target.tensor_name(), pair)).collect();
        let config = self.source.config();
        let experts = config.num_local_experts;
        let mut folded = Folded { experts: vec![false; config.num_hidden_layers * experts], ..Folded::default() };
        for part in parts(self.source) {
            let (weight, outcome) = match part {
                Part::Experts { layer, projection } => {
                    let weight = AdapterTarget::Experts { layer, projection };
                    let pair = pairs.get(&weight.tensor_name()).copied();
                    let changed = &mut folded.experts[layer * experts..(layer + 1) * experts];
                    (weight, self.experts(layer, projection, pair, changed, output, &mut advance)?)
                }
                Part::Tensor { name } => {
                    let tensor = self.source.tensor(name)?;
                    match pairs.get(name) {
                        Some(pair) => (pair.target, Some(self.tensor(&tensor, pair, output, &mut advance)?)),
                        None => {
                            carry_over(self.source, tensor, output, &mut advance)?;
                            folded.count(false);
                            continue;
                        }
                    }
                }
            };
            folded.count(outcome.is_some_and(|outcome| outcome.is_changed));
            folded.tensors.extend(outcome.map(|outcome| TensorReport { weight, accuracy: outcome.accuracy }));
        }
        Ok(folded)
    }

    /// Merges a tensor that is not of the experts, which keeps its type.
    fn tensor(
        &self,
        tensor: &CheckpointTensor<'a>,
        pair: &AdapterPair,
        output: &Output<'a>,
        advance: &mut dyn FnMut(usize),
    ) -> Result<Outcome> {
        match tensor.dtype {
            Dtype::F32 => self.rows::<f32>(tensor, pair, output, advance),
            Dtype::F16 => self.rows::<f16>(tensor, pair, output, advance),
            _ => self.rows::<bf16>(tensor, pair, output, advance),
        }
    }

    fn rows<T: Stored>(
        &self,
        tensor: &CheckpointTensor<'a>,
        pair: &AdapterPair,
        output: &Output<'a>,
        advance: &mut dyn FnMut(usize),
    ) -> Result<Outcome> {
        let update = LowRank::output_rows(pair, 0);
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let piece_rows = (PIECE_ELEMENTS / columns).max(1);
        let mut total = Outcome::default();
        let row_bytes = columns * tensor.dtype.size();
        for start in (0..tensor.bytes.len()).step_by(piece_rows * row_bytes) {
            let bytes = piece(&tensor.bytes, start..tensor.bytes.len().min(start + piece_rows * row_bytes));
            let (first_row, length) = (start / row_bytes, bytes.len());
            let update = update.as_ref().map(|update| (update, first_row));
            let outcome = self.plain::<T, T>(tensor.name, bytes, update, output).map_err(|failure| {
                let index = |index: usize| first_row * columns + index;
                match failure {
                    FoldFailure::Update { index: place } => self.refused(tensor.name, None, index(place)),
                    FoldFailure::Source(Failure::Values(ft_quant::Error::NotFinite { index: place })) => Error::NotFinite {
                        tensor: tensor.name.to_owned(),
                        path: self.source.file_of(tensor.name).to_owned(),
                        index: index(place),
                    },
                    FoldFailure::Source(Failure::Values(source)) => Error::Unpackable {
                        tensor: tensor.name.to_owned(),
                        path: self.source.file_of(tensor.name).to_owned(),
                        expert: 0,
                        source,
                    },
                    FoldFailure::Source(Failure::Other(error)) => error,
                }
            })?;
            total = total.and(outcome);
            advance(length);
        }
        Ok(total)
    }

    /// Merges the experts' matrices of a layer; nothing where they are carried over as they are. Sets `changed` for those with an update.
    fn experts(
        &self,
        layer: usize,
        projection: Projection,
        pair: Option<&AdapterPair>,
        changed: &mut [bool],
        output: &Output<'a>,
        advance: &mut dyn FnMut(usize),
    ) -> Result<Option<Outcome>> {
        let matrices = Matrices::of(self.source, self.hints, layer, projection);
        if pair.is_none() && self.to == self.source.expert_storage() {
            matrices.carry_over(output, advance)?;
            return Ok(None);
        }
        let mut total = Outcome::default();
        for (expert, is_changed) in changed.iter_mut().enumerate() {
            let matrix = matrices.expert(expert)?;
            let length = matrix.len();
            let outcome = self.expert(&matrices, matrix, expert, pair, output).map_err(|failure| match failure {
                FoldFailure::Update { index } => self.refused(&matrices.name(), Some(expert), index),
                FoldFailure::Source(failure) => failure.at(&matrices, expert),
            })?;
            *is_changed |= outcome.is_changed;
            total = total.and(outcome);
            advance(length);
        }
        Ok(Some(total))
    }

    fn expert(
        &self,
        matrices: &Matrices<'a>,
        matrix: ExpertMatrix<'a>,
        expert: usize,
        pair: Option<&AdapterPair>,
        output: &Output<'a>,
    ) -> Result<Outcome, FoldFailure> {
        let given = matrices.hint(expert)?;
        let hints = given.as_ref().and_then(PackedBytes::of);
        let outcome = match (matrix, self.to) {
            (ExpertMatrix::Mxfp4 { blocks, scales }, ExpertStorage::Mxfp4) => {
                let update = pair.and_then(|pair| LowRank::output_rows(pair, expert));
                self.repack(matrices, (blocks, scales), hints, update.as_ref(), output)
            }
            (ExpertMatrix::Mxfp4 { blocks, scales }, ExpertStorage::Float(_)) => {
                let update = pair.and_then(|pair| LowRank::input_rows(pair, expert));
                self.unpack(matrices, PackedBytes { blocks: &blocks, scales: &scales }, update.as_ref(), output)
            }
            (ExpertMatrix::Float { dtype, values }, to) => {
                let update = pair.and_then(|pair| LowRank::input_rows(pair, expert));
                let update = update.as_ref();
                let name = matrices.name();
                match (dtype, to) {
                    (Dtype::F32, ExpertStorage::Mxfp4) => self.pack::<f32>(matrices, &values, hints, update, output),
                    (Dtype::F16, ExpertStorage::Mxfp4) => self.pack::<f16>(matrices, &values, hints, update, output),
                    (_, ExpertStorage::Mxfp4) => self.pack::<bf16>(matrices, &values, hints, update, output),
                    (Dtype::F32, ExpertStorage::Float(Dtype::F32)) => self.plain::<f32, f32>(&name, values, first(update), output),
                    (Dtype::F32, _) => self.plain::<f32, bf16>(&name, values, first(update), output),
                    (Dtype::F16, ExpertStorage::Float(Dtype::F16)) => self.plain::<f16, f16>(&name, values, first(update), output),
                    (Dtype::F16, _) => self.plain::<f16, bf16>(&name, values, first(update), output),
                    _ => self.plain::<bf16, bf16>(&name, values, first(update), output),
                }
            }
        };
        given.iter().for_each(|matrix| matrices.release(matrix));
        outcome
    }

    /// Merges plain numbers into plain numbers, from the row of `update` on.
    fn plain<T: Stored, R: Stored>(
        &self,
        name: &str,
        bytes: Cow<'a, [u8]>,
        update: Option<(&LowRank, usize)>,
        output: &Output<'a>,
    ) -> Result<Outcome, FoldFailure> {
        let values = floats::<T>(&bytes);
        let sums = update.and_then(|(update, first_row)| sums(update, first_row, &values, output).transpose()).transpose()?;
        let is_changed = sums.is_some();
        let accuracy = match sums {
            Some(sums) => {
                let accuracy = self.write_rounded::<f32, R>(name, sums.values(), output).map_err(|failure| failure.of_update())?;
                output.pool.give_back(sums);
                accuracy
            }
            None if T::DTYPE == R::DTYPE => {
                if let Some(index) = T::DTYPE.first_not_finite(&bytes) {
                    return Err(ft_quant::Error::NotFinite { index }.into());
                }
                let accuracy = Accuracy::of_floats::<T, T>(&values, &values)?;
                drop(values);
                output.write(name.to_owned(), bytes.into())?;
                return Ok(Outcome { accuracy, is_changed });
            }
            None => self.write_rounded::<T, R>(name, &values, output)?,
        };
        self.source.release(&bytes);
        Ok(Outcome { accuracy, is_changed })
    }

    fn write_rounded<V: Float, R: Stored>(&self, name: &str, values: &[V], output: &Output<'a>) -> Result<Accuracy, FoldFailure> {
        let mut rounded = output.pool.take(size_of_val(values) / size_of::<V>() * size_of::<R>());
        round(values, rounded.values_mut::<R>())?;
        let accuracy = Accuracy::of_floats(values, rounded.values::<R>())?;
        output.write(name.to_owned(), Bytes::New(rounded))?;
        Ok(accuracy)
    }

    /// Packs the plain matrix of an expert.
    fn pack<T: Stored>(
        &self,
        matrices: &Matrices<'a>,
        bytes: &[u8],
        hints: Option<PackedBytes<'_>>,
        update: Option<&LowRank>,
        output: &Output<'a>,
    ) -> Result<Outcome, FoldFailure> {
        let values = floats::<T>(bytes);
        let sums = update.and_then(|update| sums(update, 0, &values, output).transpose()).transpose()?;
        let is_changed = sums.is_some();
        let accuracy = match sums {
            Some(sums) => {
                let packed = self.write_packed::<f32>(matrices, sums.values(), hints, output);
                output.pool.give_back(sums);
                packed.map_err(|failure| failure.of_update())?
            }
            None => self.write_packed::<T>(matrices, &values, hints, output)?,
        };
        self.source.release(bytes);
        Ok(Outcome { accuracy, is_changed })
    }

    /// Packs values [in, out].
    fn write_packed<V: Float>(
        &self,
        matrices: &Matrices<'a>,
        values: &[V],
        hints: Option<PackedBytes<'_>>,
        output: &Output<'a>,
    ) -> Result<Accuracy, FoldFailure> {
        let (mut blocks, mut scales) = matrices.packed_buffers(output);
        let hint_scales = hints.map(|hints| hints.scales);
        mxfp4::pack_transposed(values, matrices.outputs, self.packing, hint_scales, &mut blocks, &mut scales)?;
        let mut accuracy = Accuracy::of_transposed(values, matrices.outputs, &blocks, &scales)?;
        if let Some(hints) = hints {
            accuracy.compare(&blocks, &scales, hints.blocks, hints.scales)?;
        }
        matrices.write_packed(Bytes::New(blocks), Bytes::New(scales), output)?;
        Ok(accuracy)
    }

    /// Merges the packed matrix of an expert into a packed one; without an update its bytes stay.
    fn repack(
        &self,
        matrices: &Matrices<'a>,
        (blocks, scales): (Cow<'a, [u8]>, Cow<'a, [u8]>),
        hints: Option<PackedBytes<'_>>,
        update: Option<&LowRank>,
        output: &Output<'a>,
    ) -> Result<Outcome, FoldFailure> {
        let packed = PackedBytes { blocks: &blocks, scales: &scales };
        let merged = update.and_then(|update| unpacked_sums(packed, update, output).transpose()).transpose()?;
        let Some(sums) = merged else {
            let mut accuracy = Accuracy::of_unpacked(&blocks, &scales)?;
            accuracy.compared_blocks = accuracy.blocks();
            matrices.write_packed(blocks.into(), scales.into(), output)?;
            return Ok(Outcome { accuracy, is_changed: false });
        };
        let (mut new_blocks, mut new_scales) = matrices.packed_buffers(output);
        let values: &[f32] = sums.values();
        let hint_scales = Some(hints.unwrap_or(packed).scales);
        mxfp4::pack(values, self.packing, hint_scales, &mut new_blocks, &mut new_scales)?;
        let mut accuracy = Accuracy::of(values, &new_blocks, &new_scales)?;
        output.pool.give_back(sums);
        accuracy.compare(&new_blocks, &new_scales, &blocks, &scales)?;
        matrices.write_packed(Bytes::New(new_blocks), Bytes::New(new_scales), output)?;
        self.source.release(&blocks);
        Ok(Outcome { accuracy, is_changed: true })
    }

    /// Merges the packed matrix of an expert into a plain one.
    fn unpack(
        &self,
        matrices: &Matrices<'a>,
        PackedBytes { blocks, scales }: PackedBytes<'_>,
        update: Option<&LowRank>,
        output: &Output<'a>,
    ) -> Result<Outcome, FoldFailure> {
        let mut unpacked = output.pool.take(blocks.len() * 2 * size_of::<bf16>());
        mxfp4::unpack_transposed(blocks, scales, matrices.outputs, unpacked.as_bf16_mut())?;
        let sums = update.and_then(|update| sums(update, 0, unpacked.as_bf16(), output).transpose()).transpose()?;
        let is_changed = sums.is_some();
        let accuracy = match sums {
            Some(sums) => {
                let accuracy = self.write_rounded::<f32, bf16>(&matrices.name(), sums.values(), output);
                output.pool.give_back(sums);
                output.pool.give_back(unpacked);
                accuracy.map_err(|failure| failure.of_update())?
            }
            None => {
                output.write(matrices.name(), Bytes::New(unpacked))?;
                Accuracy::of_unpacked(blocks, scales)?
            }
        };
        self.source.release(blocks);
        Ok(Outcome { accuracy, is_changed })
    }

    /// The error of an update that makes what is no number.
    fn refused(&self, tensor: &str, expert: Option<usize>, index: usize) -> Error {
        Error::Unmergeable { adapter: self.adapter.path().to_owned(), tensor: tensor.to_owned(), expert, index }
    }
}

/// What can go wrong with a weight, before it is known where it is.
enum FoldFailure {
    /// The weight is a number, and with its update it is none, or none of the type that it is stored in.
    Update { index: usize },
    /// The weight itself, or the writing of it.
    Source(Failure),
}

impl<T: Into<Failure>> From<T> for FoldFailure {
    fn from(failure: T) -> Self {
        Self::Source(failure.into())
    }
}

impl FoldFailure {
    /// The same for values that an update was added to.
    fn of_update(self) -> Self {
        match self {
            Self::Source(Failure::Values(ft_quant::Error::NotFinite { index })) => Self::Update { index },
            other => other,
        }
    }
}

/// The update of a whole matrix, which begins with its first row.
fn first(update: Option<&LowRank>) -> Option<(&LowRank, usize)> {
    update.map(|update| (update, 0))
}

/// `values` with the rows of `update` from `first_row` on; nothing where these are zero.
fn sums<T: Float>(update: &LowRank, first_row: usize, values: &[T], output: &Output<'_>) -> Result<Option<Buffer>, FoldFailure> {
    let mut sums = output.pool.take(size_of_val(values) / size_of::<T>() * size_of::<f32>());
    let added = update.add(first_row, values, sums.values_mut());
    if !added.is_finite {
        let place = sums.values::<f32>().iter().position(|sum| !sum.is_finite()).unwrap_or(0);
        output.pool.give_back(sums);
        let is_number = values.get(place).is_some_and(|value| value.to_f32().is_finite());
        return Err(if is_number { FoldFailure::Update { index: place } } else { ft_quant::Error::NotFinite { index: place }.into() });
    }
    if added.is_changed {
        return Ok(Some(sums));
    }
    output.pool.give_back(sums);
    Ok(None)
}

/// The values of packed blocks [out, s] with an update; nothing where it is zero.
fn unpacked_sums(packed: PackedBytes<'_>, update: &LowRank, output: &Output<'_>) -> Result<Option<Buffer>, FoldFailure> {
    let mut unpacked = output.pool.take(packed.blocks.len() * 2 * size_of::<bf16>());
    mxfp4::unpack(packed.blocks, packed.scales, unpacked.as_bf16_mut())?;
    let sums = sums(update, 0, unpacked.as_bf16(), output);
    output.pool.give_back(unpacked);
    sums
}
