//! Adapters that must be refused, each damaged in one way.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::round_trip::{model, pair, targets, write_raw};
use super::{AdapterConfig, AdapterPair, AdapterProblem, AdapterTarget, PeftAdapter, write_adapter};
use crate::checkpoint::Config;
use crate::dtype::Dtype;
use crate::error::Error;

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";
const EXPERTS: &str = "base_model.model.model.layers.0.mlp.experts";

fn config() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]})
}

/// An adapter of f32 tensors with the given shapes.
fn open(config: &Value, tensors: &[(String, &[usize])]) -> Result<PeftAdapter, Error> {
    let root = tempfile::tempdir().unwrap();
    let tensors: Vec<(&str, Dtype, &[usize], Vec<u8>)> =
        tensors.iter().map(|(name, shape)| (name.as_str(), Dtype::F32, *shape, vec![0; 4 * shape.iter().product::<usize>()])).collect();
    write_raw(root.path(), config, &tensors);
    PeftAdapter::open(root.path())
}

fn attention(config: &Value, a: &[usize], b: &[usize]) -> Result<PeftAdapter, Error> {
    open(config, &[(format!("{Q}.lora_A.weight"), a), (format!("{Q}.lora_B.weight"), b)])
}

macro_rules! assert_rejects {
    ($result:expr, $problem:pat $(if $guard:expr)?) => {
        match $result {
            Err(Error::Adapter { problem, .. }) => {
                assert!(matches!(&problem, $problem $(if $guard)?), "refused as {problem:?}");
            }
            other => panic!("expected a refusal, found {other:?}"),
        }
    };
}

/// `config()` with one key changed; null removes it.
fn with(key: &str, value: Value) -> Value {
    let mut config = config();
    if value.is_null() {
        config.as_object_mut().unwrap().remove(key);
    } else {
        config[key] = value;
    }
    config
}

#[test]
fn what_is_damaged_below_is_whole_before() {
    assert_eq!(attention(&config(), &[2, 12], &[40, 2]).unwrap().pairs().len(), 1);
}

#[test]
fn configs_without_their_keys() {
    for key in ["peft_type", "r", "lora_alpha"] {
        assert_rejects!(attention(&with(key, Value::Null), &[2, 12], &[40, 2]), AdapterProblem::MissingKey { key: found } if *found == key);
    }
    for (key, value) in [
        ("r", json!(-1)),
        ("r", json!("2")),
        ("r", json!(2.5)),
        ("lora_alpha", json!("x")),
        ("use_rslora", json!(1)),
        ("target_modules", json!({"q_proj": 1})),
        ("target_parameters", json!([1])),
        ("rank_pattern", json!([1])),
        ("alpha_pattern", json!({"q_proj": "x"})),
    ] {
        assert_rejects!(attention(&with(key, value), &[2, 12], &[40, 2]), AdapterProblem::WrongType { key: found, .. } if found == key);
    }
}

#[test]
fn numbers_that_make_no_update() {
    assert_rejects!(attention(&with("r", json!(0)), &[2, 12], &[40, 2]), AdapterProblem::RankZero { target } if target == "r");
    let zero = with("rank_pattern", json!({"q_proj": 0}));
    assert_rejects!(attention(&zero, &[2, 12], &[40, 2]), AdapterProblem::RankZero { target } if target.ends_with("q_proj"));
    let pattern = with("alpha_pattern", json!({"(": 1.0}));
    assert_rejects!(attention(&pattern, &[2, 12], &[40, 2]), AdapterProblem::Pattern { key: "alpha_pattern", .. });
    // JSON has no NaN, and Python writes it all the same.
    let root = tempfile::tempdir().unwrap();
    for alpha in ["NaN", "Infinity", "1e999"] {
        let text = config().to_string().replace("\"lora_alpha\":4", &format!("\"lora_alpha\":{alpha}"));
        fs::write(root.path().join("adapter_config.json"), text).unwrap();
        assert!(matches!(PeftAdapter::open(root.path()), Err(Error::Json { .. })), "{alpha}");
    }
}

#[test]
fn kinds_of_adapters_that_are_not_computed() {
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("layer_replication", json!([[0, 1], [0, 1]])),
        ("trainable_token_indices", json!([1])),
    ] {
        assert_rejects!(attention(&with(key, value), &[2, 12], &[40, 2]), AdapterProblem::Unsupported { key: found, .. } if *found == key);
    }
}

#[test]
fn keys_of_newer_versions_are_passed_over() {
    let mut newer = config();
    for (key, value) in
        [("peft_version", json!("0.21.2")), ("something", json!({"a": [1]})), ("loftq_config", json!({})), ("modules_to_save", json!(null))]
    {
        newer[key] = value;
    }
    attention(&newer, &[2, 12], &[40, 2]).unwrap();
}

#[test]
fn files_that_are_not_there_or_pickled() {
    let root = tempfile::tempdir().unwrap();
    assert!(matches!(PeftAdapter::open(root.path()), Err(Error::Io { action: "read", .. })));
    fs::write(root.path().join("adapter_config.json"), config().to_string()).unwrap();
    assert!(matches!(PeftAdapter::open(root.path()), Err(Error::Io { action: "read", .. })));
    fs::write(root.path().join("adapter_model.bin"), b"").unwrap();
    assert_rejects!(PeftAdapter::open(root.path()), AdapterProblem::Pickled);
}

#[test]
fn tensors_of_unknown_places() {
    assert_rejects!(open(&config(), &[]), AdapterProblem::Empty);
    for name in [
        "base_model.model.model.layers.0.mlp.gate.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.x.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.99999999999999999999.self_attn.q_proj.lora_A.weight",
        "lm_head.weight",
    ] {
        assert_rejects!(open(&config(), &[(name.to_owned(), &[2, 12])]), AdapterProblem::UnknownTensor { tensor } if tensor == name);
    }
    let unsloth = format!("{EXPERTS}.gate_up_projs.3.lora_A.weight");
    assert_rejects!(open(&config(), &[(unsloth, &[2, 12])]), AdapterProblem::PerExpert { .. });
}

#[test]
fn halves_without_the_other() {
    for (there, missing) in [("lora_A", "lora_B"), ("lora_B", "lora_A")] {
        let result = open(&config(), &[(format!("{Q}.{there}.weight"), &[2, 2])]);
        assert_rejects!(result, AdapterProblem::MissingHalf { tensor } if tensor.contains(missing));
    }
    let inner =
        [(format!("{EXPERTS}.base_layer.lora_A.weight"), &[10, 12][..]), (format!("{EXPERTS}.base_layer.lora_B.weight"), &[14, 10])];
    assert_rejects!(open(&config(), &inner), AdapterProblem::MissingHalf { .. });
    let outer = [(format!("{EXPERTS}.lora_A.weight"), &[10, 7][..]), (format!("{EXPERTS}.lora_B.weight"), &[12, 10])];
    assert_rejects!(open(&config(), &outer), AdapterProblem::MissingHalf { tensor } if tensor.contains("base_layer"));
    assert_rejects!(open(&with("target_parameters", Value::Null), &outer), AdapterProblem::Ambiguous { layer: 0 });
    let other_layer = with("target_parameters", json!(["1.mlp.experts.down_proj"]));
    assert_rejects!(open(&other_layer, &outer), AdapterProblem::Ambiguous { layer: 0 });
}

#[test]
fn shapes_that_do_not_fit() {
    for (a, b) in [
        (&[3, 12][..], &[40, 3][..]),
        (&[2, 12], &[40, 3]),
        (&[2, 12], &[2, 40]),
        (&[2, 12], &[80]),
        (&[1, 2, 12], &[40, 2]),
        (&[2, 0], &[40, 2]),
        (&[2, 12], &[0, 2]),
        (&[0, 12], &[40, 0]),
    ] {
        assert_rejects!(attention(&config(), a, b), AdapterProblem::Shape { .. });
    }
    let experts = |gate_up: [&'static [usize]; 2], down: [&'static [usize]; 2]| {
        let name = |wrapper: &str, half: &str| format!("{EXPERTS}{wrapper}.lora_{half}.weight");
        open(
            &config(),
            &[
                (name(".base_layer", "A"), gate_up[0]),
                (name(".base_layer", "B"), gate_up[1]),
                (name("", "A"), down[0]),
                (name("", "B"), down[1]),
            ],
        )
    };
    experts([&[10, 12], &[14, 10]], [&[10, 7], &[12, 10]]).unwrap();
    assert_rejects!(experts([&[9, 12], &[14, 9]], [&[10, 7], &[12, 10]]), AdapterProblem::Shape { .. });
    assert_rejects!(experts([&[10, 12], &[14, 10]], [&[10, 8], &[12, 10]]), AdapterProblem::Shape { .. });
    // The one as usual, the other transposed.
    assert_rejects!(experts([&[10, 12], &[14, 10]], [&[10, 12], &[7, 10]]), AdapterProblem::Shape { .. });
}

#[test]
fn values_and_types_that_are_none() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let write = |path: &Path, dtype, a_bytes: Vec<u8>| {
        write_raw(path, &config(), &[(&a, dtype, &[2, 1], a_bytes), (&b, Dtype::F32, &[1, 2], vec![0; 8])])
    };
    let nan = [0f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat();
    write(root.path(), Dtype::F32, nan);
    assert_rejects!(PeftAdapter::open(root.path()), AdapterProblem::NotFinite { tensor, index: 1 } if *tensor == a);
    write(root.path(), Dtype::Bf16, vec![0x80, 0x7f, 0, 0]);
    assert_rejects!(PeftAdapter::open(root.path()), AdapterProblem::NotFinite { index: 0, .. });
    write(root.path(), Dtype::F64, vec![0; 16]);
    assert_rejects!(PeftAdapter::open(root.path()), AdapterProblem::Dtype { found: Dtype::F64, .. });
}

#[test]
fn adapters_of_another_model() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("adapter");
    let model = model();
    let pairs: Vec<AdapterPair> = targets(&[0, 2]).into_iter().map(|target| pair(target, 2, 2.0, &model)).collect();
    write_adapter(&directory, &AdapterConfig::for_pairs("base", 2, 4.0, false, &pairs), &pairs).unwrap();
    PeftAdapter::open_for(&directory, &model).unwrap();
    for other in [
        Config { hidden_size: 14, ..model.clone() },
        Config { intermediate_size: 8, ..model.clone() },
        Config { num_local_experts: 10, ..model.clone() },
        Config { vocab_size: 18, ..model.clone() },
        Config { head_dim: 12, ..model.clone() },
    ] {
        assert_rejects!(PeftAdapter::open_for(&directory, &other), AdapterProblem::Shape { .. });
    }
    let shallow = Config { num_hidden_layers: 2, ..model };
    assert!(matches!(PeftAdapter::open_for(&directory, &shallow), Err(Error::NoSuch { what: "layer", index: 2, count: 2 })));
}

#[test]
fn a_directory_of_something_else_is_not_replaced() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("thesis.txt"), "x").unwrap();
    let pairs = [pair(AdapterTarget::LmHead, 2, 2.0, &model())];
    let error = write_adapter(root.path(), &AdapterConfig::for_pairs("base", 2, 4.0, false, &pairs), &pairs).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }));
}
