//! Changing a config key by key, as `ft init --set` does.

use serde_json::{Map, Value, json};

use super::{Config, ConfigProblem, YarnScaling, read};
use crate::error::{Error, Result};

/// The keys that can be set.
const KEYS: [&str; 29] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "layer_types",
    "sliding_window",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_scaling.factor",
    "rope_scaling.beta_fast",
    "rope_scaling.beta_slow",
    "rope_scaling.truncate",
    "rope_scaling.original_max_position_embeddings",
    "initial_context_length",
    "swiglu_limit",
    "swiglu_alpha",
    "max_position_embeddings",
    "initializer_range",
    "eos_token_id",
    "pad_token_id",
];

impl Config {
    /// Sets a key of `config.json` to a value in JSON; a key inside `rope_scaling` goes by `rope_scaling.factor`.
    ///
    /// `num_hidden_layers` brings the alternating `layer_types` of that length, a small `vocab_size` drops the special ids that lie
    /// outside it, and `rope_scaling=default` stands for plain periods. What must hold between several keys is for
    /// [`Config::validate`], once all are set.
    ///
    /// # Errors
    /// [`Error::Setting`] for a key that cannot be set, with the nearest one, or a value of another type.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        if !KEYS.contains(&key) {
            let nearest = KEYS
                .into_iter()
                .map(|known| (strsim::jaro_winkler(key, known), known))
                .filter(|(similarity, _)| *similarity > 0.7)
                .max_by(|left, right| left.0.total_cmp(&right.0))
                .map(|(_, known)| known);
            return Err(Error::Setting(ConfigProblem::UnknownKey { key: key.to_owned(), nearest }));
        }
        let parsed = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        if parsed.is_null() && !matches!(key, "eos_token_id" | "pad_token_id" | "rope_scaling") {
            let found = value.to_owned();
            return Err(Error::Setting(ConfigProblem::WrongType { key: key.to_owned(), expected: "a value", found }));
        }
        let Value::Object(mut object) = self.to_json() else { return Ok(()) };
        assign(&mut object, key, parsed);
        let mut changed = read::parse(&object).map_err(Error::Setting)?;
        let size = changed.vocab_size;
        let is_inside = |id: u32| usize::try_from(id).is_ok_and(|id| id < size);
        if key == "vocab_size" {
            changed.eos_token_id.retain(|&id| is_inside(id));
            changed.pad_token_id = changed.pad_token_id.filter(|&id| is_inside(id));
        }
        *self = changed;
        Ok(())
    }
}

fn assign(object: &mut Map<String, Value>, key: &str, value: Value) {
    match key {
        "num_hidden_layers" => {
            object.remove("layer_types");
            object.insert(key.to_owned(), value);
        }
        "num_experts_per_tok" | "num_experts_per_token" | "experts_per_token" => {
            object.insert("experts_per_token".to_owned(), value.clone());
            object.insert("num_experts_per_tok".to_owned(), value);
        }
        "num_experts" => {
            object.insert("num_local_experts".to_owned(), value);
        }
        "rope_scaling" if value.is_null() || matches!(value.as_str(), Some("default" | "none")) => {
            object.insert(key.to_owned(), json!({"rope_type": "default"}));
        }
        "initial_context_length" => assign(object, "rope_scaling.original_max_position_embeddings", value),
        _ => match key.split_once('.') {
            Some((section, inner)) => {
                let section = object.entry(section).or_insert(Value::Null);
                // A key of YaRN makes plain periods YaRN's.
                if section["rope_type"] != "yarn" {
                    *section = YarnScaling::published().to_json();
                }
                section[inner] = value;
            }
            None => {
                object.insert(key.to_owned(), value);
            }
        },
    }
}
