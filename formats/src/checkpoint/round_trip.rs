//! Models of odd sizes, written and read in every layout; and the small models that the tests of refusals damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::bf16;
use proptest::prelude::*;
use serde_json::Value;

use super::{Checkpoint, CheckpointWriter, Config, ExpertStorage, ExpertWeights, LayerType, Projection, tensor_specs, write_random_model};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::safetensors::{SafetensorsFile, SafetensorsWriter, TensorSpec};
use crate::template::CHAT_TEMPLATE;

/// No size is a multiple of another, but those that MXFP4 needs.
pub(super) fn small(storage: ExpertStorage) -> Config {
    let is_packed = storage == ExpertStorage::Mxfp4;
    Config {
        vocab_size: 17,
        hidden_size: if is_packed { 96 } else { 36 },
        intermediate_size: if is_packed { 64 } else { 20 },
        num_hidden_layers: 3,
        num_local_experts: 5,
        num_experts_per_token: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 10,
        layer_types: vec![LayerType::SlidingAttention, LayerType::FullAttention, LayerType::FullAttention],
        eos_token_id: vec![],
        pad_token_id: None,
        has_mxfp4_experts: is_packed,
        ..Config::gpt_oss_20b()
    }
}

/// Bytes that differ between tensors, and stand for finite numbers.
pub(super) fn content(spec: &TensorSpec) -> Vec<u8> {
    let seed = spec.name.bytes().fold(7u8, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte));
    // Below 0x70 as high bytes, no exponent is all ones.
    (0..spec.byte_length().unwrap()).map(|index| (seed as u64 + index * 13) as u8 % 0x70).collect()
}

/// Writes a small model and returns the config and tensors in it.
pub(super) fn write_model(directory: &Path, storage: ExpertStorage, shard_bytes: u64) -> Config {
    let config = small(storage);
    let mut writer = CheckpointWriter::create(directory, &config, storage, shard_bytes).unwrap();
    for spec in writer.specs().to_vec() {
        writer.write(&spec.name, &content(&spec)).unwrap();
    }
    writer.finish().unwrap();
    config
}

/// Writes a safetensors file of the given tensors.
pub(super) fn write_file(path: &Path, tensors: &[(TensorSpec, Vec<u8>)]) {
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = SafetensorsWriter::create(path, &specs, &BTreeMap::new()).unwrap();
    for (spec, bytes) in tensors {
        writer.write(&spec.name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

const STORAGES: [ExpertStorage; 4] =
    [ExpertStorage::Mxfp4, ExpertStorage::Float(Dtype::Bf16), ExpertStorage::Float(Dtype::F16), ExpertStorage::Float(Dtype::F32)];

#[test]
fn models_come_back_whatever_the_number_of_shards() {
    for storage in STORAGES {
        for (shard_bytes, is_sharded) in [(u64::MAX, false), (20_000, true), (1, true)] {
            let root = tempfile::tempdir().unwrap();
            let directory = root.path().join("new/model");
            let config = write_model(&directory, storage, shard_bytes);
            assert_eq!(directory.join("model.safetensors.index.json").exists(), is_sharded);
            assert!(directory.join("generation_config.json").exists());
            let checkpoint = Checkpoint::open(&directory).unwrap();
            assert_eq!(checkpoint.expert_storage(), storage);
            assert_eq!(checkpoint.config().layer_types, config.layer_types);
            let specs = tensor_specs(&config, storage);
            assert_eq!(checkpoint.specs(), specs);
            for spec in &specs {
                let view = checkpoint.tensor(&spec.name).unwrap();
                assert_eq!((view.name, view.dtype, view.shape), (spec.name.as_str(), spec.dtype, &spec.shape[..]));
                assert_eq!(view.bytes, content(spec), "{}", spec.name);
            }
            assert_eq!(checkpoint.total_bytes(), specs.iter().map(|spec| spec.byte_length().unwrap()).sum::<u64>());
            let config_json: Value = serde_json::from_slice(&fs::read(directory.join("config.json")).unwrap()).unwrap();
            assert_eq!(config_json.get("quantization_config").is_some(), storage == ExpertStorage::Mxfp4);
        }
    }
}

#[test]
fn shards_are_full_and_indexed_once() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("model");
    let config = write_model(&directory, ExpertStorage::Float(Dtype::Bf16), 9_000);
    let index: Value = serde_json::from_slice(&fs::read(directory.join("model.safetensors.index.json")).unwrap()).unwrap();
    let specs = tensor_specs(&config, ExpertStorage::Float(Dtype::Bf16));
    let total: u64 = specs.iter().map(|spec| spec.byte_length().unwrap()).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), specs.len());
    let files = fs::read_dir(&directory)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "safetensors"));
    for file in files {
        let file = SafetensorsFile::open(&file.unwrap().path()).unwrap();
        assert!(file.data_bytes() <= 9_000 || file.tensors().len() == 1);
    }
}

/// The model of `write_model` in OpenAI's layout, norms in f32 as its module has them.
fn write_original(directory: &Path) {
    let config = small(ExpertStorage::Mxfp4);
    let mut tensors = vec![];
    let specs = tensor_specs(&config, ExpertStorage::Mxfp4);
    let find = |name: String| specs.iter().find(|spec| spec.name == name).unwrap();
    let mut add = |name: String, parts: &[&TensorSpec], dtype: Dtype| {
        let mut shape = parts[0].shape.clone();
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        let bytes: Vec<u8> = parts.iter().flat_map(|part| content(&TensorSpec { dtype, ..(*part).clone() })).collect();
        tensors.push((TensorSpec { name, dtype, shape }, bytes));
    };
    add("embedding.weight".to_owned(), &[find("model.embed_tokens.weight".to_owned())], Dtype::Bf16);
    for n in 0..config.num_hidden_layers {
        let hf = |part: &str| find(format!("model.layers.{n}.{part}"));
        for kind in ["weight", "bias"] {
            let qkv = ["q", "k", "v"].map(|letter| hf(&format!("self_attn.{letter}_proj.{kind}")));
            add(format!("block.{n}.attn.qkv.{kind}"), &qkv, Dtype::Bf16);
            add(format!("block.{n}.attn.out.{kind}"), &[hf(&format!("self_attn.o_proj.{kind}"))], Dtype::Bf16);
            add(format!("block.{n}.mlp.gate.{kind}"), &[hf(&format!("mlp.router.{kind}"))], Dtype::Bf16);
        }
        add(format!("block.{n}.attn.sinks"), &[hf("self_attn.sinks")], Dtype::Bf16);
        add(format!("block.{n}.attn.norm.scale"), &[hf("input_layernorm.weight")], Dtype::F32);
        add(format!("block.{n}.mlp.norm.scale"), &[hf("post_attention_layernorm.weight")], Dtype::F32);
        for (theirs, ours) in [("mlp1", "gate_up_proj"), ("mlp2", "down_proj")] {
            add(format!("block.{n}.mlp.{theirs}_weight.blocks"), &[hf(&format!("mlp.experts.{ours}_blocks"))], Dtype::U8);
            add(format!("block.{n}.mlp.{theirs}_weight.scales"), &[hf(&format!("mlp.experts.{ours}_scales"))], Dtype::U8);
            add(format!("block.{n}.mlp.{theirs}_bias"), &[hf(&format!("mlp.experts.{ours}_bias"))], Dtype::Bf16);
        }
    }
    add("norm.scale".to_owned(), &[find("model.norm.weight".to_owned())], Dtype::F32);
    add("unembedding.weight".to_owned(), &[find("lm_head.weight".to_owned())], Dtype::Bf16);
    fs::create_dir_all(directory).unwrap();
    write_file(&directory.join("model.safetensors"), &tensors);
    let text = r#"{"num_hidden_layers": 3, "num_experts": 5, "experts_per_token": 3, "vocab_size": 17, "hidden_size": 96,
        "intermediate_size": 64, "swiglu_limit": 7.0, "head_dim": 10, "num_attention_heads": 6, "num_key_value_heads": 2,
        "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1, "rope_ntk_beta": 32}"#;
    fs::write(directory.join("config.json"), text).unwrap();
}

#[test]
fn the_original_layout_is_read_under_the_other_names() {
    let root = tempfile::tempdir().unwrap();
    for (home, opened) in [("a", "a"), ("b/original", "b"), ("c/original", "c")] {
        write_original(&root.path().join(home));
        if opened == "c" {
            // As `git clone` without the large files leaves it: the config of both layouts, the weights of one.
            fs::write(root.path().join("c/config.json"), small(ExpertStorage::Mxfp4).to_json().to_string()).unwrap();
        }
        let checkpoint = Checkpoint::open(&root.path().join(opened)).unwrap();
        assert_eq!(checkpoint.expert_storage(), ExpertStorage::Mxfp4);
        for mut spec in tensor_specs(&small(ExpertStorage::Mxfp4), ExpertStorage::Mxfp4) {
            if spec.name.contains("norm") {
                spec.dtype = Dtype::F32;
            }
            let view = checkpoint.tensor(&spec.name).unwrap();
            assert_eq!((view.name, view.dtype, view.shape), (spec.name.as_str(), spec.dtype, &spec.shape[..]));
            assert_eq!(view.bytes, content(&spec), "{}", spec.name);
        }
    }
}

#[test]
fn experts_are_handed_out_in_their_two_forms() {
    let root = tempfile::tempdir().unwrap();
    let plain = root.path().join("plain");
    write_model(&plain, ExpertStorage::Float(Dtype::Bf16), u64::MAX);
    let checkpoint = Checkpoint::open(&plain).unwrap();
    let Ok(ExpertWeights::Float(view)) = checkpoint.experts(1, Projection::GateUp) else { panic!("not plain") };
    assert_eq!(view.shape, [5, 36, 40]);
    assert!(matches!(checkpoint.unpack_expert(1, Projection::GateUp, 0), Err(Error::NotPacked { .. })));
    assert!(matches!(checkpoint.experts(3, Projection::Down), Err(Error::NoSuch { what: "layer", index: 3, count: 3 })));

    let packed = root.path().join("packed");
    write_model(&packed, ExpertStorage::Mxfp4, u64::MAX);
    let checkpoint = Checkpoint::open(&packed).unwrap();
    let Ok(ExpertWeights::Mxfp4 { blocks, scales }) = checkpoint.experts(2, Projection::Down) else { panic!("not packed") };
    assert_eq!((blocks.shape, scales.shape), (&[5, 96, 2, 16][..], &[5, 96, 2][..]));
    let mut plain = vec![bf16::ZERO; 5 * 96 * 64];
    ft_quant::mxfp4::unpack(&blocks.bytes, &scales.bytes, &mut plain).unwrap();
    for expert in 0..5 {
        let unpacked = checkpoint.unpack_expert(2, Projection::Down, expert).unwrap();
        for (input, output) in (0..64).flat_map(|input| (0..96).map(move |output| (input, output))) {
            let expected = plain[(expert * 96 + output) * 64 + input];
            assert_eq!(unpacked[input * 96 + output].to_bits(), expected.to_bits());
        }
    }
    assert!(matches!(checkpoint.unpack_expert(0, Projection::Down, 5), Err(Error::NoSuch { what: "expert", .. })));
}

#[test]
fn a_model_that_was_not_finished_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("model");
    let config = small(ExpertStorage::Mxfp4);
    let mut writer = CheckpointWriter::create(&directory, &config, ExpertStorage::Mxfp4, 10_000).unwrap();
    let specs = writer.specs().to_vec();
    for spec in &specs[1..] {
        writer.write(&spec.name, &content(spec)).unwrap();
    }
    assert!(!directory.exists());
    assert!(matches!(writer.write("model.none", &[]), Err(Error::UnknownTensor { .. })));
    assert!(matches!(writer.finish(), Err(Error::WrittenLength { tensor, .. }) if tensor == specs[0].name));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn a_model_is_replaced_only_when_asked() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("model");
    let storage = ExpertStorage::Float(Dtype::F32);
    let config = write_model(&directory, storage, u64::MAX);
    assert!(matches!(CheckpointWriter::create(&directory, &config, storage, u64::MAX), Err(Error::Exists { .. })));
    let mut writer = CheckpointWriter::replace(&directory, &config, storage, u64::MAX).unwrap();
    for spec in writer.specs().to_vec() {
        writer.write(&spec.name, &vec![0; content(&spec).len()]).unwrap();
    }
    fs::write(directory.join("tokenizer.json"), "{}").unwrap();
    writer.copy_companions(&Checkpoint::open(&directory).unwrap()).unwrap();
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&directory).unwrap();
    assert!(checkpoint.tensor("lm_head.weight").unwrap().bytes.iter().all(|&byte| byte == 0));
    assert!(directory.join("tokenizer.json").exists());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn a_tokenizer_without_a_template_gets_ours() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    let template_beside = |files: &[(&str, &str)]| {
        let storage = ExpertStorage::Mxfp4;
        write_random_model(&source, &small(storage), storage, 1, &mut |_, _| {}).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            fs::remove_file(source.join(name)).unwrap();
        }
        for (name, text) in files {
            fs::write(source.join(name), text).unwrap();
        }
        let mut writer = CheckpointWriter::create(&root.path().join("model"), &small(storage), storage, u64::MAX).unwrap();
        writer.copy_companions(&Checkpoint::open(&source).unwrap()).unwrap();
        let template = fs::read_to_string(writer.partial_path().join("chat_template.jinja")).ok();
        fs::remove_dir_all(&source).unwrap();
        template
    };
    let tokenizer = ("tokenizer.json", "{}");
    assert_eq!(template_beside(&[]), None);
    assert_eq!(template_beside(&[tokenizer, ("tokenizer_config.json", "{}")]).as_deref(), Some(CHAT_TEMPLATE));
    assert_eq!(template_beside(&[tokenizer, ("chat_template.jinja", "its own")]).as_deref(), Some("its own"));
    assert_eq!(template_beside(&[tokenizer, ("tokenizer_config.json", "{\"chat_template\": \"its own\"}")]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Cutting into shards and joining them again is the identity.
    #[test]
    fn shards_join(shard_bytes in 1u64..60_000, chunk in 1usize..5000) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("model");
        let config = small(ExpertStorage::Mxfp4);
        let mut writer = CheckpointWriter::create(&directory, &config, ExpertStorage::Mxfp4, shard_bytes).unwrap();
        for spec in writer.specs().to_vec() {
            for piece in content(&spec).chunks(chunk) {
                writer.write_chunk(&spec.name, piece).unwrap();
            }
        }
        writer.finish().unwrap();
        let checkpoint = Checkpoint::open(&directory).unwrap();
        for spec in checkpoint.specs() {
            prop_assert_eq!(checkpoint.tensor(&spec.name).unwrap().bytes, content(spec));
        }
    }
}
