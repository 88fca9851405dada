//! `config.json` of the Hugging Face layout.

use serde_json::{Map, Value};

use super::validate::LIMIT_LAYERS;
use super::{Config, ConfigProblem, LayerType, rope};
use crate::dtype::Dtype;

/// Letters of a value that an error shows.
const SHOWN: usize = 80;

/// The keys of an object, read by type. `null` is as good as absent, as in transformers.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    object: &'a Map<String, Value>,
    /// Key of the object itself, when it lies in another one.
    section: Option<&'static str>,
}

impl<'a> Keys<'a> {
    pub(super) fn of(object: &'a Map<String, Value>) -> Self {
        Self { object, section: None }
    }

    pub(super) fn inside(object: &'a Map<String, Value>, section: &'static str) -> Self {
        Self { object, section: Some(section) }
    }

    pub(super) fn value(self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(self, key: &str, expected: &'static str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>, ConfigProblem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong = || ConfigProblem::WrongType { key: self.full(key), expected, found: shown(value) };
        read(value).map(Some).ok_or_else(wrong)
    }

    pub(super) fn count(self, key: &str) -> Result<Option<usize>, ConfigProblem> {
        self.read(key, "a whole number, not negative", |value| value.as_u64().and_then(|count| count.try_into().ok()))
    }

    pub(super) fn float(self, key: &str) -> Result<Option<f64>, ConfigProblem> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn boolean(self, key: &str) -> Result<Option<bool>, ConfigProblem> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(self, key: &str) -> Result<Option<&'a str>, ConfigProblem> {
        self.read(key, "a string", Value::as_str)
    }

    pub(super) fn object(self, key: &str) -> Result<Option<&'a Map<String, Value>>, ConfigProblem> {
        self.read(key, "an object", Value::as_object)
    }

    pub(super) fn required(self, key: &'static str) -> Result<usize, ConfigProblem> {
        self.count(key)?.ok_or(ConfigProblem::Missing { key })
    }

    /// A count that has two names; both may be there when they agree.
    pub(super) fn either(self, key: &'static str, other: &'static str, other_named: &'static str) -> Result<usize, ConfigProblem> {
        match (self.count(key)?, self.count(other)?) {
            (Some(count), Some(another)) if count != another => {
                Err(ConfigProblem::Contradiction { key, found: count.to_string(), other: other_named, other_found: another.to_string() })
            }
            (first, second) => first.or(second).ok_or(ConfigProblem::Missing { key }),
        }
    }

    pub(super) fn unsupported(self, key: &str, value: &Value, supported: &'static str) -> ConfigProblem {
        ConfigProblem::Unsupported { key: self.full(key), found: shown(value), supported }
    }

    /// Refuses a value other than `only`.
    fn fixed(self, key: &str, only: &Value, supported: &'static str) -> Result<(), ConfigProblem> {
        let is_same = |value: &Value| match (value.as_f64(), only.as_f64()) {
            (Some(found), Some(only)) => found == only,
            _ => value == only,
        };
        match self.value(key) {
            Some(value) if !is_same(value) => Err(self.unsupported(key, value, supported)),
            _ => Ok(()),
        }
    }

    fn full(self, key: &str) -> String {
        self.section.map_or_else(|| key.to_owned(), |section| format!("{section}.{key}"))
    }
}

/// A value as JSON, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The config that `object` spells; unknown keys are passed over. Only what the model depends on is looked at.
pub(super) fn parse(object: &Map<String, Value>) -> Result<Config, ConfigProblem> {
    let keys = Keys::of(object);
    match keys.value("model_type") {
        Some(Value::String(kind)) if kind == "gpt_oss" => {}
        Some(other) => return Err(ConfigProblem::ModelType { found: shown(other) }),
        None => return Err(ConfigProblem::Missing { key: "model_type" }),
    }
    if keys.value("auto_map").is_some() {
        return Err(ConfigProblem::CustomCode { key: "auto_map" });
    }
    keys.fixed("tie_word_embeddings", &false.into(), "false")?;
    keys.fixed("attention_bias", &true.into(), "true")?;
    keys.fixed("attention_dropout", &0.0.into(), "0")?;
    keys.fixed("hidden_act", &"silu".into(), "\"silu\"")?;
    let num_hidden_layers = keys.required("num_hidden_layers")?;
    let max_position_embeddings = keys.count("max_position_embeddings")?.unwrap_or(131_072);
    let (rope_theta, rope_scaling) = rope::parse(keys, max_position_embeddings)?;
    let layer_types = layer_types(keys, num_hidden_layers)?;
    // transformers takes null for no window, which only matters to layers that slide.
    let slides = layer_types.contains(&LayerType::SlidingAttention);
    let sliding_window = match (object.get("sliding_window"), slides) {
        (Some(Value::Null), true) => return Err(keys.unsupported("sliding_window", &Value::Null, "a number of positions")),
        (Some(Value::Null), false) => max_position_embeddings,
        _ => keys.count("sliding_window")?.unwrap_or(128),
    };
    Ok(Config {
        vocab_size: keys.required("vocab_size")?,
        hidden_size: keys.required("hidden_size")?,
        intermediate_size: keys.required("intermediate_size")?,
        num_hidden_layers,
        num_local_experts: keys.either("num_local_experts", "num_experts", "`num_experts`")?,
        num_experts_per_token: keys.either("num_experts_per_tok", "experts_per_token", "`experts_per_token`")?,
        num_attention_heads: keys.required("num_attention_heads")?,
        num_key_value_heads: keys.required("num_key_value_heads")?,
        head_dim: keys.required("head_dim")?,
        layer_types,
        sliding_window,
        rms_norm_eps: keys.float("rms_norm_eps")?.unwrap_or(1e-5),
        rope_theta,
        rope_scaling,
        swiglu_limit: keys.float("swiglu_limit")?.unwrap_or(7.0),
        swiglu_alpha: keys.float("swiglu_alpha")?.unwrap_or(1.702), // Source: openai/gpt-oss gpt_oss/torch/model.py, swiglu.
        max_position_embeddings,
        initializer_range: keys.float("initializer_range")?.unwrap_or(0.02),
        attention_bias: true,
        eos_token_id: token_ids(keys, "eos_token_id")?,
        pad_token_id: token_ids(keys, "pad_token_id")?.first().copied(),
        tie_word_embeddings: false,
        router_aux_loss_coef: keys.float("router_aux_loss_coef")?.unwrap_or(0.9),
        has_mxfp4_experts: quantization(keys)?,
        dtype: dtype(keys)?,
    })
}

fn layer_types(keys: Keys<'_>, num_hidden_layers: usize) -> Result<Vec<LayerType>, ConfigProblem> {
    // Before anything of that length is made.
    if num_hidden_layers > LIMIT_LAYERS {
        let found = num_hidden_layers.to_string();
        return Err(ConfigProblem::OutOfRange { key: "num_hidden_layers", expected: "1 to 4096", found });
    }
    let Some(value) = keys.value("layer_types") else { return Ok(LayerType::alternating(num_hidden_layers)) };
    let Value::Array(list) = value else {
        return Err(ConfigProblem::WrongType { key: "layer_types".to_owned(), expected: "a list of strings", found: shown(value) });
    };
    if list.len() != num_hidden_layers {
        return Err(ConfigProblem::Contradiction {
            key: "num_hidden_layers",
            found: num_hidden_layers.to_string(),
            other: "the length of `layer_types`",
            other_found: list.len().to_string(),
        });
    }
    list.iter()
        .map(|item| match item.as_str() {
            Some("sliding_attention") => Ok(LayerType::SlidingAttention),
            Some("full_attention") => Ok(LayerType::FullAttention),
            _ => Err(keys.unsupported("layer_types", item, "\"sliding_attention\" or \"full_attention\"")),
        })
        .collect()
}

/// True for MXFP4 experts.
fn quantization(keys: Keys<'_>) -> Result<bool, ConfigProblem> {
    let Some(section) = keys.object("quantization_config")? else { return Ok(false) };
    let inner = Keys::inside(section, "quantization_config");
    match inner.text("quant_method")? {
        Some("mxfp4") => Ok(true),
        other => Err(inner.unsupported("quant_method", &other.into(), "\"mxfp4\"")),
    }
}

fn dtype(keys: Keys<'_>) -> Result<Option<Dtype>, ConfigProblem> {
    let key = if keys.value("dtype").is_some() { "dtype" } else { "torch_dtype" };
    let Some(name) = keys.text(key)? else { return Ok(None) };
    let known = Dtype::all().find(|dtype| dtype.torch_name() == Some(name));
    known.map(Some).ok_or_else(|| keys.unsupported(key, &name.into(), "bfloat16, float16 or float32"))
}

/// One id, or several.
fn token_ids(keys: Keys<'_>, key: &'static str) -> Result<Vec<u32>, ConfigProblem> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = keys.read(key, "a token id or a list of them", |value| match value {
        Value::Array(list) => list.iter().map(id).collect(),
        // Some writers say -1 for none.
        Value::Number(number) if number.as_i64() == Some(-1) => Some(Vec::new()),
        one => id(one).map(|id| vec![id]),
    })?;
    Ok(ids.unwrap_or_default())
}
