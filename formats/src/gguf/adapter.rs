//! A low-rank adapter as llama.cpp reads it, that of experts included.
//!
//! A runtime multiplies every update by one alpha over the rank of its pair. A pair that is scaled otherwise, by rsLoRA or by a pattern of its
//! own, has the difference multiplied into B.
//!
//! Letters: e experts, r rank.
//!
//! Source: llama.cpp `src/llama-adapter.cpp` (`llama_adapter_lora_init_impl`), `src/llama-graph.cpp` (`build_lora_mm`, `build_lora_mm_id`).

use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};

use super::{ARCHITECTURE, ExpertRows, GgufFile, GgufSpec, GgufWriter, Held, SealedGguf, TensorType, Value, gguf_tensors};
use crate::checkpoint::{Config, Projection};
use crate::error::{Error, Result};
use crate::peft::{AdapterPair, AdapterTarget, PeftAdapter};

/// An adapter that is to be written for llama.cpp.
#[derive(Debug, Clone, Copy)]
pub struct GgufAdapter<'a> {
    /// The adapter.
    pub adapter: &'a PeftAdapter,
    /// The model that it changes.
    pub model: &'a Config,
    /// `general.name`.
    pub name: &'a str,
    /// Type of the tensors: F32, F16 or BF16.
    pub tensor_type: TensorType,
}

/// One of the two halves of a pair, for one tensor of the model.
struct HalfPair<'a> {
    spec: GgufSpec,
    pair: &'a AdapterPair,
    source: Source,
}

/// The elements of a half.
enum Source {
    A,
    /// These outputs of each expert.
    B(ExpertRows),
}

impl GgufAdapter<'_> {
    /// Writes the adapter at `path`, where it appears when it is published.
    ///
    /// # Shapes
    /// `NAME.lora_a` is [r, in] and `NAME.lora_b` [out, r], with a leading axis of experts for theirs. Of the projection to gate and up, A
    /// stands for both, and B is taken apart.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for an element that is no number or exceeds the type; [`Error::FileExists`], [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<SealedGguf> {
        let alpha = self.alpha();
        let metadata = [
            ("general.architecture".to_owned(), Value::String(ARCHITECTURE.to_owned())),
            ("general.type".to_owned(), Value::String("adapter".to_owned())),
            ("general.name".to_owned(), Value::String(self.name.to_owned())),
            ("adapter.type".to_owned(), Value::String("lora".to_owned())),
            ("adapter.lora.alpha".to_owned(), Value::F32(alpha)),
        ];
        let halves = self.halves();
        let specs: Vec<GgufSpec> = halves.iter().map(|half| half.spec.clone()).collect();
        let mut writer = GgufWriter::create(path, &metadata, &specs, None)?;
        for half in &halves {
            let values = half.values(alpha);
            writer.write(&half.spec.name, &self.bytes(half, &values)?)?;
        }
        writer.seal()
    }

    /// Compares what was written with the adapter, number by number.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or [`Error::Differs`] with the first tensor that holds something else.
    pub fn check(&self, file: &GgufFile) -> Result<()> {
        let alpha = self.alpha();
        for half in &self.halves() {
            let found = file.tensor(&half.spec.name)?;
            if found.shape != half.spec.shape || found.bytes != self.bytes(half, &half.values(alpha))? {
                return Err(Error::Differs { tensor: half.spec.name.clone(), path: file.path().to_owned() });
            }
        }
        Ok(())
    }

    /// The alpha of the first pair that is scaled at all; a runtime takes 0 for none, that is, for no division by the rank.
    fn alpha(&self) -> f32 {
        let alphas = self.adapter.pairs().iter().map(|pair| (pair.scaling * pair.rank as f64) as f32);
        alphas.into_iter().find(|alpha| *alpha != 0.0 && alpha.is_finite()).unwrap_or(1.0)
    }

    fn halves(&self) -> Vec<HalfPair<'_>> {
        let pairs: HashMap<AdapterTarget, &AdapterPair> = self.adapter.pairs().iter().map(|pair| (pair.target, pair)).collect();
        let targets: HashMap<String, AdapterTarget> = pairs.keys().map(|target| (weight_name(*target), *target)).collect();
        let mut halves = Vec::new();
        for tensor in gguf_tensors(self.model) {
            let (target, rows) = match &tensor.held {
                Held::Whole(name) => (targets.get(name).copied(), ExpertRows::All),
                Held::Experts { layer, projection, rows } => {
                    (Some(AdapterTarget::Experts { layer: *layer, projection: *projection }), *rows)
                }
                Held::ExpertBiases { .. } => continue,
            };
            let Some(&pair) = target.and_then(|target| pairs.get(&target)) else { continue };
            let (&rank, &output) = (&pair.rank, &tensor.shape[tensor.shape.len() - 2]);
            let mut b_shape = pair.b_shape.clone();
            let axis = b_shape.len() - 2;
            b_shape[axis] = output;
            debug_assert_eq!(b_shape[axis + 1], rank);
            for (ending, shape, source) in [("lora_a", pair.a_shape.clone(), Source::A), ("lora_b", b_shape, Source::B(rows))] {
                let spec = GgufSpec { name: format!("{}.{ending}", tensor.name), tensor_type: self.tensor_type, shape };
                halves.push(HalfPair { spec, pair, source });
            }
        }
        halves
    }

    fn bytes(&self, half: &HalfPair<'_>, values: &[f32]) -> Result<Vec<u8>> {
        let refused = |index| Error::NotFinite { tensor: half.spec.name.clone(), path: self.adapter.path().to_owned(), index };
        let mut bytes = Vec::with_capacity(values.len() * 4);
        for (index, &value) in values.iter().enumerate() {
            let is_finite = match self.tensor_type {
                TensorType::F16 => {
                    let value = f16::from_f32(value);
                    bytes.extend(value.to_le_bytes());
                    value.is_finite()
                }
                TensorType::Bf16 => {
                    let value = bf16::from_f32(value);
                    bytes.extend(value.to_le_bytes());
                    value.is_finite()
                }
                _ => {
                    bytes.extend(value.to_le_bytes());
                    value.is_finite()
                }
            };
            if !is_finite {
                return Err(refused(index));
            }
        }
        Ok(bytes)
    }
}

impl HalfPair<'_> {
    fn values(&self, alpha: f32) -> Vec<f32> {
        let pair = self.pair;
        let Source::B(rows) = self.source else { return pair.a.clone() };
        let factor = (pair.scaling * pair.rank as f64 / f64::from(alpha)) as f32;
        let (first, step) = match rows {
            ExpertRows::All => (0, 1),
            ExpertRows::Gate => (0, 2),
            ExpertRows::Up => (1, 2),
        };
        let output = pair.b_shape[pair.b_shape.len() - 2];
        let experts = pair.b.chunks_exact(output * pair.rank);
        let taken = experts.flat_map(|expert| expert.chunks_exact(pair.rank).skip(first).step_by(step).flatten());
        taken.map(|&value| value * factor).collect()
    }
}

/// The Hugging Face name of a weight.
fn weight_name(target: AdapterTarget) -> String {
    match target {
        AdapterTarget::Attention { .. } | AdapterTarget::LmHead => format!("{}.weight", target.key()),
        AdapterTarget::Router { .. } => target.key(),
        AdapterTarget::Experts { layer, projection } => Projection::tensor_name(projection, layer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufFile;
    use crate::peft::{AdapterConfig, AttentionProjection, write_adapter};

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 7 + seed * 13) % 31) as f32 / 8.0 - 2.0).collect()
    }

    fn config() -> Config {
        Config {
            num_hidden_layers: 2,
            hidden_size: 96,
            intermediate_size: 64,
            num_local_experts: 5,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            vocab_size: 300,
            ..Config::nano()
        }
    }

    fn pair(target: AdapterTarget, rank: usize, scaling: f64) -> AdapterPair {
        let [experts, input, output] = target.dims(&config());
        let with_experts = |shape: [usize; 2]| match target {
            AdapterTarget::Experts { .. } => vec![experts, shape[0], shape[1]],
            _ => shape.to_vec(),
        };
        AdapterPair {
            target,
            rank,
            scaling,
            a: numbers(experts * rank * input, rank),
            a_shape: with_experts([rank, input]),
            b: numbers(experts * output * rank, rank + 1),
            b_shape: with_experts([output, rank]),
        }
    }

    fn floats(file: &GgufFile, name: &str) -> Vec<f32> {
        file.tensor(name).unwrap().bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// `alpha / r * B A` of a tensor, [e, out, in].
    fn update(file: &GgufFile, name: &str) -> Vec<f32> {
        let Some(Value::F32(alpha)) = file.get("adapter.lora.alpha") else { panic!("no alpha") };
        let (a, b) = (floats(file, &format!("{name}.lora_a")), floats(file, &format!("{name}.lora_b")));
        let a_shape = file.tensor(&format!("{name}.lora_a")).unwrap().shape.to_vec();
        let b_shape = file.tensor(&format!("{name}.lora_b")).unwrap().shape.to_vec();
        let [rank, input] = a_shape[a_shape.len() - 2..] else { panic!() };
        let output = b_shape[b_shape.len() - 2];
        let experts = a.len() / (rank * input);
        product(&a, &b, [experts, rank, input, output], alpha / rank as f32)
    }

    fn product(a: &[f32], b: &[f32], [experts, rank, input, output]: [usize; 4], scaling: f32) -> Vec<f32> {
        let mut update = Vec::new();
        for e in 0..experts {
            for o in 0..output {
                for i in 0..input {
                    let sum: f32 = (0..rank).map(|r| b[(e * output + o) * rank + r] * a[(e * rank + r) * input + i]).sum();
                    update.push(sum * scaling);
                }
            }
        }
        update
    }

    fn expected(pair: &AdapterPair, rows: ExpertRows) -> Vec<f32> {
        let [experts, input, output] = pair.target.dims(&config());
        let whole = product(&pair.a, &pair.b, [experts, pair.rank, input, output], pair.scaling as f32);
        let (first, step) = match rows {
            ExpertRows::All => (0, 1),
            ExpertRows::Gate => (0, 2),
            ExpertRows::Up => (1, 2),
        };
        let experts = whole.chunks(output * input);
        experts.flat_map(|expert| expert.chunks(input).skip(first).step_by(step).flatten().copied().collect::<Vec<_>>()).collect()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} {expected}");
        }
    }

    #[test]
    fn updates_are_those_of_the_adapter_whatever_their_scalings() {
        let root = tempfile::tempdir().unwrap();
        let experts = |layer, projection| AdapterTarget::Experts { layer, projection };
        let attention = |layer, projection| AdapterTarget::Attention { layer, projection };
        let pairs = [
            pair(attention(0, AttentionProjection::Q), 3, 2.0),
            pair(attention(1, AttentionProjection::O), 5, 0.3),
            pair(AdapterTarget::Router { layer: 1 }, 3, 2.0),
            pair(experts(0, Projection::GateUp), 3, 2.0),
            pair(experts(0, Projection::Down), 4, 1.25),
            pair(experts(1, Projection::Down), 3, 2.0),
            pair(AdapterTarget::LmHead, 3, -1.0),
        ];
        let described = AdapterConfig::for_pairs("base", 3, 6.0, false, &pairs);
        let directory = root.path().join("adapter");
        std::fs::create_dir(&directory).unwrap();
        write_adapter(&directory, &described, &pairs).unwrap();
        let (adapter, model) = (PeftAdapter::open_for(&directory, &config()).unwrap(), config());
        let path = root.path().join("adapter.gguf");
        let request = GgufAdapter { adapter: &adapter, model: &model, name: "test", tensor_type: TensorType::F32 };
        request.write(&path).unwrap().publish().unwrap();
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.num_tensors(), 2 * 8);
        assert_eq!(file.get("general.type").and_then(Value::as_str), Some("adapter"));
        close(&update(&file, "blk.0.attn_q.weight"), &expected(&pairs[0], ExpertRows::All));
        close(&update(&file, "blk.1.attn_output.weight"), &expected(&pairs[1], ExpertRows::All));
        close(&update(&file, "blk.1.ffn_gate_inp.weight"), &expected(&pairs[2], ExpertRows::All));
        close(&update(&file, "blk.0.ffn_gate_exps.weight"), &expected(&pairs[3], ExpertRows::Gate));
        close(&update(&file, "blk.0.ffn_up_exps.weight"), &expected(&pairs[3], ExpertRows::Up));
        close(&update(&file, "blk.0.ffn_down_exps.weight"), &expected(&pairs[4], ExpertRows::All));
        close(&update(&file, "blk.1.ffn_down_exps.weight"), &expected(&pairs[5], ExpertRows::All));
        close(&update(&file, "output.weight"), &expected(&pairs[6], ExpertRows::All));
    }

    #[test]
    fn what_exceeds_the_type_is_named() {
        let root = tempfile::tempdir().unwrap();
        let mut large = pair(AdapterTarget::Router { layer: 0 }, 2, 1.0);
        large.b[3] = 1e6;
        let described = AdapterConfig::for_pairs("base", 2, 2.0, false, std::slice::from_ref(&large));
        write_adapter(root.path(), &described, &[large]).unwrap();
        let (adapter, model) = (PeftAdapter::open_for(root.path(), &config()).unwrap(), config());
        let path = root.path().join("adapter.gguf");
        let request = GgufAdapter { adapter: &adapter, model: &model, name: "test", tensor_type: TensorType::F16 };
        let error = request.write(&path).unwrap_err();
        assert!(matches!(&error, Error::NotFinite { tensor, index: 3, .. } if tensor == "blk.0.ffn_gate_inp.weight.lora_b"), "{error}");
        assert!(!path.exists());
    }
}
