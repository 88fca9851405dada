//! The conversion: tensor by tensor, and of the experts' matrices one expert at a time.

use ft_quant::Float;
use ft_quant::ggml::relayout::checkpoint_to_ggml;
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS, Packing, pack_transposed, unpack};
use half::{bf16, f16};
use rayon::prelude::*;

use super::encode::{encode, encoded_bytes};
use super::transpose::columns_as_rows;
use crate::checkpoint::{Checkpoint, CheckpointTensor, ExpertMatrix, Projection};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gguf::target::float_type;
use crate::gguf::{ExpertRows, GgufSpec, GgufTensor, Held, TensorType};
use crate::stream::{Buffer, Bytes, Failure, Matrices, Output, Stored, floats, piece};

/// Elements of a tensor that are converted together.
const PIECE_ELEMENTS: usize = 4 << 20;

/// Elements that a thread takes at a time: whole blocks of every type.
const TASK_ELEMENTS: usize = 1 << 16;

/// Columns of a plain expert that a thread turns to rows at a time: a stretch of two cache lines of each of its rows.
const TASK_COLUMNS: usize = 64;

/// What is converted, and how.
pub(super) struct Conversion<'a> {
    pub(super) source: &'a Checkpoint,
    pub(super) tensors: &'a [GgufTensor],
    /// Beside `tensors`.
    pub(super) specs: &'a [GgufSpec],
    pub(super) packing: Packing,
}

/// A tensor of which each expert's rows are a part.
struct Part<'a> {
    spec: &'a GgufSpec,
    /// Which of the parts it is: rows `index`, `index + stride`, ... of an expert's matrix are its own.
    index: usize,
    stride: usize,
}

/// The experts' matrices of a layer, and the tensors that their rows go to.
struct Split<'a> {
    matrices: Matrices<'a>,
    parts: Vec<Part<'a>>,
}

/// Where values come from, for the errors that name one.
#[derive(Clone, Copy)]
struct Origin<'a> {
    tensor: &'a str,
    dtype: Dtype,
    bytes: &'a [u8],
    /// Index in the tensor of the first of the values.
    first: usize,
}

impl Part<'_> {
    /// Bytes of a row.
    fn row_bytes(&self, inputs: usize) -> usize {
        encoded_bytes(self.spec.tensor_type, inputs)
    }
}

impl<'a> Conversion<'a> {
    /// Puts out every tensor.
    pub(super) fn run(&self, output: &Output<'a>, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let total = self.source.total_bytes();
        let mut done = 0;
        let mut advance = |bytes: usize| {
            done += bytes as u64;
            progress(done, total);
        };
        for (tensor, spec) in self.tensors.iter().zip(self.specs) {
            match &tensor.held {
                Held::Whole(name) => self.whole(self.source.tensor(name)?, spec, output, &mut advance)?,
                // Both halves of the projection are written when the first of them comes.
                Held::Experts { rows: ExpertRows::Up, .. } | Held::ExpertBiases { rows: ExpertRows::Up, .. } => {}
                Held::Experts { layer, projection, .. } => self.experts(*layer, *projection, output, &mut advance)?,
                Held::ExpertBiases { layer, projection, .. } => self.biases(*layer, *projection, output, &mut advance)?,
            }
        }
        Ok(())
    }

    /// The tensors that share the matrices, or the biases, of a projection.
    fn parts(&self, held: impl Fn(ExpertRows) -> Held, projection: Projection) -> Vec<Part<'a>> {
        let rows: &[ExpertRows] = match projection {
            Projection::GateUp => &[ExpertRows::Gate, ExpertRows::Up],
            Projection::Down => &[ExpertRows::All],
        };
        let find = |rows: &ExpertRows| self.tensors.iter().position(|tensor| tensor.held == held(*rows));
        let specs = rows.iter().filter_map(find).map(|index| &self.specs[index]);
        specs.enumerate().map(|(index, spec)| Part { spec, index, stride: rows.len() }).collect()
    }

    /// Puts out a tensor that keeps its shape.
    fn whole(&self, tensor: CheckpointTensor<'a>, spec: &GgufSpec, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<()> {
        let CheckpointTensor { name, dtype, bytes, .. } = tensor;
        let piece_bytes = PIECE_ELEMENTS * dtype.size();
        for start in (0..bytes.len()).step_by(piece_bytes) {
            let piece = piece(&bytes, start..bytes.len().min(start + piece_bytes));
            let origin = Origin { tensor: name, dtype, bytes: &piece, first: start / dtype.size() };
            advance(piece.len());
            let written = if float_type(dtype) != spec.tensor_type {
                Bytes::New(self.encoded(origin, spec.tensor_type, output)?)
            } else if let Some(index) = first_not_finite(dtype, &piece) {
                return Err(self.refused(origin, index, spec.tensor_type));
            } else {
                piece.into()
            };
            output.write(spec.name.clone(), written)?;
        }
        Ok(())
    }

    /// The values in another type.
    fn encoded(&self, origin: Origin<'_>, to: TensorType, output: &Output<'a>) -> Result<Buffer> {
        let elements = origin.bytes.len() / origin.dtype.size();
        let mut buffer = output.pool.take(encoded_bytes(to, elements));
        let encoded = match origin.dtype {
            Dtype::F32 => encode_flat::<f32>(origin.bytes, to, &mut buffer),
            Dtype::F16 => encode_flat::<f16>(origin.bytes, to, &mut buffer),
            _ => encode_flat::<bf16>(origin.bytes, to, &mut buffer),
        };
        encoded.map_err(|index| self.refused(origin, index, to))?;
        self.source.release(origin.bytes);
        Ok(buffer)
    }

    /// Puts out the biases of the experts, which are f32.
    fn biases(&self, layer: usize, projection: Projection, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<()> {
        let tensor = self.source.tensor(&format!("{}_bias", projection.tensor_name(layer)))?;
        let origin = Origin { tensor: tensor.name, dtype: tensor.dtype, bytes: &tensor.bytes, first: 0 };
        let wide = self.encoded(origin, TensorType::F32, output)?;
        // An expert has an even number of outputs where its rows are shared, so that the order goes on from one to the next.
        for part in self.parts(|rows| Held::ExpertBiases { layer, projection, rows }, projection) {
            let mut buffer = output.pool.take(wide.len() / part.stride);
            let words = wide.as_chunks::<4>().0.iter().skip(part.index).step_by(part.stride);
            buffer.as_chunks_mut::<4>().0.iter_mut().zip(words).for_each(|(to, word)| *to = *word);
            output.write(part.spec.name.clone(), Bytes::New(buffer))?;
        }
        output.pool.give_back(wide);
        advance(tensor.bytes.len());
        Ok(())
    }

    /// Puts out the experts' matrices of a layer.
    fn experts(&self, layer: usize, projection: Projection, output: &Output<'a>, advance: &mut dyn FnMut(usize)) -> Result<()> {
        let matrices = Matrices::of(self.source, None, layer, projection);
        let split = Split { matrices, parts: self.parts(|rows| Held::Experts { layer, projection, rows }, projection) };
        let name = matrices.name();
        for expert in 0..matrices.experts {
            let matrix = matrices.expert(expert)?;
            match &matrix {
                ExpertMatrix::Float { dtype, values } => {
                    let first = expert * matrices.inputs * matrices.outputs;
                    let origin = Origin { tensor: &name, dtype: *dtype, bytes: values, first };
                    match dtype {
                        Dtype::F32 => self.plain_expert::<f32>(&split, origin, expert, output)?,
                        Dtype::F16 => self.plain_expert::<f16>(&split, origin, expert, output)?,
                        _ => self.plain_expert::<bf16>(&split, origin, expert, output)?,
                    }
                }
                ExpertMatrix::Mxfp4 { blocks, scales } => self.packed_expert(&split, (blocks, scales), expert, output)?,
            }
            matrices.release(&matrix);
            advance(matrix.len());
        }
        Ok(())
    }

    /// Puts out the MXFP4 matrix of an expert.
    fn packed_expert(&self, split: &Split<'a>, (blocks, scales): (&[u8], &[u8]), expert: usize, output: &Output<'a>) -> Result<()> {
        let matrices = &split.matrices;
        let refused = |error| Failure::Values(error).at(matrices, expert);
        let mut unpacked = None;
        for part in &split.parts {
            let to = part.spec.tensor_type;
            let mut buffer = output.pool.take(matrices.outputs / part.stride * part.row_bytes(matrices.inputs));
            if to == TensorType::Mxfp4 {
                relayout(matrices, part, blocks, scales, &mut buffer).map_err(refused)?;
            } else {
                let values = match &mut unpacked {
                    Some(values) => values,
                    None => {
                        let mut values = output.pool.take(blocks.len() * 2 * size_of::<bf16>());
                        unpack(blocks, scales, values.as_bf16_mut()).map_err(refused)?;
                        unpacked.insert(values)
                    }
                };
                let encoded = encode_rows(matrices, part, values.as_bf16(), &mut buffer);
                encoded.map_err(|index| {
                    let row = index / matrices.inputs * part.stride + part.index;
                    let index = (expert * matrices.outputs + row) * matrices.inputs + index % matrices.inputs;
                    // Of the tensor as it would be without scales; every value is a finite number.
                    let value = values.as_bf16()[row * matrices.inputs + index % matrices.inputs].to_f32();
                    let path = self.source.file_of(&format!("{}_scales", matrices.name())).to_owned();
                    Error::OutOfRange { tensor: part.spec.name.clone(), path, index, value, tensor_type: to }
                })?;
            }
            output.write(part.spec.name.clone(), Bytes::New(buffer))?;
        }
        if let Some(buffer) = unpacked {
            output.pool.give_back(buffer);
        }
        Ok(())
    }

    /// Puts out the plain matrix of an expert.
    fn plain_expert<T: Stored>(&self, split: &Split<'a>, origin: Origin<'_>, expert: usize, output: &Output<'a>) -> Result<()> {
        let matrices = &split.matrices;
        let values = floats::<T>(origin.bytes);
        let unpackable = |error| Failure::Values(error).at(matrices, expert);
        let mut packed: Option<(Buffer, Buffer)> = None;
        for part in &split.parts {
            let to = part.spec.tensor_type;
            let mut buffer = output.pool.take(matrices.outputs / part.stride * part.row_bytes(matrices.inputs));
            if to == TensorType::Mxfp4 {
                let (blocks, scales) = match &mut packed {
                    Some(packed) => packed,
                    None => {
                        let (mut blocks, mut scales) = matrices.packed_buffers(output);
                        pack_transposed(&values, matrices.outputs, self.packing, None, &mut blocks, &mut scales).map_err(unpackable)?;
                        packed.insert((blocks, scales))
                    }
                };
                relayout(matrices, part, blocks, scales, &mut buffer).map_err(unpackable)?;
            } else {
                encode_columns(matrices, part, &values, &mut buffer).map_err(|index| self.refused(origin, index, to))?;
            }
            output.write(part.spec.name.clone(), Bytes::New(buffer))?;
        }
        if let Some((blocks, scales)) = packed {
            output.pool.give_back(blocks);
            output.pool.give_back(scales);
        }
        Ok(())
    }

    /// Why the value at `index` of `origin` was refused.
    fn refused(&self, origin: Origin<'_>, index: usize, to: TensorType) -> Error {
        let (tensor, path) = (origin.tensor.to_owned(), self.source.file_of(origin.tensor).to_owned());
        let size = origin.dtype.size();
        let bytes = &origin.bytes[index * size..(index + 1) * size];
        let mut value = [f32::NAN];
        match origin.dtype {
            Dtype::F32 => Float::widen_into(&floats::<f32>(bytes), &mut value),
            Dtype::F16 => Float::widen_into(&floats::<f16>(bytes), &mut value),
            _ => Float::widen_into(&floats::<bf16>(bytes), &mut value),
        }
        let ([value], index) = (value, origin.first + index);
        if value.is_finite() {
            Error::OutOfRange { tensor, path, index, value, tensor_type: to }
        } else {
            Error::NotFinite { tensor, path, index }
        }
    }
}

/// The smallest index of a refused value, whatever the threads do.
fn first_refused(refused: impl ParallelIterator<Item = Option<usize>>) -> Result<(), usize> {
    match refused.flatten().min() {
        Some(index) => Err(index),
        None => Ok(()),
    }
}

/// Converts values that keep their order.
fn encode_flat<T: Stored>(bytes: &[u8], to: TensorType, out: &mut [u8]) -> Result<(), usize> {
    let tasks = bytes.par_chunks(TASK_ELEMENTS * size_of::<T>()).zip(out.par_chunks_mut(encoded_bytes(to, TASK_ELEMENTS)));
    let encode_task = |(task, (bytes, out)): (usize, (&[u8], &mut [u8]))| {
        encode(&floats::<T>(bytes), to, out).err().map(|index| task * TASK_ELEMENTS + index)
    };
    first_refused(tasks.enumerate().map(encode_task))
}

/// Converts every row of a part; the index of a refused value counts along the part's own rows.
fn encode_rows(matrices: &Matrices<'_>, part: &Part<'_>, values: &[bf16], out: &mut [u8]) -> Result<(), usize> {
    let inputs = matrices.inputs;
    let rows = values.par_chunks(part.stride * inputs).zip(out.par_chunks_mut(part.row_bytes(inputs)));
    let encode_row = |(row, (values, out)): (usize, (&[bf16], &mut [u8]))| {
        let values = &values[part.index * inputs..(part.index + 1) * inputs];
        encode(values, part.spec.tensor_type, out).err().map(|index| row * inputs + index)
    };
    first_refused(rows.enumerate().map(encode_row))
}

/// Turns the columns of a part to rows and converts them; the index of a refused value is that of `values`.
///
/// # Shapes
/// `values` [in, out].
fn encode_columns<T: Stored>(matrices: &Matrices<'_>, part: &Part<'_>, values: &[T], out: &mut [u8]) -> Result<(), usize> {
    let &Matrices { inputs, outputs, .. } = matrices;
    let task_rows = TASK_COLUMNS / part.stride;
    let row_bytes = part.row_bytes(inputs);
    let encode_task = |rows: &mut Vec<T>, (task, out): (usize, &mut [u8])| {
        let first = task * TASK_COLUMNS;
        rows.resize((outputs - first).min(TASK_COLUMNS) * inputs, T::zeroed());
        columns_as_rows(values, outputs, first, inputs, rows);
        let own = rows.chunks_exact(inputs).skip(part.index).step_by(part.stride);
        let mut refused = None;
        for (row, (values, out)) in own.zip(out.chunks_mut(row_bytes)).enumerate() {
            if let Err(input) = encode(values, part.spec.tensor_type, out) {
                let index = input * outputs + first + row * part.stride + part.index;
                refused = Some(refused.map_or(index, |least: usize| least.min(index)));
            }
        }
        refused
    };
    first_refused(out.par_chunks_mut(task_rows * row_bytes).enumerate().map_init(Vec::new, encode_task))
}

/// Writes the rows of a part in ggml's order; the index of an error counts along the expert.
fn relayout(matrices: &Matrices<'_>, part: &Part<'_>, blocks: &[u8], scales: &[u8], out: &mut [u8]) -> Result<(), ft_quant::Error> {
    let row_blocks = matrices.inputs / BLOCK_ELEMENTS;
    let rows = out.par_chunks_mut(part.row_bytes(matrices.inputs)).enumerate().map(|(row, out)| {
        let first = (row * part.stride + part.index) * row_blocks;
        let range = first..first + row_blocks;
        let relaid = checkpoint_to_ggml(&blocks[range.start * BLOCK_BYTES..range.end * BLOCK_BYTES], &scales[range], out);
        relaid.err().map(|error| match error {
            ft_quant::Error::ReservedScale { index } => ft_quant::Error::ReservedScale { index: first + index },
            other => other,
        })
    });
    // Of several the first, whatever the threads do.
    let errors: Vec<ft_quant::Error> = rows.flatten().collect();
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Index of the first NaN or infinity of a tensor's bytes.
fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    let stretches = bytes.par_chunks(TASK_ELEMENTS * dtype.size()).enumerate();
    let first = stretches.map(|(stretch, bytes)| dtype.first_not_finite(bytes).map(|index| stretch * TASK_ELEMENTS + index));
    first_refused(first).err()
}
