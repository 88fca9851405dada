//! Models in GGUF against the same models as checkpoints, tensor by tensor.

use std::fs;
use std::path::{Path, PathBuf};

use ft_quant::Codec;
use ft_quant::mxfp4::ScaleRule;
use half::{bf16, f16};
use tempfile::TempDir;

use crate::checkpoint::round_trip::{content, small};
use crate::checkpoint::{
    Checkpoint, CheckpointWriter, Config, ExpertMatrix, ExpertStorage, ExpertWeights, LayerType, Projection, tensor_specs,
};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::gguf::testing::File;
use crate::gguf::{Array, ExpertRows, GgufTensor, Held, TensorType, Value, gguf_tensors};
use crate::requantize::{ExpertTarget, Requantization};
use crate::safetensors::TensorSpec;

const FLOATS: [(TensorType, Dtype); 3] = [(TensorType::F32, Dtype::F32), (TensorType::F16, Dtype::F16), (TensorType::Bf16, Dtype::Bf16)];

/// The small model of the round trips, as a checkpoint and as a GGUF file.
pub(super) struct Models {
    root: TempDir,
    pub(super) config: Config,
    storage: ExpertStorage,
}

impl Models {
    pub(super) fn new(storage: ExpertStorage) -> Self {
        // Rows of whole blocks, also where the experts are plain.
        let config = Config { has_mxfp4_experts: storage == ExpertStorage::Mxfp4, ..small(ExpertStorage::Mxfp4) };
        Self { root: tempfile::tempdir().unwrap(), config, storage }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn spec(&self, name: &str) -> TensorSpec {
        tensor_specs(&self.config, self.storage).into_iter().find(|spec| spec.name == name).unwrap()
    }

    /// The content of a tensor as f32.
    fn floats(&self, name: &str) -> Vec<f32> {
        floats(self.spec(name).dtype, &content(&self.spec(name)))
    }

    fn write_checkpoint(&self) -> PathBuf {
        let path = self.path("checkpoint");
        let mut writer = CheckpointWriter::create(&path, &self.config, self.storage, u64::MAX).unwrap();
        for spec in writer.specs().to_vec() {
            writer.write(&spec.name, &content(&spec)).unwrap();
        }
        writer.finish().unwrap()
    }

    /// The same as a GGUF file, with tensors in the type that `choose` says; those of packed experts are always MXFP4.
    pub(super) fn gguf(&self, choose: impl Fn(&GgufTensor) -> TensorType) -> File {
        let mut file = metadata(&self.config);
        for tensor in gguf_tensors(&self.config) {
            let is_matrices = matches!(tensor.held, Held::Experts { .. });
            let (tensor_type, bytes) = match tensor.held.clone() {
                _ if is_matrices && self.storage == ExpertStorage::Mxfp4 => (TensorType::Mxfp4, self.packed(&tensor)),
                held => {
                    let values = match held {
                        Held::Whole(name) => self.floats(&name),
                        Held::Experts { layer, projection, rows } => self.expert_rows(layer, projection, rows),
                        Held::ExpertBiases { layer, projection, rows } => {
                            let all = self.floats(&format!("{}_bias", projection.tensor_name(layer)));
                            all.into_iter().enumerate().filter(|(index, _)| is_in(*index, rows)).map(|(_, value)| value).collect()
                        }
                    };
                    let tensor_type = choose(&tensor);
                    (tensor_type, stored(tensor_type, &values))
                }
            };
            file = file.with_tensor(&tensor.name, tensor_type, &tensor.shape, &bytes);
        }
        file
    }

    /// Plain experts [e, out, in], some of the outputs.
    fn expert_rows(&self, layer: usize, projection: Projection, rows: ExpertRows) -> Vec<f32> {
        let [inputs, outputs] = projection.dims(&self.config);
        let all = self.floats(&projection.tensor_name(layer));
        let mut values = Vec::new();
        for expert in all.chunks_exact(inputs * outputs) {
            for output in (0..outputs).filter(|output| is_in(*output, rows)) {
                values.extend((0..inputs).map(|input| expert[input * outputs + output]));
            }
        }
        values
    }

    /// The blocks of packed experts in ggml's layout, element by element.
    fn packed(&self, tensor: &GgufTensor) -> Vec<u8> {
        let Held::Experts { layer, projection, rows } = tensor.held else { panic!("{} holds no matrices", tensor.name) };
        let [inputs, outputs] = projection.dims(&self.config);
        let name = projection.tensor_name(layer);
        let (blocks, scales) = (content(&self.spec(&format!("{name}_blocks"))), content(&self.spec(&format!("{name}_scales"))));
        let mut bytes = Vec::new();
        for (index, (block, &scale)) in blocks.chunks_exact(16).zip(&scales).enumerate() {
            let output = index / (inputs / 32) % outputs;
            if is_in(output, rows) {
                let element = |index: usize| block[index / 2] >> (4 * (index % 2)) & 0xf;
                bytes.push(scale);
                bytes.extend((0..16).map(|byte| element(byte) | element(byte + 16) << 4));
            }
        }
        bytes
    }
}

fn is_in(output: usize, rows: ExpertRows) -> bool {
    match rows {
        ExpertRows::All => true,
        ExpertRows::Gate => output.is_multiple_of(2),
        ExpertRows::Up => !output.is_multiple_of(2),
    }
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|half| f16::from_le_bytes(*half).into()).collect(),
        _ => bytes.as_chunks().0.iter().map(|half| bf16::from_le_bytes(*half).into()).collect(),
    }
}

fn stored(tensor_type: TensorType, values: &[f32]) -> Vec<u8> {
    match (tensor_type, tensor_type.block_type()) {
        (_, Some(codec)) => {
            let mut blocks = vec![0; values.len() / codec.block_elements() * codec.block_bytes()];
            codec.quantize(values, &mut blocks).unwrap();
            blocks
        }
        (TensorType::F16, _) => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        (TensorType::Bf16, _) => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// The values that a type makes of others.
fn through(tensor_type: TensorType, values: &[f32]) -> Vec<f32> {
    let blocks = stored(tensor_type, values);
    let mut back = vec![0.0; values.len()];
    tensor_type.block_type().unwrap().dequantize(&blocks, &mut back).unwrap();
    back
}

/// The keys that llama.cpp's converter writes for `config`.
fn metadata(config: &Config) -> File {
    let count = |value: usize| Value::U32(value.try_into().unwrap());
    let slides = config.layer_types.iter().map(|kind| *kind == LayerType::SlidingAttention).collect();
    let yarn = config.rope_scaling.unwrap();
    File::default()
        .with("general.architecture", &Value::String("gpt-oss".to_owned()))
        .with("general.type", &Value::String("model".to_owned()))
        .with("gpt-oss.block_count", &count(config.num_hidden_layers))
        .with("gpt-oss.context_length", &count(config.max_position_embeddings))
        .with("gpt-oss.embedding_length", &count(config.hidden_size))
        .with("gpt-oss.feed_forward_length", &count(config.intermediate_size))
        .with("gpt-oss.attention.head_count", &count(config.num_attention_heads))
        .with("gpt-oss.attention.head_count_kv", &count(config.num_key_value_heads))
        .with("gpt-oss.rope.freq_base", &Value::F32(config.rope_theta as f32))
        .with("gpt-oss.attention.layer_norm_rms_epsilon", &Value::F32(config.rms_norm_eps as f32))
        .with("gpt-oss.expert_count", &count(config.num_local_experts))
        .with("gpt-oss.expert_used_count", &count(config.num_experts_per_token))
        .with("gpt-oss.attention.key_length", &count(config.head_dim))
        .with("gpt-oss.attention.value_length", &count(config.head_dim))
        .with("gpt-oss.attention.sliding_window", &count(config.sliding_window))
        .with("gpt-oss.attention.sliding_window_pattern", &Value::Array(Array::Bool(slides)))
        .with("gpt-oss.expert_feed_forward_length", &count(config.intermediate_size))
        .with("gpt-oss.rope.scaling.type", &Value::String("yarn".to_owned()))
        .with("gpt-oss.rope.scaling.factor", &Value::F32(yarn.factor as f32))
        .with("gpt-oss.rope.scaling.original_context_length", &count(yarn.original_max_position_embeddings))
}

/// In f32 what is always so, all else in `tensor_type`.
pub(super) fn usual(tensor_type: TensorType) -> impl Fn(&GgufTensor) -> TensorType {
    move |tensor| if tensor.is_always_f32() { TensorType::F32 } else { tensor_type }
}

#[test]
fn packed_experts_come_back_byte_for_byte_and_all_else_in_its_type() {
    for (tensor_type, dtype) in FLOATS {
        let models = Models::new(ExpertStorage::Mxfp4);
        let path = models.gguf(usual(tensor_type)).write(&models.path("model.gguf"));
        let source = Checkpoint::open(&models.write_checkpoint()).unwrap();
        let found = Checkpoint::open(&path).unwrap();
        assert_eq!((found.expert_storage(), found.config().layer_types.clone()), (ExpertStorage::Mxfp4, models.config.layer_types.clone()));
        assert_eq!(found.specs().len(), source.specs().len());
        for (spec, expected) in found.specs().iter().zip(source.specs()) {
            let (tensor, expected) = (found.tensor(&spec.name).unwrap(), source.tensor(&expected.name).unwrap());
            assert_eq!((tensor.name, tensor.shape), (expected.name, expected.shape));
            if spec.dtype == Dtype::U8 {
                assert!(tensor.bytes == expected.bytes, "{}", spec.name);
            } else {
                let is_matrix = spec.shape.len() == 2 && !spec.name.contains("bias") && !spec.name.contains("router");
                assert_eq!(tensor.dtype, if is_matrix { dtype } else { Dtype::F32 }, "{}", spec.name);
                let expected = stored(tensor_type, &floats(Dtype::Bf16, &expected.bytes));
                assert!(
                    floats(tensor.dtype, &tensor.bytes) == if is_matrix { floats(dtype, &expected) } else { models.floats(&spec.name) }
                );
            }
        }
        assert_eq!(found.total_bytes(), found.specs().iter().map(|spec| spec.byte_length().unwrap()).sum::<u64>());
        assert_eq!(found.stored_bytes(), found.total_bytes());
        for (layer, projection) in source.expert_matrices() {
            for expert in 0..5 {
                assert_eq!(found.expert(layer, projection, expert).unwrap(), source.expert(layer, projection, expert).unwrap());
                let unpacked = found.unpack_expert(layer, projection, expert).unwrap();
                assert!(unpacked == source.unpack_expert(layer, projection, expert).unwrap());
            }
        }
    }
}

#[test]
fn plain_experts_keep_their_type_and_are_transposed() {
    for (tensor_type, dtype) in FLOATS {
        let models = Models::new(ExpertStorage::Float(dtype));
        let path = models.gguf(usual(tensor_type)).write(&models.path("model.gguf"));
        let source = Checkpoint::open(&models.write_checkpoint()).unwrap();
        let found = Checkpoint::open(&path).unwrap();
        assert_eq!(found.expert_storage(), ExpertStorage::Float(dtype));
        for (layer, projection) in source.expert_matrices() {
            let name = projection.tensor_name(layer);
            assert!(found.tensor(&name).unwrap() == source.tensor(&name).unwrap(), "{name}");
            for expert in 0..5 {
                assert!(found.expert(layer, projection, expert).unwrap() == source.expert(layer, projection, expert).unwrap());
            }
            assert!(matches!(found.unpack_expert(layer, projection, 0), Err(Error::NotPacked { .. })));
        }
        let ExpertWeights::Float(tensor) = found.experts(2, Projection::GateUp).unwrap() else { panic!("not plain") };
        assert_eq!((tensor.dtype, tensor.shape), (dtype, &[5, 96, 128][..]));
    }
}

#[test]
fn quantized_weights_become_f32() {
    for tensor_type in [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q5_1, TensorType::Iq4Nl] {
        // In f16, the content is within the range of every type.
        let models = Models::new(ExpertStorage::Float(Dtype::F16));
        // No row of the attention's output is a whole number of blocks.
        let choose = |tensor: &GgufTensor| match tensor_type.byte_length(&tensor.shape) {
            Some(_) if !tensor.is_always_f32() => tensor_type,
            _ => TensorType::F32,
        };
        let found = Checkpoint::open(&models.gguf(choose).write(&models.path("model.gguf"))).unwrap();
        assert_eq!(found.expert_storage(), ExpertStorage::Float(Dtype::F32));
        assert!(found.stored_bytes() < found.total_bytes());
        for name in ["lm_head.weight", "model.layers.2.self_attn.k_proj.weight"] {
            let tensor = found.tensor(name).unwrap();
            assert_eq!(tensor.dtype, Dtype::F32);
            assert!(floats(Dtype::F32, &tensor.bytes) == through(tensor_type, &models.floats(name)), "{name}");
        }
        let [inputs, outputs] = Projection::GateUp.dims(&models.config);
        let [gate, up] =
            [ExpertRows::Gate, ExpertRows::Up].map(|rows| through(tensor_type, &models.expert_rows(1, Projection::GateUp, rows)));
        let ExpertMatrix::Float { dtype, values } = found.expert(1, Projection::GateUp, 3).unwrap() else { panic!("not plain") };
        assert_eq!(dtype, Dtype::F32);
        for (index, value) in floats(dtype, &values).into_iter().enumerate() {
            let (input, output) = (index / outputs, index % outputs);
            let expected = if output % 2 == 0 { &gate } else { &up }[(3 * outputs / 2 + output / 2) * inputs + input];
            assert_eq!(value, expected);
        }
    }
}

#[test]
fn types_may_differ_from_tensor_to_tensor() {
    let models = Models::new(ExpertStorage::Float(Dtype::Bf16));
    let choose = |tensor: &GgufTensor| match tensor.name.as_str() {
        "blk.0.ffn_gate_exps.weight" => TensorType::F16,
        "blk.0.ffn_down_exps.weight" => TensorType::Bf16,
        "blk.1.ffn_up_exps.weight" | "output.weight" => TensorType::Mxfp4,
        "blk.1.ffn_up_exps.bias" => TensorType::Bf16,
        _ => TensorType::F32,
    };
    let found = Checkpoint::open(&models.gguf(choose).write(&models.path("model.gguf"))).unwrap();
    assert_eq!(found.expert_storage(), ExpertStorage::Float(Dtype::F32));
    let dtype = |name: &str| found.specs().iter().find(|spec| spec.name == name).unwrap().dtype;
    assert_eq!(dtype("model.layers.0.mlp.experts.gate_up_proj"), Dtype::F32);
    assert_eq!(dtype("model.layers.0.mlp.experts.down_proj"), Dtype::Bf16);
    let name = "model.layers.1.mlp.experts.gate_up_proj_bias";
    assert!(floats(dtype(name), &found.tensor(name).unwrap().bytes) == models.floats(name));
    for (layer, projection) in found.expert_matrices() {
        let ExpertMatrix::Float { dtype, values } = found.expert(layer, projection, 4).unwrap() else { panic!("not plain") };
        assert_eq!(dtype, if (layer, projection) == (0, Projection::Down) { Dtype::Bf16 } else { Dtype::F32 });
        let all = models.floats(&projection.tensor_name(layer));
        let expected = &all[all.len() / 5 * 4..];
        let differ = floats(dtype, &values).iter().zip(expected).filter(|(found, expected)| found != expected).count();
        // Only what went through MXFP4 or f16 is another.
        assert_eq!(differ > 0, projection == Projection::GateUp && layer < 2, "{layer} {projection:?}");
    }
    let found = floats(Dtype::F32, &found.tensor("lm_head.weight").unwrap().bytes);
    assert!(found == through(TensorType::Mxfp4, &models.floats("lm_head.weight")));
}

#[test]
fn the_config_is_that_of_the_metadata() {
    let models = Models::new(ExpertStorage::Mxfp4);
    let path = models.gguf(usual(TensorType::F32)).write(&models.path("model.gguf"));
    let config = Checkpoint::open(&path).unwrap().config().clone();
    assert_eq!(config, models.config);
    assert_eq!(Config::read(&path).unwrap(), Config { has_mxfp4_experts: false, ..config.clone() });
    assert_eq!(Config::read(models.root.path()).unwrap().num_hidden_layers, 3);
    let more = |key: &str, value: Value| {
        let file = models.gguf(usual(TensorType::F32)).with(key, &value);
        Checkpoint::open(&file.write(&models.path("model.gguf"))).map(|checkpoint| checkpoint.config().clone())
    };
    let ollama = Value::Array(Array::I32(vec![199_999, 200_002, 200_012]));
    assert_eq!(more("tokenizer.ggml.eos_token_ids", ollama).unwrap().eos_token_id, [199_999, 200_002, 200_012]);
    assert_eq!(more("tokenizer.ggml.eos_token_id", Value::U32(5)).unwrap().eos_token_id, [5]);
    assert_eq!(more("tokenizer.ggml.padding_token_id", Value::U32(6)).unwrap().pad_token_id, Some(6));
    assert_eq!(more("gpt-oss.rope.scaling.yarn_beta_fast", Value::F32(16.0)).unwrap().rope_scaling.unwrap().beta_fast, 16.0);
    assert_eq!(more("gpt-oss.rope.freq_base_swa", Value::F32(150_000.0)).unwrap(), config);
}

/// The model with one key removed, changed or added.
pub(super) fn with_key(models: &Models, key: &str, value: Option<Value>) -> Result<Config, Error> {
    let mut file = models.gguf(usual(TensorType::F32));
    file.pairs.retain(|(found, ..)| found != key);
    if let Some(value) = value {
        file = file.with(key, &value);
    }
    Checkpoint::open(&file.write(&models.path("model.gguf"))).map(|checkpoint| checkpoint.config().clone())
}

#[test]
fn layers_slide_in_turn_unless_the_file_says_otherwise() {
    use LayerType::{FullAttention as Full, SlidingAttention as Sliding};
    let models = Models::new(ExpertStorage::Mxfp4);
    let of = |value| with_key(&models, "gpt-oss.attention.sliding_window_pattern", value).unwrap().layer_types;
    assert_eq!(of(None), [Sliding, Full, Sliding]);
    assert_eq!(of(Some(Value::U32(3))), [Sliding, Sliding, Full]);
    assert_eq!(of(Some(Value::U32(1))), [Full, Full, Full]);
    assert_eq!(of(Some(Value::U32(0))), [Sliding, Sliding, Sliding]);
    let plain = with_key(&models, "gpt-oss.rope.scaling.type", Some(Value::String("none".to_owned()))).unwrap();
    assert_eq!(plain.rope_scaling, None);
}

#[test]
fn the_names_of_ollama_are_read() {
    let models = Models::new(ExpertStorage::Mxfp4);
    let mut file = models.gguf(usual(TensorType::Bf16));
    for (key, _, bytes) in &mut file.pairs {
        *key = key.replace("gpt-oss.", "gptoss.");
        if key == "general.architecture" {
            *bytes = crate::gguf::testing::string("gptoss");
        }
    }
    file.pairs.retain(|(key, ..)| !matches!(key.as_str(), "gptoss.expert_feed_forward_length" | "gptoss.rope.scaling.type"));
    for tensor in &mut file.tensors {
        let renamed = tensor.name.replace("attn_output", "attn_out").replace("attn_sinks.weight", "attn_sinks");
        tensor.name = renamed.replace("post_attention_norm", "ffn_norm");
    }
    let found = Checkpoint::open(&file.write(&models.path("ollama.gguf"))).unwrap();
    let other = Checkpoint::open(&models.gguf(usual(TensorType::Bf16)).write(&models.path("model.gguf"))).unwrap();
    assert_eq!(found.config(), other.config());
    assert!(found.specs().iter().all(|spec| found.tensor(&spec.name).unwrap() == other.tensor(&spec.name).unwrap()));
}

#[test]
fn a_directory_with_one_file_is_a_model() {
    let models = Models::new(ExpertStorage::Mxfp4);
    let only = models.path("only");
    fs::create_dir(&only).unwrap();
    models.gguf(usual(TensorType::F32)).write(&only.join("m.gguf"));
    fs::write(only.join("config.json"), "{}").unwrap();
    assert!(Checkpoint::open(&only).unwrap().gguf().is_some());
    // Beside a model in safetensors it is left alone.
    let checkpoint = models.write_checkpoint();
    fs::copy(only.join("m.gguf"), checkpoint.join("m.gguf")).unwrap();
    assert!(Checkpoint::open(&checkpoint).unwrap().gguf().is_none());
    fs::copy(only.join("m.gguf"), only.join("n.gguf")).unwrap();
    assert!(matches!(Checkpoint::open(&only), Err(Error::SeveralGguf { .. })));
    for (name, content, is_gguf) in [("x", "not a model", false), ("x.gguf", "not a model", true), ("y", "GGUF", true)] {
        fs::write(models.path(name), content).unwrap();
        match Checkpoint::open(&models.path(name)) {
            Err(Error::Gguf { .. }) => assert!(is_gguf, "{name}"),
            Err(Error::NoConfig { .. }) => assert!(!is_gguf, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn convert(source: &Path, target: &Path, to: ExpertTarget) -> Checkpoint {
    let request = Requantization { source, target, to, hints_from: None, max_shard_bytes: u64::MAX };
    let converted = request.run(&Codec::Cpu, &mut |_, _| ()).unwrap();
    assert_eq!(converted.report().source_bytes, Checkpoint::open(source).unwrap().stored_bytes());
    Checkpoint::open(&converted.publish().unwrap()).unwrap()
}

#[test]
fn a_model_goes_back_to_safetensors() {
    let models = Models::new(ExpertStorage::Mxfp4);
    let template = Value::String("{{ messages }}".to_owned());
    let path = models.gguf(usual(TensorType::Bf16)).with("tokenizer.chat_template", &template).write(&models.path("model.gguf"));
    let source = Checkpoint::open(&models.write_checkpoint()).unwrap();
    let gguf = Checkpoint::open(&path).unwrap();
    let mut steps = Vec::new();
    let (progress, target) = (&mut |done, total| steps.push((done, total)), models.path("steps"));
    let to = ExpertTarget::Mxfp4(ScaleRule::Hint.into());
    let request = Requantization { source: &path, target: &target, to, hints_from: None, max_shard_bytes: u64::MAX };
    drop(request.run(&Codec::Cpu, progress).unwrap());
    assert_eq!(steps.last(), Some(&(gguf.total_bytes(), gguf.total_bytes())));
    let packed = convert(&path, &models.path("packed"), to);
    assert_eq!(packed.config(), &models.config);
    for spec in packed.specs() {
        let found = packed.tensor(&spec.name).unwrap();
        assert!(found == gguf.tensor(&spec.name).unwrap(), "{}", spec.name);
        assert!(spec.dtype != Dtype::U8 || found == source.tensor(&spec.name).unwrap(), "{}", spec.name);
    }
    assert_eq!(fs::read_to_string(packed.path().join("chat_template.jinja")).unwrap(), "{{ messages }}");
    assert!(packed.path().join("tokenizer.json").exists());
    let plain = convert(&path, &models.path("plain"), ExpertTarget::Bf16);
    let other = convert(source.path(), &models.path("other"), ExpertTarget::Bf16);
    for (layer, projection) in plain.expert_matrices() {
        let name = projection.tensor_name(layer);
        assert!(plain.tensor(&name).unwrap() == other.tensor(&name).unwrap(), "{name}");
    }
    // And plain ones in GGUF are packed as plain ones elsewhere are.
    let models = Models::new(ExpertStorage::Float(Dtype::F16));
    let path = models.gguf(usual(TensorType::F16)).write(&models.path("model.gguf"));
    let [found, expected] =
        [(&path, "found"), (&models.write_checkpoint(), "expected")].map(|(path, name)| convert(path, &models.path(name), to));
    for (layer, projection) in found.expert_matrices() {
        assert!(found.expert(layer, projection, 3).unwrap() == expected.expert(layer, projection, 3).unwrap());
    }
}
