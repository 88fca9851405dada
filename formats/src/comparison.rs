//! Two models tensor by tensor, whatever files they are in: what tells whether an export holds what its source does.
//!
//! Tensors are compared as the numbers that a runtime computes with, in the layout of a plain checkpoint.

use std::borrow::Cow;

use bytemuck::{Pod, cast_slice, pod_collect_to_vec, try_cast_slice};
use ft_quant::mxfp4::unpack_transposed;
use ft_quant::{Accuracy, Float};
use half::{bf16, f16};

use crate::checkpoint::{Checkpoint, CheckpointTensor, Config, ExpertMatrix, ExpertStorage, Projection, YarnScaling, tensor_specs};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Elements that are decoded at a time.
const PIECE_ELEMENTS: usize = 4 << 20;

/// What became of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorComparison {
    /// Its name in a plain checkpoint.
    pub name: String,
    /// Its elements.
    pub elements: u64,
    /// How far the found values are from the source's, over the experts in which they differ; nothing where all are the same.
    pub deviation: Option<Accuracy>,
}

impl TensorComparison {
    /// Signal to noise of the found values in dB; infinite where all are the same.
    #[must_use]
    pub fn sqnr_db(&self) -> f64 {
        self.deviation.as_ref().and_then(Accuracy::sqnr_db).unwrap_or(f64::INFINITY)
    }
}

/// Compares every tensor of two models; `progress` sees the elements that are done, and all.
///
/// # Errors
/// [`Error::OtherModel`] when they are not one model in two forms; [`Error::NotFinite`]; [`Error::Packed`] and what else keeps a tensor
/// from being read.
pub fn compare(found: &Checkpoint, source: &Checkpoint, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<TensorComparison>> {
    check_configs(found, source)?;
    let specs = tensor_specs(source.config(), ExpertStorage::Float(Dtype::F32));
    let elements = |shape: &[usize]| shape.iter().map(|&size| size as u64).product::<u64>();
    let total = specs.iter().map(|spec| elements(&spec.shape)).sum();
    let mut matrices = source.expert_matrices().peekable();
    let (mut done, mut comparisons) = (0, Vec::with_capacity(specs.len()));
    for spec in &specs {
        let pair = Pair { found, source, name: &spec.name };
        let mut advance = |elements: u64| {
            done += elements;
            progress(done, total);
        };
        let deviation = match matrices.next_if(|(layer, projection)| projection.tensor_name(*layer) == spec.name) {
            Some((layer, projection)) => pair.experts(layer, projection, &mut advance)?,
            None => {
                let deviation =
                    pair.deviation(&Numbers::of_tensor(found.tensor(&spec.name)?), &Numbers::of_tensor(source.tensor(&spec.name)?), 0)?;
                advance(elements(&spec.shape));
                deviation
            }
        };
        comparisons.push(TensorComparison { name: spec.name.clone(), elements: elements(&spec.shape), deviation });
    }
    Ok(comparisons)
}

/// A tensor that both models have.
#[derive(Clone, Copy)]
struct Pair<'a> {
    found: &'a Checkpoint,
    source: &'a Checkpoint,
    name: &'a str,
}

impl Pair<'_> {
    fn experts(&self, layer: usize, projection: Projection, advance: &mut dyn FnMut(u64)) -> Result<Option<Accuracy>> {
        let config = self.source.config();
        let [inputs, outputs] = projection.dims(config);
        let mut total: Option<Accuracy> = None;
        for expert in 0..config.num_local_experts {
            let (found, source) = (self.found.expert(layer, projection, expert)?, self.source.expert(layer, projection, expert)?);
            // Equal blocks stand for equal numbers.
            let is_same = matches!(found, ExpertMatrix::Mxfp4 { .. }) && found == source;
            if !is_same {
                let numbers = |model: &Checkpoint, matrix| {
                    Numbers::of_expert(matrix, outputs).map_err(|error| packed(model, projection.tensor_name(layer), expert, error))
                };
                let (found, source) = (numbers(self.found, found)?, numbers(self.source, source)?);
                let deviation = self.deviation(&found, &source, expert * inputs * outputs)?;
                total = total.into_iter().chain(deviation).reduce(std::ops::Add::add);
            }
            advance((inputs * outputs) as u64);
        }
        Ok(total)
    }

    /// How far `found` is from `source`; `first` is the index of their first element in the tensor.
    fn deviation(&self, found: &Numbers<'_>, source: &Numbers<'_>, first: usize) -> Result<Option<Accuracy>> {
        if found.dtype == source.dtype && found.bytes == source.bytes {
            self.release(found, source);
            return Ok(None);
        }
        let mut total = Accuracy::default();
        for start in (0..source.len()).step_by(PIECE_ELEMENTS) {
            let end = source.len().min(start + PIECE_ELEMENTS);
            let (of_found, of_source) = (found.floats(start..end), source.floats(start..end));
            for (model, values) in [(self.found, &of_found), (self.source, &of_source)] {
                if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                    let path = model.file_of(self.name).to_owned();
                    return Err(Error::NotFinite { tensor: self.name.to_owned(), path, index: first + start + index });
                }
            }
            // The lengths are equal: both have the shape of the same config.
            total = total + Accuracy::of_floats(&of_source, &of_found).unwrap_or_default();
        }
        self.release(found, source);
        Ok((total.noise > 0.0).then_some(total))
    }

    fn release(&self, found: &Numbers<'_>, source: &Numbers<'_>) {
        self.found.release(&found.bytes);
        self.source.release(&source.bytes);
    }
}

/// Floats as they are stored.
struct Numbers<'a> {
    dtype: Dtype,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Numbers<'a> {
    fn of_tensor(tensor: CheckpointTensor<'a>) -> Self {
        Self { dtype: tensor.dtype, bytes: tensor.bytes }
    }

    /// The matrix [in, out] of an expert with `outputs`.
    fn of_expert(matrix: ExpertMatrix<'a>, outputs: usize) -> Result<Self, ft_quant::Error> {
        Ok(match matrix {
            ExpertMatrix::Float { dtype, values } => Self { dtype, bytes: values },
            ExpertMatrix::Mxfp4 { blocks, scales } => {
                let mut values = vec![bf16::ZERO; blocks.len() * 2];
                unpack_transposed(&blocks, &scales, outputs, &mut values)?;
                Self { dtype: Dtype::Bf16, bytes: cast_slice::<bf16, u8>(&values).to_vec().into() }
            }
        })
    }

    fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    fn floats(&self, range: std::ops::Range<usize>) -> Vec<f32> {
        let bytes = &self.bytes[range.start * self.dtype.size()..range.end * self.dtype.size()];
        match self.dtype {
            Dtype::F32 => widened::<f32>(bytes),
            Dtype::F16 => widened::<f16>(bytes),
            _ => widened::<bf16>(bytes),
        }
    }
}

fn widened<T: Float + Pod>(bytes: &[u8]) -> Vec<f32> {
    // A file puts its tensors at whatever address it likes.
    let values: Cow<'_, [T]> = try_cast_slice(bytes).map_or_else(|_| pod_collect_to_vec(bytes).into(), Cow::Borrowed);
    values.iter().map(|value| value.to_f32()).collect()
}

fn packed(model: &Checkpoint, tensor: String, expert: usize, source: ft_quant::Error) -> Error {
    let tensor = format!("{tensor}_scales");
    Error::Packed { path: model.file_of(&tensor).to_owned(), tensor, expert, source }
}

/// Fails when the two do not compute alike, whatever their weights are.
fn check_configs(found: &Checkpoint, source: &Checkpoint) -> Result<()> {
    let settings = settings(found.config()).into_iter().zip(settings(source.config()));
    for ((key, found_value), (_, expected)) in settings {
        // GGUF keeps fractions in single precision.
        if (found_value - expected).abs() > 1e-6 * expected.abs() {
            let (path, source_model) = (found.path().to_owned(), source.path().to_owned());
            return Err(Error::OtherModel { path, source_model, key, expected, found: found_value });
        }
    }
    Ok(())
}

/// What a forward pass depends on besides the weights, by its key in `config.json`.
fn settings(config: &Config) -> Vec<(&'static str, f64)> {
    let count = |key, value: usize| (key, value as f64);
    let published = YarnScaling { factor: 1.0, ..YarnScaling::published() };
    let scaling = config.rope_scaling.as_ref().unwrap_or(&published);
    vec![
        count("num_hidden_layers", config.num_hidden_layers),
        count("hidden_size", config.hidden_size),
        count("intermediate_size", config.intermediate_size),
        count("vocab_size", config.vocab_size),
        count("num_local_experts", config.num_local_experts),
        count("num_experts_per_tok", config.num_experts_per_token),
        count("num_attention_heads", config.num_attention_heads),
        count("num_key_value_heads", config.num_key_value_heads),
        count("head_dim", config.head_dim),
        count("sliding_window", config.sliding_window),
        count("max_position_embeddings", config.max_position_embeddings),
        ("rms_norm_eps", config.rms_norm_eps),
        ("rope_theta", config.rope_theta),
        ("swiglu_limit", config.swiglu_limit),
        ("swiglu_alpha", config.swiglu_alpha),
        ("rope_scaling.factor", scaling.factor),
        ("rope_scaling.beta_fast", scaling.beta_fast),
        ("rope_scaling.beta_slow", scaling.beta_slow),
        count("rope_scaling.original_max_position_embeddings", scaling.original_max_position_embeddings),
    ]
}
