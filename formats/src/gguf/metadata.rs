//! The metadata of a model: every key that llama.cpp's converter writes, in its order and with its types.
//!
//! Two things of a config have no place in GGUF. llama.cpp computes the experts' activation with the published constants, so that other
//! ones are refused here. And it rounds the ends of the YaRN ramp to whole pairs, whatever `truncate` says: logits of a model with
//! `truncate: false`, such as the published ones, differ a little there.
//!
//! Source: llama.cpp `conversion/base.py`, `conversion/gpt_oss.py`; gguf 0.19.0 `constants.py`, `metadata.py`, `vocab.py`.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::vocabulary::Vocabulary;
use super::{ARCHITECTURE, Array, FileType, GgufTensor, Held, Value};
use crate::checkpoint::{Checkpoint, Config, LayerType};
use crate::error::{Error, Result};
use crate::json::read_object;
use crate::template::without_generation_marks;
use crate::tokenizer::{listed_specials, special};

/// Bytes at most of the small JSON files beside the weights; a chat template can be in them.
const LIMIT_BYTES: u64 = 16 << 20;

/// Layers at most. Source: llama.cpp `src/llama-hparams.h`, `LLAMA_MAX_LAYERS`.
const LIMIT_LAYERS: usize = 512;

/// Experts at most. Source: llama.cpp `src/llama-hparams.h`, `LLAMA_MAX_EXPERTS`.
const LIMIT_EXPERTS: usize = 1024;

/// Version of the block types. Source: gguf 0.19.0 `constants.py`, `GGML_QUANT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;

/// Keys and values in the order of a file.
pub type Metadata = Vec<(String, Value)>;

/// The metadata of `source` in a file of the kind `file_type`, under the name `name`.
///
/// The chat template is the model's own, or `template` when it has none; without the marks of what the model generates, which some engines
/// refuse.
///
/// # Errors
/// [`Error::NotIn`] for a config that llama.cpp cannot compute; [`Error::ForeignTokenizer`] for a model with a tokenizer of its own;
/// [`Error::Io`] or [`Error::Json`] for a file beside the weights that cannot be read.
pub fn model_metadata(
    source: &Checkpoint,
    tensors: &[GgufTensor],
    name: &str,
    file_type: FileType,
    template: Option<&str>,
) -> Result<Metadata> {
    let config = source.config();
    check(source.path(), config)?;
    let mut keys = Keys(Metadata::new());
    keys.general("architecture", Value::String(ARCHITECTURE.to_owned()));
    keys.general("type", Value::String("model".to_owned()));
    sampling(source.path(), &mut keys)?;
    keys.general("name", Value::String(name.to_owned()));
    keys.general("size_label", Value::String(size_label(config, tensors)));
    hyperparameters(config, file_type, &mut keys);
    keys.general("quantization_version", Value::U32(QUANTIZATION_VERSION));
    tokenizer(source, template, &mut keys)?;
    Ok(keys.0)
}

struct Keys(Metadata);

impl Keys {
    fn general(&mut self, name: &str, value: Value) {
        self.0.push((format!("general.{name}"), value));
    }

    fn model(&mut self, name: &str, value: Value) {
        self.0.push((format!("{ARCHITECTURE}.{name}"), value));
    }

    fn tokenizer(&mut self, name: &str, value: Value) {
        self.0.push((format!("tokenizer.{name}"), value));
    }
}

/// Refuses what llama.cpp would load and compute otherwise, or not load.
fn check(path: &Path, config: &Config) -> Result<()> {
    let refused = |key, found: &dyn ToString, supported| {
        Err(Error::NotIn { format: "GGUF", path: path.to_owned(), key, found: found.to_string(), supported })
    };
    // Source: llama.cpp `src/llama-graph.cpp`, `LLM_FFN_SWIGLU_OAI_MOE`.
    if config.swiglu_alpha != 1.702 {
        return refused("swiglu_alpha", &config.swiglu_alpha, "1.702");
    }
    if config.swiglu_limit != 7.0 {
        return refused("swiglu_limit", &config.swiglu_limit, "7");
    }
    if config.num_hidden_layers > LIMIT_LAYERS {
        return refused("num_hidden_layers", &config.num_hidden_layers, "512 at most");
    }
    if config.num_local_experts > LIMIT_EXPERTS {
        return refused("num_local_experts", &config.num_local_experts, "1024 at most");
    }
    Ok(())
}

/// What `generation_config.json` recommends. Source: gguf 0.19.0 `metadata.py`, `Metadata.load`.
fn sampling(directory: &Path, keys: &mut Keys) -> Result<()> {
    let Some(config) = optional_object(&directory.join("generation_config.json"))? else { return Ok(()) };
    if let Some(top_k) = config.get("top_k").and_then(Json::as_i64).and_then(|top_k| i32::try_from(top_k).ok()) {
        keys.general("sampling.top_k", Value::I32(top_k));
    }
    for (name, key) in [("top_p", "top_p"), ("min_p", "min_p"), ("temp", "temperature"), ("penalty_repeat", "repetition_penalty")] {
        if let Some(number) = config.get(key).and_then(Json::as_f64) {
            keys.general(&format!("sampling.{name}"), Value::F32(single(number)));
        }
    }
    Ok(())
}

fn hyperparameters(config: &Config, file_type: FileType, keys: &mut Keys) {
    // Sizes of a config are at most 2^31.
    let count = |size: usize| Value::U32(u32::try_from(size).unwrap_or(u32::MAX));
    keys.model("block_count", count(config.num_hidden_layers));
    keys.model("context_length", count(config.max_position_embeddings));
    keys.model("embedding_length", count(config.hidden_size));
    keys.model("feed_forward_length", count(config.intermediate_size));
    keys.model("attention.head_count", count(config.num_attention_heads));
    keys.model("attention.head_count_kv", count(config.num_key_value_heads));
    if let Some(yarn) = config.rope_scaling {
        keys.model("rope.scaling.type", Value::String("yarn".to_owned()));
        keys.model("rope.scaling.factor", Value::F32(single(yarn.factor)));
        keys.model("rope.scaling.original_context_length", count(yarn.original_max_position_embeddings));
        keys.model("rope.scaling.yarn_beta_fast", Value::F32(single(yarn.beta_fast)));
        keys.model("rope.scaling.yarn_beta_slow", Value::F32(single(yarn.beta_slow)));
    }
    keys.model("rope.freq_base", Value::F32(single(config.rope_theta)));
    keys.model("attention.layer_norm_rms_epsilon", Value::F32(single(config.rms_norm_eps)));
    keys.model("expert_count", count(config.num_local_experts));
    keys.model("expert_used_count", count(config.num_experts_per_token));
    keys.model("attention.key_length", count(config.head_dim));
    keys.model("attention.value_length", count(config.head_dim));
    keys.general("file_type", Value::U32(file_type.number()));
    keys.model("attention.sliding_window", count(config.sliding_window));
    keys.model("expert_feed_forward_length", count(config.intermediate_size));
    // The converter leaves it at that, and llama.cpp has layers slide in turn. Source: `src/llama-model.cpp`, `load_swa_pattern`.
    let slides = |&layer_type: &LayerType| layer_type == LayerType::SlidingAttention;
    if config.layer_types.iter().enumerate().any(|(layer, layer_type)| slides(layer_type) != layer.is_multiple_of(2)) {
        let pattern = config.layer_types.iter().map(slides).collect();
        keys.model("attention.sliding_window_pattern", Value::Array(Array::Bool(pattern)));
    }
}

fn tokenizer(source: &Checkpoint, template: Option<&str>, keys: &mut Keys) -> Result<()> {
    let config = source.config();
    let Vocabulary { tokens, kinds, merges } = Vocabulary::of_model(source.path(), config.vocab_size)?;
    keys.tokenizer("ggml.model", Value::String("gpt2".to_owned()));
    keys.tokenizer("ggml.pre", Value::String("gpt-4o".to_owned()));
    keys.tokenizer("ggml.tokens", Value::Array(Array::String(tokens)));
    keys.tokenizer("ggml.token_type", Value::Array(Array::I32(kinds)));
    keys.tokenizer("ggml.merges", Value::Array(Array::String(merges)));
    let tokenizer_config = optional_object(&source.path().join("tokenizer_config.json"))?.unwrap_or_default();
    let configured = [None, config.eos_token_id.first().copied(), config.pad_token_id];
    let published = [Some(special::START_OF_TEXT), Some(special::RETURN), Some(special::END_OF_TEXT)];
    for (index, name) in ["bos", "eos", "padding"].into_iter().enumerate() {
        let key = ["bos_token", "eos_token", "pad_token"][index];
        let id = tokenizer_config.get(key).and_then(special_id).or(configured[index]).or(published[index]);
        // A small vocabulary may have no such token, and a number beyond it would be taken for a mistake.
        if let Some(id) = id.filter(|&id| (id as usize) < config.vocab_size) {
            keys.tokenizer(&format!("ggml.{name}_token_id"), Value::U32(id));
        }
    }
    keys.tokenizer("ggml.add_bos_token", Value::Bool(false));
    keys.tokenizer("ggml.add_eos_token", Value::Bool(false));
    let own = match source.gguf() {
        Some(file) => file.get("tokenizer.chat_template").and_then(Value::as_str).map(str::to_owned),
        None => chat_template(source.path(), &tokenizer_config)?,
    };
    if let Some(template) = own.or_else(|| template.map(str::to_owned)) {
        keys.tokenizer("chat_template", Value::String(without_generation_marks(&template).into_owned()));
    }
    Ok(())
}

/// The id of a special token that a `tokenizer_config.json` names, in either spelling.
fn special_id(entry: &Json) -> Option<u32> {
    let name = entry.as_str().or_else(|| entry.get("content")?.as_str())?;
    listed_specials().find(|&id| special::name(id).as_deref() == Some(name))
}

/// The model's own template. A file of its own comes before a key of the config, as in transformers.
fn chat_template(directory: &Path, tokenizer_config: &Map<String, Json>) -> Result<Option<String>> {
    let path = directory.join("chat_template.jinja");
    if path.exists() {
        return crate::json::read_text(&path, LIMIT_BYTES).map(Some);
    }
    let named = |list: &Vec<Json>| Some(list.iter().find(|entry| entry["name"] == "default")?["template"].as_str()?.to_owned());
    Ok(match tokenizer_config.get("chat_template") {
        Some(Json::String(template)) => Some(template.clone()),
        Some(Json::Array(list)) => named(list),
        _ => None,
    })
}

fn optional_object(path: &Path) -> Result<Option<Map<String, Json>>> {
    if path.exists() { read_object(path, LIMIT_BYTES).map(Some) } else { Ok(None) }
}

#[expect(clippy::cast_possible_truncation, reason = "GGUF keeps these numbers in single precision")]
fn single(number: f64) -> f32 {
    number as f32
}

/// Experts and parameters that see a token's way, such as `32x1.9B`.
///
/// Source: gguf 0.19.0 `gguf_writer.py`, `get_total_parameter_count`; `utility.py`, `size_label`.
fn size_label(config: &Config, tensors: &[GgufTensor]) -> String {
    let experts = config.num_local_experts;
    let elements = |tensor: &GgufTensor| tensor.shape.iter().product::<usize>() / if is_of_expert(tensor) { experts } else { 1 };
    let parameters = tensors.iter().map(elements).sum::<usize>() as f64;
    let (scaled, unit) = match parameters {
        count if count > 1e12 => (count * 1e-12, "T"),
        count if count > 1e9 => (count * 1e-9, "B"),
        count if count > 1e6 => (count * 1e-6, "M"),
        count => (count * 1e-3, "K"),
    };
    let digits = usize::from(scaled.round_ties_even() < 10.0);
    let digits = if scaled.round_ties_even() < 1.0 { 2 } else { digits };
    format!("{experts}x{scaled:.digits$}{unit}")
}

/// The biases of experts count as shared there.
fn is_of_expert(tensor: &GgufTensor) -> bool {
    matches!(tensor.held, Held::Experts { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{ExpertStorage, write_random_model};
    use crate::gguf::gguf_tensors;
    use std::fs;
    use std::path::PathBuf;

    fn model(root: &Path, name: &str, settings: &[(&str, &str)]) -> PathBuf {
        let mut config = Config::nano();
        let sizes = [("vocab_size", "1000"), ("hidden_size", "96"), ("num_hidden_layers", "3"), ("num_local_experts", "5")];
        for (key, value) in sizes.into_iter().chain(settings.iter().copied()) {
            config.set(key, value).unwrap();
        }
        write_random_model(&root.join(name), &config, ExpertStorage::Mxfp4, 1, &mut |_, _| ()).unwrap()
    }

    fn metadata(model: &Path, template: Option<&str>) -> Result<Metadata> {
        let source = Checkpoint::open(model).unwrap();
        model_metadata(&source, &gguf_tensors(source.config()), "a name", FileType::MXFP4_MOE, template)
    }

    fn find(metadata: &Metadata, key: &str) -> Option<Value> {
        metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    #[test]
    fn labels_of_size_are_those_of_llama_cpp() {
        let label = |config: &Config| size_label(config, &gguf_tensors(config));
        assert_eq!(label(&Config::gpt_oss_20b()), "32x2.4B");
        let config = Config { vocab_size: 1000, ..Config::nano() };
        assert_eq!(label(&config), "8x312K");
    }

    #[test]
    fn the_models_own_files_come_before_what_is_given() {
        let root = tempfile::tempdir().unwrap();
        let path = model(root.path(), "model", &[]);
        fs::remove_file(path.join("chat_template.jinja")).unwrap();
        let template = |given| match find(&metadata(&path, given).unwrap(), "tokenizer.chat_template") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        assert_eq!(template(None), None);
        assert_eq!(template(Some("given")).as_deref(), Some("given"));
        let configured = |text: &str| fs::write(path.join("tokenizer_config.json"), text).unwrap();
        configured(r#"{"chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "listed"}]}"#);
        assert_eq!(template(Some("given")).as_deref(), Some("listed"));
        configured(r#"{"chat_template": "configured", "eos_token": {"content": "<|end|>"}, "pad_token": "<|unknown|>"}"#);
        assert_eq!(template(Some("given")).as_deref(), Some("configured"));
        fs::write(path.join("chat_template.jinja"), "its own").unwrap();
        assert_eq!(template(Some("given")).as_deref(), Some("its own"));
        fs::write(path.join("chat_template.jinja"), "{% generation %}its own{%- endgeneration %}").unwrap();
        assert_eq!(template(None).as_deref(), Some("{# #}its own{#- #}"));
        fs::write(path.join("generation_config.json"), r#"{"temperature": 0.5, "top_k": 40, "do_sample": true}"#).unwrap();
        let found = metadata(&path, None).unwrap();
        assert_eq!(find(&found, "general.sampling.temp"), Some(Value::F32(0.5)));
        assert_eq!(find(&found, "general.sampling.top_k"), Some(Value::I32(40)));
        assert_eq!(find(&found, "general.sampling.top_p"), None);
        // Beyond the vocabulary of this model.
        assert_eq!(find(&found, "tokenizer.ggml.eos_token_id"), None);
        fs::write(path.join("chat_template.jinja"), [0xff]).unwrap();
        assert!(matches!(metadata(&path, None), Err(Error::NotText { .. })));
        configured("[");
        assert!(matches!(metadata(&path, None), Err(Error::Json { .. })));
    }

    #[test]
    fn special_tokens_have_the_ids_that_the_models_files_name() {
        assert_eq!(special_id(&"<|end|>".into()), Some(200_007));
        assert_eq!(special_id(&serde_json::json!({"content": "<|return|>"})), Some(200_002));
        assert_eq!(special_id(&"<|im_end|>".into()), None);
        assert_eq!(special_id(&Json::Null), None);
    }

    #[test]
    fn what_llama_cpp_would_compute_otherwise_is_refused_or_told() {
        let root = tempfile::tempdir().unwrap();
        let path = model(root.path(), "limit", &[("swiglu_limit", "5")]);
        assert!(matches!(metadata(&path, None), Err(Error::NotIn { key: "swiglu_limit", .. })));
        let layer_types = ("layer_types", "[\"full_attention\", \"sliding_attention\", \"full_attention\"]");
        let path = model(root.path(), "pattern", &[layer_types]);
        let found = metadata(&path, None).unwrap();
        let pattern = Value::Array(Array::Bool(vec![false, true, false]));
        assert_eq!(find(&found, "gpt-oss.attention.sliding_window_pattern"), Some(pattern));
    }
}
