//! Two models tensor by tensor, whatever files they are in: what tells whether an export holds what its source does.
//!
//! Tensors are compared as the numbers that a runtime computes with, in the layout of a plain checkpoint.

use std::borrow::Cow;

use bytemuck::cast_slice;
use ft_quant::Accuracy;
use ft_quant::mxfp4::unpack_transposed;
use half::{bf16, f16};

use crate::checkpoint::{Checkpoint, CheckpointTensor, Config, ExpertMatrix, ExpertStorage, Projection, YarnScaling, tensor_specs};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::stream::{Stored, floats};

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
    /// Of these experts the one that is furthest off, and how far it is.
    pub worst_expert: Option<(usize, Accuracy)>,
    /// How well the type that the values are found in holds the source's.
    pub fidelity: Fidelity,
}

/// How well a type holds the numbers of another, from the best on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Fidelity {
    /// All of them: a difference is a mistake.
    #[default]
    Exact,
    /// It is a float of fewer bits.
    Rounded,
    /// It is one of blocks with scales of their own.
    Quantized,
}

impl TensorComparison {
    /// Signal to noise of the found values in dB, of the expert that is furthest off where there are experts; infinite where all values are
    /// the same.
    ///
    /// An expert in another's place is little beside the noise of many that are quantized.
    #[must_use]
    pub fn sqnr_db(&self) -> f64 {
        let worst = self.worst_expert.as_ref().map(|(_, accuracy)| accuracy).or(self.deviation.as_ref());
        worst.and_then(Accuracy::sqnr_db).unwrap_or(f64::INFINITY)
    }

    /// The name, with the expert that is furthest off.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.worst_expert {
            Some((expert, _)) => format!("{} of expert {expert}", self.name),
            None => self.name.clone(),
        }
    }
}

/// How far the found values of a tensor are from the source's.
#[derive(Debug, Clone, Copy, Default)]
struct Deviations {
    total: Option<Accuracy>,
    worst: Option<(usize, Accuracy)>,
    fidelity: Fidelity,
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
        let deviations = match matrices.next_if(|(layer, projection)| projection.tensor_name(*layer) == spec.name) {
            Some((layer, projection)) => pair.experts(layer, projection, &mut advance)?,
            None => {
                let (of_found, of_source) = (Numbers::of_tensor(found.tensor(&spec.name)?), Numbers::of_tensor(source.tensor(&spec.name)?));
                let fidelity = if found.is_quantized(&spec.name) { Fidelity::Quantized } else { holds(of_found.dtype, of_source.dtype) };
                let total = pair.deviation(&of_found, &of_source, 0)?;
                advance(elements(&spec.shape));
                Deviations { total, worst: None, fidelity }
            }
        };
        comparisons.push(TensorComparison {
            name: spec.name.clone(),
            elements: elements(&spec.shape),
            deviation: deviations.total,
            worst_expert: deviations.worst,
            fidelity: deviations.fidelity,
        });
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
    fn experts(&self, layer: usize, projection: Projection, advance: &mut dyn FnMut(u64)) -> Result<Deviations> {
        let config = self.source.config();
        let [inputs, outputs] = projection.dims(config);
        let fidelity = if self.found.is_quantized(self.name) { Fidelity::Quantized } else { Fidelity::Exact };
        let mut deviations = Deviations { fidelity, ..Default::default() };
        for expert in 0..config.num_local_experts {
            let (found, source) = (self.found.expert(layer, projection, expert)?, self.source.expert(layer, projection, expert)?);
            deviations.fidelity = deviations.fidelity.max(match (&found, &source) {
                (ExpertMatrix::Mxfp4 { .. }, ExpertMatrix::Mxfp4 { .. }) => Fidelity::Exact,
                (ExpertMatrix::Mxfp4 { .. }, ExpertMatrix::Float { .. }) => Fidelity::Quantized,
                // Whatever an element and its scale make has two bits, and is a number in bf16 or is refused.
                (ExpertMatrix::Float { dtype, .. }, ExpertMatrix::Mxfp4 { .. }) => holds(*dtype, Dtype::Bf16),
                (ExpertMatrix::Float { dtype, .. }, ExpertMatrix::Float { dtype: of_source, .. }) => holds(*dtype, *of_source),
            });
            // Equal blocks stand for equal numbers.
            let is_same = matches!(found, ExpertMatrix::Mxfp4 { .. }) && found == source;
            if !is_same {
                let numbers = |model: &Checkpoint, matrix| {
                    Numbers::of_expert(matrix, outputs).map_err(|error| packed(model, projection.tensor_name(layer), expert, error))
                };
                let (found, source) = (numbers(self.found, found)?, numbers(self.source, source)?);
                if let Some(deviation) = self.deviation(&found, &source, expert * inputs * outputs)? {
                    deviations.total = Some(deviations.total.unwrap_or_default() + deviation);
                    // There is noise in both.
                    let is_worse = deviations.worst.is_none_or(|(_, worst)| deviation.sqnr_db() < worst.sqnr_db());
                    deviations.worst = if is_worse { Some((expert, deviation)) } else { deviations.worst };
                }
            }
            advance((inputs * outputs) as u64);
        }
        Ok(deviations)
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

/// How well floats of type `found` hold those of type `source`.
fn holds(found: Dtype, source: Dtype) -> Fidelity {
    if found == source || found == Dtype::F32 { Fidelity::Exact } else { Fidelity::Rounded }
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

fn widened<T: Stored>(bytes: &[u8]) -> Vec<f32> {
    let values = floats::<T>(bytes);
    let mut wide = vec![0.0; values.len()];
    T::widen_into(&values, &mut wide);
    wide
}

fn packed(model: &Checkpoint, tensor: String, expert: usize, source: ft_quant::Error) -> Error {
    let tensor = format!("{tensor}_scales");
    Error::Packed { path: model.file_of(&tensor).to_owned(), tensor, expert, source }
}

/// Fails when the two do not compute alike, whatever their weights are.
fn check_configs(found: &Checkpoint, source: &Checkpoint) -> Result<()> {
    let settings = settings(found.config()).into_iter().zip(settings(source.config()));
    let is_gguf = found.gguf().is_some() || source.gguf().is_some();
    // GGUF has no place for it.
    for ((key, found_value), (_, expected)) in settings.filter(|((key, _), _)| !is_gguf || *key != "rope_scaling.truncate") {
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
        count("rope_scaling.truncate", scaling.truncate.into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::write_random_model;
    use crate::gguf::{GgufExport, GgufTarget, Mix};
    use crate::requantize::{ExpertTarget, Requantization};
    use ft_quant::Codec;
    use ft_quant::mxfp4::ScaleRule;
    use std::path::{Path, PathBuf};

    fn config() -> Config {
        Config { hidden_size: 96, num_local_experts: 5, vocab_size: 517, ..Config::nano() }
    }

    fn model(path: &Path, config: &Config, storage: ExpertStorage) -> Checkpoint {
        write_random_model(path, config, storage, 7, &mut |_, _| {}).unwrap();
        Checkpoint::open(path).unwrap()
    }

    fn converted(source: &Path, target: PathBuf, to: ExpertTarget) -> Checkpoint {
        let request = Requantization { source, target: &target, to, hints_from: None, max_shard_bytes: u64::MAX };
        request.run(&Codec::Cpu, &mut |_, _| {}).unwrap().into_sealed().publish().unwrap();
        Checkpoint::open(&target).unwrap()
    }

    fn exported(source: &Checkpoint, target: &Path, to: GgufTarget) -> Checkpoint {
        let types = |tensor: &crate::gguf::GgufTensor| to.tensor_type(source, tensor);
        let (file_type, packing) = (to.file_type(source), ScaleRule::Even.into());
        let export = GgufExport { source, target, types: &types, file_type, packing, split_bytes: None, name: None, template: None };
        export.run(&mut |_, _| {}).unwrap().publish().unwrap();
        Checkpoint::open(target).unwrap()
    }

    /// The experts' matrices of all layers.
    fn matrices(model: &Checkpoint) -> Vec<String> {
        model.expert_matrices().map(|(layer, projection)| projection.tensor_name(layer)).collect()
    }

    /// The names of the tensors whose type does not hold all that the source's does.
    fn lossy(found: &Checkpoint, source: &Checkpoint) -> Vec<String> {
        let compared = compare(found, source, &mut |_, _| {}).unwrap();
        assert!(compared.iter().all(|tensor| tensor.deviation.is_none() || tensor.fidelity != Fidelity::Exact));
        compared.into_iter().filter(|tensor| tensor.fidelity != Fidelity::Exact).map(|tensor| tensor.name).collect()
    }

    #[test]
    fn what_a_type_cannot_hold_is_told_from_what_it_can() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let plain = model(&path("plain"), &config(), ExpertStorage::Float(Dtype::Bf16));
        let packed = converted(plain.path(), path("packed"), ExpertTarget::Mxfp4(ScaleRule::Even.into()));
        let unpacked = converted(packed.path(), path("unpacked"), ExpertTarget::Bf16);
        assert_eq!(lossy(&packed, &plain), matrices(&plain));
        for (found, source) in [(&packed, &packed), (&unpacked, &packed), (&plain, &plain)] {
            assert!(lossy(found, source).is_empty());
        }
        // Unpacked weights come back exactly, but not every number would.
        assert_eq!(lossy(&packed, &unpacked), matrices(&plain));
        let native = exported(&packed, &path("native.gguf"), GgufTarget::Native);
        let eight_bits = exported(&packed, &path("q8_0.gguf"), GgufTarget::Mix(Mix::Q8_0));
        assert!(lossy(&native, &packed).is_empty());
        assert!(lossy(&packed, &native).iter().all(|name| !matrices(&plain).contains(name)));
        let compared = compare(&eight_bits, &packed, &mut |_, _| {}).unwrap();
        for tensor in &compared {
            let is_exact = tensor.name.ends_with("bias") || tensor.name.ends_with("norm.weight") || tensor.name.ends_with("sinks");
            assert!(!is_exact || tensor.fidelity == Fidelity::Exact && tensor.deviation.is_none(), "{tensor:?}");
            assert!(!matrices(&plain).contains(&tensor.name) || tensor.fidelity == Fidelity::Quantized, "{tensor:?}");
        }
    }

    #[test]
    fn the_expert_that_is_furthest_off_is_told() {
        let root = tempfile::tempdir().unwrap();
        let source = model(&root.path().join("source"), &config(), ExpertStorage::Float(Dtype::Bf16));
        let (target, file) = (root.path().join("target"), "model.safetensors");
        std::fs::create_dir(&target).unwrap();
        std::fs::copy(source.path().join("config.json"), target.join("config.json")).unwrap();
        let mut bytes = std::fs::read(source.path().join(file)).unwrap();
        let ExpertMatrix::Float { values, .. } = source.expert(0, Projection::Down, 3).unwrap() else { panic!("plain floats") };
        let start = bytes.windows(values.len()).position(|window| window == &values[..]).unwrap();
        // The exponent's lowest bit of one element, and the sign of half an expert.
        bytes[start - values.len() + 1] ^= 1;
        bytes[start..start + values.len() / 2].iter_mut().skip(1).step_by(2).for_each(|byte| *byte ^= 0x80);
        std::fs::write(target.join(file), bytes).unwrap();
        let found = Checkpoint::open(&target).unwrap();
        let changed: Vec<TensorComparison> =
            compare(&found, &source, &mut |_, _| {}).unwrap().into_iter().filter(|tensor| tensor.deviation.is_some()).collect();
        let [changed] = &changed[..] else { panic!("{changed:?}") };
        assert_eq!(changed.place(), "model.layers.0.mlp.experts.down_proj of expert 3");
        assert!(changed.fidelity == Fidelity::Exact && (-5.0..0.0).contains(&changed.sqnr_db()), "{}", changed.sqnr_db());
        assert!(changed.deviation.unwrap().sqnr_db().unwrap() > changed.sqnr_db() + 2.0);
    }

    #[test]
    fn settings_that_gguf_has_no_place_for_matter_between_directories() {
        let root = tempfile::tempdir().unwrap();
        let scaling = |truncate| Some(YarnScaling { truncate, ..YarnScaling::published() });
        let of = |name: &str, truncate| {
            model(&root.path().join(name), &Config { rope_scaling: scaling(truncate), ..config() }, ExpertStorage::Mxfp4)
        };
        let (source, other) = (of("source", true), of("other", false));
        let error = compare(&other, &source, &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, Error::OtherModel { key: "rope_scaling.truncate", .. }), "{error}");
        assert!(lossy(&exported(&source, &root.path().join("model.gguf"), GgufTarget::Native), &source).is_empty());
    }
}
