//! Models that must be refused, each damaged in one way.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::round_trip::{content, write_file, write_model};
use super::{Checkpoint, ConfigProblem, ExpertStorage, IndexProblem, Projection, tensor_specs};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::safetensors::{HeaderProblem, SafetensorsFile, TensorSpec};

const PLAIN: ExpertStorage = ExpertStorage::Float(Dtype::Bf16);

/// A model in a directory that goes with it.
struct Model {
    _root: TempDir,
    path: PathBuf,
}

impl Model {
    fn new(storage: ExpertStorage, shard_bytes: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("model");
        write_model(&path, storage, shard_bytes);
        Self { _root: root, path }
    }

    /// A single-file model whose tensors went through `change`.
    fn changed(storage: ExpertStorage, change: impl FnOnce(&mut Vec<(TensorSpec, Vec<u8>)>)) -> Self {
        let model = Self::new(storage, u64::MAX);
        let mut tensors = model.tensors("model.safetensors");
        change(&mut tensors);
        write_file(&model.path.join("model.safetensors"), &tensors);
        model
    }

    fn tensors(&self, file: &str) -> Vec<(TensorSpec, Vec<u8>)> {
        let file = SafetensorsFile::open(&self.path.join(file)).unwrap();
        let spec = |name: &str, dtype, shape: &[usize]| TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() };
        file.tensors().map(|view| (spec(view.name, view.dtype, view.shape), view.bytes.to_vec())).collect()
    }

    fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.path.join(file);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(path, value.to_string()).unwrap();
    }

    fn edit_index(&self, edit: impl FnOnce(&mut Value)) {
        self.edit_json("model.safetensors.index.json", |index| edit(&mut index["weight_map"]));
    }
}

macro_rules! assert_rejects {
    ($path:expr, $error:pat $(if $guard:expr)?) => {
        match Checkpoint::open(&$path) {
            Err(error) => assert!(matches!(&error, $error $(if $guard)?), "refused as {error:?}"),
            Ok(_) => panic!("expected a refusal"),
        }
    };
}

fn find<'a>(tensors: &'a mut [(TensorSpec, Vec<u8>)], name: &str) -> &'a mut (TensorSpec, Vec<u8>) {
    tensors.iter_mut().find(|(spec, _)| spec.name == name).unwrap()
}

fn rename(tensors: &mut [(TensorSpec, Vec<u8>)], name: &str, other: &str) {
    find(tensors, name).0.name = other.to_owned();
}

#[test]
fn directories_without_a_model() {
    let root = tempfile::tempdir().unwrap();
    assert_rejects!(root.path(), Error::NoConfig { .. });
    assert_rejects!(root.path().join("none"), Error::NoConfig { .. });
    let model = Model::new(PLAIN, u64::MAX);
    fs::rename(model.path.join("model.safetensors"), model.path.join("pytorch_model.bin")).unwrap();
    assert_rejects!(model.path, Error::Index { problem: IndexProblem::NoWeights, .. });
}

#[test]
fn tensors_that_are_missing_or_too_many() {
    let model = Model::changed(PLAIN, |tensors| tensors.retain(|(spec, _)| spec.name != "model.layers.1.self_attn.sinks"));
    assert_rejects!(model.path, Error::MissingTensor { tensor, .. } if tensor == "model.layers.1.self_attn.sinks");
    let model = Model::changed(PLAIN, |tensors| {
        let mut more = tensors[0].clone();
        more.0.name = "model.layers.3.input_layernorm.weight".to_owned();
        tensors.push(more);
    });
    assert_rejects!(model.path, Error::UnexpectedTensor { tensor, path } if tensor.contains("layers.3") && path.ends_with("model.safetensors"));
    let model = Model::changed(PLAIN, |tensors| tensors.clear());
    assert_rejects!(model.path, Error::MissingTensor { tensor, .. } if tensor == "model.embed_tokens.weight");
}

#[test]
fn tensors_of_another_shape() {
    // The transposed matrix has as many bytes.
    for name in ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.2.self_attn.o_proj.weight"] {
        let model = Model::changed(PLAIN, |tensors| {
            let shape = &mut find(tensors, name).0.shape;
            let last = shape.len() - 1;
            shape.swap(last - 1, last);
        });
        assert_rejects!(model.path, Error::WrongShape { tensor, expected, found, .. } if tensor == name && expected != found);
    }
    let model = Model::changed(PLAIN, |tensors| {
        let (spec, bytes) = find(tensors, "model.norm.weight");
        spec.shape[0] -= 1;
        bytes.truncate(bytes.len() - 2);
    });
    assert_rejects!(model.path, Error::WrongShape { expected, found, .. } if expected == &[36] && found == &[35]);
}

#[test]
fn tensors_of_another_type() {
    let model = Model::changed(PLAIN, |tensors| find(tensors, "model.norm.weight").0.dtype = Dtype::I16);
    assert_rejects!(model.path, Error::WrongDtype { found: Dtype::I16, .. });
    let model = Model::changed(ExpertStorage::Mxfp4, |tensors| {
        find(tensors, "model.layers.0.mlp.experts.down_proj_scales").0.dtype = Dtype::F8E8m0
    });
    assert_rejects!(model.path, Error::WrongDtype { expected: "U8", found: Dtype::F8E8m0, .. });
    let model = Model::changed(PLAIN, |tensors| {
        let (spec, bytes) = find(tensors, "lm_head.weight");
        spec.dtype = Dtype::F64;
        bytes.resize(bytes.len() * 4, 0);
    });
    assert_rejects!(model.path, Error::WrongDtype { found: Dtype::F64, .. });
}

#[test]
fn weights_may_be_of_mixed_types() {
    let model = Model::changed(PLAIN, |tensors| {
        find(tensors, "model.layers.0.self_attn.sinks").0.dtype = Dtype::F16;
        let (spec, bytes) = find(tensors, "model.norm.weight");
        spec.dtype = Dtype::F32;
        bytes.resize(bytes.len() * 2, 0);
    });
    let checkpoint = Checkpoint::open(&model.path).unwrap();
    assert_eq!(checkpoint.tensor("model.norm.weight").unwrap().dtype, Dtype::F32);
    assert_eq!(checkpoint.expert_storage(), PLAIN);
}

#[test]
fn configs_that_contradict_the_tensors() {
    for (key, value) in [
        ("num_hidden_layers", json!(4)),
        ("num_hidden_layers", json!(2)),
        ("num_local_experts", json!(6)),
        ("vocab_size", json!(18)),
        ("hidden_size", json!(37)),
        ("intermediate_size", json!(21)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(12)),
    ] {
        let model = Model::new(PLAIN, u64::MAX);
        model.edit_json("config.json", |config| {
            config[key] = value;
            config.as_object_mut().unwrap().remove("layer_types");
        });
        assert_rejects!(model.path, Error::WrongShape { .. } | Error::MissingTensor { .. } | Error::UnexpectedTensor { .. });
    }
    let model = Model::new(PLAIN, u64::MAX);
    model.edit_json("config.json", |config| {
        config["num_hidden_layers"] = json!(1_000_000_000_000u64);
        config.as_object_mut().unwrap().remove("layer_types");
    });
    assert_rejects!(model.path, Error::Config { problem: ConfigProblem::OutOfRange { key: "num_hidden_layers", .. }, .. });
    let model = Model::new(ExpertStorage::Float(Dtype::Bf16), u64::MAX);
    model.edit_json("config.json", |config| {
        config["quantization_config"] = json!({"quant_method": "mxfp4"});
    });
    assert_rejects!(model.path, Error::Config { problem: ConfigProblem::PartialBlock { .. }, .. });
}

#[test]
fn plain_experts_where_the_config_says_mxfp4() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model");
    let config = super::round_trip::small(ExpertStorage::Mxfp4);
    fs::create_dir(&path).unwrap();
    let tensors: Vec<(TensorSpec, Vec<u8>)> = tensor_specs(&config, PLAIN)
        .into_iter()
        .map(|spec| {
            let bytes = content(&spec);
            (spec, bytes)
        })
        .collect();
    write_file(&path.join("model.safetensors"), &tensors);
    fs::write(path.join("config.json"), config.to_json().to_string()).unwrap();
    assert_rejects!(path, Error::Config { problem: ConfigProblem::NotQuantized, .. });
}

#[test]
fn packed_experts_are_recognised_without_the_config_saying_so() {
    let model = Model::new(ExpertStorage::Mxfp4, u64::MAX);
    model.edit_json("config.json", |config| {
        config.as_object_mut().unwrap().remove("quantization_config");
    });
    let checkpoint = Checkpoint::open(&model.path).unwrap();
    assert_eq!(checkpoint.expert_storage(), ExpertStorage::Mxfp4);
    assert!(checkpoint.config().has_mxfp4_experts);
}

#[test]
fn blocks_and_scales_that_do_not_fit_each_other() {
    let name = "model.layers.0.mlp.experts.down_proj_scales";
    let model = Model::changed(ExpertStorage::Mxfp4, |tensors| {
        let (spec, bytes) = find(tensors, name);
        spec.shape[2] += 1;
        bytes.resize(bytes.len() * 3 / 2, 0);
    });
    assert_rejects!(model.path, Error::WrongShape { tensor, .. } if tensor == name);
    let model = Model::changed(ExpertStorage::Mxfp4, |tensors| tensors.retain(|(spec, _)| spec.name != name));
    assert_rejects!(model.path, Error::MissingTensor { tensor, .. } if tensor == name);
}

#[test]
fn a_scale_that_stands_for_no_number_is_named() {
    let name = "model.layers.1.mlp.experts.down_proj_scales";
    let model = Model::changed(ExpertStorage::Mxfp4, |tensors| find(tensors, name).1[3 * 96 * 2 + 7] = 255);
    let checkpoint = Checkpoint::open(&model.path).unwrap();
    checkpoint.unpack_expert(1, Projection::Down, 2).unwrap();
    let error = checkpoint.unpack_expert(1, Projection::Down, 3).unwrap_err();
    let Error::Packed { tensor, expert: 3, source: ft_quant::Error::ReservedScale { index: 7 }, .. } = &error else { panic!("{error:?}") };
    assert_eq!(tensor, name);
}

#[test]
fn layouts_that_are_not_read_are_named() {
    for (name, other, words) in [
        ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.gate_up_projs.0.weight", "Unsloth"),
        ("model.layers.0.mlp.router.weight", "model.layers.0.mlp.router.linear.weight", "Unsloth"),
        ("model.layers.0.mlp.experts.gate_up_proj", "block.0.mlp.mlp1_weight", "OpenAI"),
        ("lm_head.weight", "base_model.model.lm_head.lora_A.weight", "adapter"),
    ] {
        let model = Model::changed(PLAIN, |tensors| rename(tensors, name, other));
        assert_rejects!(model.path, Error::UnsupportedLayout { layout, tensor, .. } if layout.contains(words) && tensor == other);
    }
}

#[test]
fn indices_that_lead_elsewhere() {
    for file in [
        "../other.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        ".hidden.safetensors",
        "x\\y.safetensors",
        "model.bin",
        ".safetensors",
        "",
    ] {
        let model = Model::new(PLAIN, 10_000);
        // The file is there: what is refused is its name.
        fs::copy(model.path.join("model-00001-of-00006.safetensors"), model.path.join("../other.safetensors")).ok();
        model.edit_index(|map| map["lm_head.weight"] = json!(file));
        assert_rejects!(model.path, Error::Index { problem: IndexProblem::FileName { file: found }, .. } if found == file);
    }
}

#[test]
fn indices_that_are_not_those_of_the_shards() {
    let model = Model::new(PLAIN, 10_000);
    model.edit_index(|map| map["lm_head.weight"] = json!("model-00009-of-00001.safetensors"));
    assert_rejects!(model.path, Error::Index { problem: IndexProblem::MissingFile { .. }, .. });
    let model = Model::new(PLAIN, 10_000);
    let other = |map: &Value| map["model.embed_tokens.weight"].clone();
    model.edit_index(|map| map["lm_head.weight"] = other(map));
    assert_rejects!(model.path, Error::Index { problem: IndexProblem::MissingTensor { tensor, .. }, .. } if tensor == "lm_head.weight");
    let model = Model::new(PLAIN, 10_000);
    model.edit_index(|map| map["more"] = other(map));
    assert_rejects!(model.path, Error::Index { problem: IndexProblem::MissingTensor { tensor, .. }, .. } if tensor == "more");
    let model = Model::new(PLAIN, 10_000);
    model.edit_index(|map| {
        map.as_object_mut().unwrap().remove("model.layers.0.self_attn.sinks");
    });
    assert_rejects!(model.path, Error::Index { problem: IndexProblem::UnlistedTensor { .. }, .. });
}

#[test]
fn indices_of_another_form() {
    for text in [r#"{}"#, r#"{"weight_map": []}"#, r#"{"weight_map": {"a": 1}}"#, r#"{"weight_map": {"a": null}}"#] {
        let model = Model::new(PLAIN, 10_000);
        fs::write(model.path.join("model.safetensors.index.json"), text).unwrap();
        assert_rejects!(model.path, Error::Index { problem: IndexProblem::NoWeightMap, .. });
    }
    let model = Model::new(PLAIN, 10_000);
    let twice = r#"{"weight_map": {"lm_head.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}}"#;
    fs::write(model.path.join("model.safetensors.index.json"), twice).unwrap();
    assert_rejects!(model.path, Error::DuplicateKey { key, .. } if key == "lm_head.weight");
}

#[test]
fn a_tensor_in_two_shards() {
    let model = Model::new(PLAIN, 10_000);
    let shards: Vec<String> = shard_names(&model.path);
    let mut tensors = model.tensors(&shards[1]);
    tensors.push(model.tensors(&shards[0])[0].clone());
    write_file(&model.path.join(&shards[1]), &tensors);
    assert_rejects!(model.path, Error::DuplicateTensor { path, .. } if path.ends_with(&shards[1]));
}

fn shard_names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.ends_with(".safetensors"));
    names.sort();
    names
}

#[test]
fn shards_that_were_cut_off_or_altered() {
    let model = Model::new(PLAIN, 10_000);
    let shard = model.path.join(&shard_names(&model.path)[1]);
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    assert_rejects!(model.path, Error::Safetensors { path, problem: HeaderProblem::Truncated { .. } } if *path == shard);
    fs::write(&shard, &whole[..40]).unwrap();
    assert_rejects!(model.path, Error::Safetensors { problem: HeaderProblem::HeaderBeyondEnd { .. }, .. });
    fs::write(&shard, b"").unwrap();
    assert_rejects!(model.path, Error::Safetensors { problem: HeaderProblem::TooShort { .. }, .. });
    // A pointer of Git LFS, as a clone without it leaves.
    fs::write(&shard, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").unwrap();
    assert_rejects!(model.path, Error::Safetensors { problem: HeaderProblem::HeaderTooLarge { .. }, .. });
}
