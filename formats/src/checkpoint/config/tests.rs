//! Configs as they are met, and configs that make no model.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Config, ConfigProblem, LayerType, YarnScaling};
use crate::dtype::Dtype;
use crate::error::{Error, Hint};

fn read(text: &str) -> Result<Config, Error> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.json"), text).unwrap();
    Config::read(directory.path())
}

/// A small config in the spelling of the published one, with `changes` over it; null removes a key.
fn with(changes: Value) -> Result<Config, Error> {
    let mut config = small().to_json();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value.clone();
        }
    }
    read(&config.to_string())
}

/// Sizes that are no multiples of each other.
fn small() -> Config {
    Config {
        vocab_size: 517,
        hidden_size: 96,
        intermediate_size: 80,
        num_hidden_layers: 3,
        num_local_experts: 5,
        num_experts_per_token: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 24,
        layer_types: LayerType::alternating(3),
        has_mxfp4_experts: false,
        ..Config::gpt_oss_20b()
    }
}

macro_rules! assert_rejects {
    ($result:expr, $problem:pat $(if $guard:expr)?) => {
        match $result {
            Err(Error::Config { problem, .. } | Error::Setting(problem)) => {
                assert!(matches!(&problem, $problem $(if $guard)?), "refused as {problem:?}");
            }
            other => panic!("expected a refusal, found {other:?}"),
        }
    };
}

/// The keys of openai/gpt-oss-20b config.json, without the list of layers.
const PUBLISHED: &str = r#"{"architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
    "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
    "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880, "layer_types": LAYERS,
    "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": false,
    "pad_token_id": 199999, "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn",
    "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"}, "rms_norm_eps": 1e-05,
    "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
    "rope_type": "yarn", "truncate": false}, "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
    "swiglu_limit": 7.0, "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true,
    "vocab_size": 201088}"#;

fn published() -> String {
    let layers = json!(["sliding_attention", "full_attention"].repeat(12));
    PUBLISHED.replace("LAYERS", &layers.to_string())
}

#[test]
fn the_published_config_is_read_and_written_with_the_same_keys() {
    let config = read(&published()).unwrap();
    assert_eq!(config, Config::gpt_oss_20b());
    let published: Value = serde_json::from_str(&published()).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&config.to_json()), keys(&published));
}

#[test]
fn presets_are_models() {
    for config in [Config::nano(), Config::gpt_oss_20b(), Config::gpt_oss_120b(), small()] {
        config.validate().unwrap();
        assert_eq!(read(&config.to_json().to_string()).unwrap(), config);
    }
}

#[test]
fn the_spelling_of_transformers_5_is_read() {
    let text = r#"{"architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0, "bos_token_id": null,
        "dtype": "float32", "eos_token_id": [1, 2], "head_dim": 24, "hidden_act": "silu", "hidden_size": 96,
        "initializer_range": 0.02, "intermediate_size": 80, "max_position_embeddings": 131072, "model_type": "gpt_oss",
        "num_attention_heads": 6, "num_experts_per_tok": 3, "num_hidden_layers": 3, "num_key_value_heads": 2, "num_local_experts": 5,
        "output_router_logits": false, "pad_token_id": null, "rms_norm_eps": 1e-05, "rope_parameters": {"beta_fast": 32.0,
        "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096, "rope_theta": 150000.0, "rope_type": "yarn",
        "truncate": false}, "router_aux_loss_coef": 0.9, "sliding_window": 128, "tie_word_embeddings": false,
        "transformers_version": "5.17.0", "use_cache": true, "vocab_size": 517, "some_new_key": {"a": 1}}"#;
    let expected = Config { eos_token_id: vec![1, 2], pad_token_id: None, dtype: Some(Dtype::F32), ..small() };
    assert_eq!(read(text).unwrap(), expected);
}

#[test]
fn missing_rope_sections_stand_for_the_default_of_transformers() {
    let config = with(json!({"rope_scaling": null})).unwrap();
    assert_eq!(config.rope_scaling, Some(YarnScaling::published()));
    let config = with(json!({"rope_scaling": null, "rope_theta": null})).unwrap();
    assert_eq!((config.rope_scaling, config.rope_theta), (Some(YarnScaling::published()), 150_000.0));
}

#[test]
fn plain_rope_has_a_spelling_and_survives() {
    for section in ["rope_scaling", "rope_parameters"] {
        let config = with(json!({"rope_scaling": null, section: {"rope_type": "default"}})).unwrap();
        assert_eq!(config.rope_scaling, None);
        assert_eq!(read(&config.to_json().to_string()).unwrap(), config);
    }
    let config =
        with(json!({"rope_scaling": null, "rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})).unwrap();
    assert_eq!((config.rope_scaling, config.rope_theta), (None, 1e4));
}

#[test]
fn yarn_has_the_defaults_of_transformers() {
    let config = with(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}, "max_position_embeddings": 77})).unwrap();
    let expected = YarnScaling { factor: 4.0, beta_fast: 32.0, beta_slow: 1.0, truncate: true, original_max_position_embeddings: 77 };
    assert_eq!(config.rope_scaling, Some(expected));
}

#[test]
fn defaults_are_the_published_values() {
    let config = with(json!({"layer_types": null, "swiglu_limit": null, "experts_per_token": null, "attention_bias": null})).unwrap();
    assert_eq!(config, small());
    let config = with(json!({"num_experts_per_tok": null, "hidden_act": null, "initial_context_length": null})).unwrap();
    assert_eq!(config, small());
}

#[test]
fn keys_without_a_default_are_named() {
    for key in [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_local_experts",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ] {
        assert_rejects!(with(json!({key: null})), ConfigProblem::Missing { key: found } if *found == key || key == "model_type");
    }
}

#[test]
fn values_of_other_types_are_named() {
    for (key, value) in [
        ("vocab_size", json!("517")),
        ("vocab_size", json!(-1)),
        ("hidden_size", json!(96.5)),
        ("num_hidden_layers", json!(1e30)),
        ("rms_norm_eps", json!("small")),
        ("layer_types", json!("full_attention")),
        ("rope_scaling", json!("yarn")),
        ("eos_token_id", json!("x")),
        ("quantization_config", json!(true)),
    ] {
        assert_rejects!(with(json!({key: value})), ConfigProblem::WrongType { key: found, .. } if found == key);
    }
    assert_rejects!(with(json!({"rope_scaling": {"rope_type": "yarn", "factor": []}})), ConfigProblem::WrongType { key, .. } if key == "rope_scaling.factor");
}

#[test]
fn numbers_that_make_no_model_are_refused() {
    for (key, value) in [
        ("num_local_experts", json!(0)),
        ("hidden_size", json!(0)),
        ("vocab_size", json!(u64::MAX)),
        ("num_hidden_layers", json!(1_000_000_000_000u64)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("sliding_window", json!(0)),
        ("rms_norm_eps", json!(0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(1)),
        ("swiglu_limit", json!(-7)),
        ("initializer_range", json!(-1)),
        ("max_position_embeddings", json!(0)),
    ] {
        let changes = json!({key: value, "layer_types": null});
        assert_rejects!(with(changes), ConfigProblem::OutOfRange { key: found, .. } if *found == key);
    }
    assert_rejects!(with(json!({"head_dim": 23})), ConfigProblem::OutOfRange { key: "head_dim", .. });
    let zero = json!({"num_hidden_layers": 0, "layer_types": null});
    assert_rejects!(with(zero), ConfigProblem::OutOfRange { key: "num_hidden_layers", .. });
    for (key, value) in
        [("factor", json!(0.5)), ("beta_slow", json!(0)), ("beta_fast", json!(0.5)), ("original_max_position_embeddings", json!(0))]
    {
        let mut section = YarnScaling::published().to_json();
        section[key] = value;
        assert_rejects!(with(json!({"rope_scaling": section})), ConfigProblem::OutOfRange { key: found, .. } if found.ends_with(key));
    }
}

#[test]
fn dimensions_whose_product_exceeds_any_file_are_refused() {
    let huge = json!({"hidden_size": 2_000_000_000, "intermediate_size": 2_000_000_000, "num_local_experts": 2_000_000_000});
    assert_rejects!(with(huge), ConfigProblem::TooLarge);
    let huge = json!({"num_attention_heads": 1u64 << 31, "num_key_value_heads": 1u64 << 31, "head_dim": 1u64 << 31});
    assert_rejects!(with(huge), ConfigProblem::TooLarge);
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    for changes in [
        json!({"num_hidden_layers": 4}),
        json!({"layer_types": []}),
        json!({"experts_per_token": 4}),
        json!({"num_experts": 6}),
        json!({"num_experts_per_tok": 6, "experts_per_token": 6}),
        json!({"num_key_value_heads": 4}),
        json!({"rope_parameters": {"rope_type": "default"}}),
        json!({"rope_parameters": {"rope_type": "yarn", "factor": 32.0, "truncate": false, "original_max_position_embeddings": 4096, "rope_theta": 10000}}),
    ] {
        assert_rejects!(with(changes.clone()), ConfigProblem::Contradiction { .. });
    }
}

#[test]
fn variants_that_are_not_computed_are_refused() {
    for (changes, named) in [
        (json!({"tie_word_embeddings": true}), "tie_word_embeddings"),
        (json!({"attention_bias": false}), "attention_bias"),
        (json!({"attention_dropout": 0.1}), "attention_dropout"),
        (json!({"hidden_act": "gelu"}), "hidden_act"),
        (json!({"layer_types": ["full_attention", "linear_attention", "full_attention"]}), "layer_types"),
        (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8}}), "rope_scaling.rope_type"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 8, "mscale": 1.0}}), "rope_scaling.mscale"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 8, "attention_factor": 1.0}}), "rope_scaling.attention_factor"),
        (json!({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}), "rope_scaling.partial_rotary_factor"),
        (json!({"rope_scaling": {"full_attention": {}, "sliding_attention": {}}}), "rope_scaling.full_attention"),
        (json!({"quantization_config": {"quant_method": "bitsandbytes"}}), "quantization_config.quant_method"),
        (json!({"dtype": "float8"}), "dtype"),
    ] {
        assert_rejects!(with(changes), ConfigProblem::Unsupported { key, .. } if key == named);
    }
    assert_rejects!(with(json!({"model_type": "llama"})), ConfigProblem::ModelType { found } if found == "\"llama\"");
    assert_rejects!(with(json!({"auto_map": {"AutoModel": "x.Y"}})), ConfigProblem::CustomCode { key: "auto_map" });
    let mxfp4 = json!({"quantization_config": {"quant_method": "mxfp4"}});
    assert_rejects!(with(mxfp4), ConfigProblem::PartialBlock { key: "intermediate_size", found: 80 });
    let message = with(json!({"tie_word_embeddings": true})).unwrap_err().to_string();
    assert!(message.ends_with("`tie_word_embeddings` is true, and only false is supported"), "{message}");
}

#[test]
fn files_that_are_no_config_are_refused() {
    assert!(matches!(read(""), Err(Error::Json { .. })));
    assert!(matches!(read("[]"), Err(Error::NotAnObject { .. })));
    assert!(matches!(read(r#"{"rope_theta": NaN}"#), Err(Error::Json { .. })));
    assert!(matches!(read(r#"{"vocab_size": 1, "vocab_size": 2}"#), Err(Error::DuplicateKey { .. })));
    assert!(matches!(read(&format!("{{}}{}", " ".repeat(1 << 20))), Err(Error::TooLarge { .. })));
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(Config::read(directory.path()), Err(Error::NoConfig { .. })));
}

#[test]
fn the_original_spelling_is_read() {
    let text = r#"{"num_hidden_layers": 36, "num_experts": 128, "experts_per_token": 4, "vocab_size": 201088, "hidden_size": 2880,
        "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
        "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32}"#;
    assert_eq!(read(text).unwrap(), Config::gpt_oss_120b());
    let swapped = read(&text.replace("\"rope_ntk_alpha\": 1,", "\"rope_ntk_alpha\": 2,")).unwrap();
    assert_eq!(swapped.rope_scaling.map(|yarn| (yarn.beta_slow, yarn.beta_fast)), Some((2.0, 32.0)));
    assert_eq!(read(&text.replace("32.0", "1.0")).unwrap().rope_scaling, None);
    assert_rejects!(read(&text.replace("36", "1000000000000")), ConfigProblem::OutOfRange { key: "num_hidden_layers", .. });
    assert_rejects!(read(&text.replace("32.0", "1e300")), ConfigProblem::OutOfRange { key: "rope_scaling_factor", .. });
    assert_rejects!(read(&text.replace("\"num_experts\": 128,", "\"num_experts\": 2,")), ConfigProblem::Contradiction { .. });
}

#[test]
fn settings_change_what_they_name() {
    let mut config = Config::nano();
    for (key, value) in [
        ("hidden_size", "96"),
        ("num_hidden_layers", "5"),
        ("num_experts_per_tok", "3"),
        ("rope_scaling.factor", "8"),
        ("initial_context_length", "512"),
        ("swiglu_alpha", "1.5"),
        ("eos_token_id", "[1, 2]"),
        ("rms_norm_eps", "1e-6"),
    ] {
        config.set(key, value).unwrap();
    }
    let yarn = YarnScaling { factor: 8.0, original_max_position_embeddings: 512, ..YarnScaling::published() };
    let expected = Config {
        hidden_size: 96,
        num_hidden_layers: 5,
        layer_types: LayerType::alternating(5),
        num_experts_per_token: 3,
        rope_scaling: Some(yarn),
        swiglu_alpha: 1.5,
        eos_token_id: vec![1, 2],
        rms_norm_eps: 1e-6,
        ..Config::nano()
    };
    assert_eq!(config, expected);
    config.set("layer_types", r#"["full_attention","full_attention","full_attention","full_attention","sliding_attention"]"#).unwrap();
    assert_eq!(config.layer_types[4], LayerType::SlidingAttention);
    config.set("rope_scaling", "default").unwrap();
    assert_eq!(config.rope_scaling, None);
    config.set("rope_scaling.beta_fast", "16").unwrap();
    assert_eq!(config.rope_scaling.unwrap().beta_fast, 16.0);
    config.set("eos_token_id", "200002").unwrap();
    config.set("vocab_size", "517").unwrap();
    assert_eq!((config.eos_token_id, config.pad_token_id), (vec![], None));
}

#[test]
fn settings_that_cannot_be_are_refused_with_the_nearest_key() {
    let mut config = Config::nano();
    assert_rejects!(config.set("hiden_size", "96"), ConfigProblem::UnknownKey { nearest: Some("hidden_size"), .. });
    assert_rejects!(config.set("rope_scaling.fctor", "8"), ConfigProblem::UnknownKey { nearest: Some("rope_scaling.factor"), .. });
    assert_rejects!(config.set("quantization_config", "{}"), ConfigProblem::UnknownKey { .. });
    assert_rejects!(config.set("hidden_size", "wide"), ConfigProblem::WrongType { .. });
    assert_rejects!(config.set("hidden_size", "null"), ConfigProblem::WrongType { .. });
    assert_rejects!(config.set("num_hidden_layers", "1000000000000"), ConfigProblem::OutOfRange { .. });
    assert_eq!(config, Config::nano());
    let hint = config.set("vocabsize", "1").unwrap_err().hint();
    assert_eq!(hint.as_deref(), Some("did you mean `vocab_size`?"));
}

proptest! {
    #[test]
    fn configs_come_back(
        sizes in proptest::array::uniform6(1usize..4000), layers in 1usize..20, groups in 1usize..4, limit in 0.001f64..100.0,
        factor in 1.0f64..100.0, plain in any::<bool>()
    ) {
        let [vocab_size, hidden_size, intermediate_size, num_local_experts, heads, half] = sizes;
        let scaling = YarnScaling { factor, truncate: factor > 50.0, ..YarnScaling::published() };
        let config = Config {
            vocab_size, hidden_size, intermediate_size, num_local_experts,
            num_experts_per_token: num_local_experts.min(4),
            num_attention_heads: heads * groups,
            num_key_value_heads: heads,
            head_dim: 2 * half,
            num_hidden_layers: layers,
            layer_types: LayerType::alternating(layers),
            swiglu_limit: limit,
            rope_scaling: (!plain).then_some(scaling),
            ..small()
        };
        prop_assert_eq!(read(&config.to_json().to_string()).unwrap(), config);
    }

    #[test]
    fn no_text_makes_the_reader_panic(key in "[a-z_]{1,12}", value in "[-0-9a-z\\[\\]{}\",:.]{0,12}") {
        let text = published().replace("\"vocab_size\": 201088", &format!("\"{key}\": {value}"));
        let _ = read(&text);
    }
}
