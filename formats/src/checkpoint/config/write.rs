//! `config.json` as it is written: the keys of the published file, in its alphabetical order.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Config, LIMIT_BYTES, LayerType};
use crate::checkpoint::ExpertStorage;
use crate::error::Result;
use crate::json::read_object;

/// The version that the published files name. Source: openai/gpt-oss-20b config.json.
const TRANSFORMERS_VERSION: &str = "4.55.0.dev0";

impl Config {
    /// The content of `config.json`, which [`Config::read`] reads back to the same config.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let eos = match self.eos_token_id[..] {
            [] => Value::Null,
            [id] => id.into(),
            ref ids => ids.into(),
        };
        let context = self.rope_scaling.map_or(self.max_position_embeddings, |yarn| yarn.original_max_position_embeddings);
        let mut config = json!({
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "dtype": self.dtype.and_then(crate::dtype::Dtype::torch_name),
            "eos_token_id": eos,
            "experts_per_token": self.num_experts_per_token,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initial_context_length": context,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "layer_types": self.layer_types.iter().copied().map(LayerType::name).collect::<Vec<_>>(),
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "gpt_oss",
            "num_attention_heads": self.num_attention_heads,
            "num_experts_per_tok": self.num_experts_per_token,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "num_local_experts": self.num_local_experts,
            "output_router_logits": false,
            "pad_token_id": self.pad_token_id,
            "quantization_config": self.has_mxfp4_experts.then(quantization_config),
            "rms_norm_eps": self.rms_norm_eps,
            // transformers takes an absent section for its default, YaRN: plain periods have to be named.
            "rope_scaling": self.rope_scaling.map_or_else(|| json!({"rope_type": "default"}), super::YarnScaling::to_json),
            "rope_theta": self.rope_theta,
            "router_aux_loss_coef": self.router_aux_loss_coef,
            "sliding_window": self.sliding_window,
            "swiglu_alpha": (self.swiglu_alpha != 1.702).then_some(self.swiglu_alpha),
            "swiglu_limit": self.swiglu_limit,
            "tie_word_embeddings": self.tie_word_embeddings,
            "transformers_version": TRANSFORMERS_VERSION,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        if let Value::Object(object) = &mut config {
            object.retain(|_, value| !value.is_null());
        }
        config
    }
}

/// The config in `path`, its keys as they are, but for what tells how the experts are stored.
pub(in crate::checkpoint) fn with_storage(path: &Path, storage: ExpertStorage) -> Result<Value> {
    const QUANTIZATION: &str = "quantization_config";
    let mut object = read_object(path, LIMIT_BYTES)?;
    let was_sorted = object.keys().is_sorted();
    match storage {
        ExpertStorage::Mxfp4 if object.get(QUANTIZATION).is_none_or(Value::is_null) => {
            object.insert(QUANTIZATION.to_owned(), quantization_config());
        }
        ExpertStorage::Mxfp4 => {}
        ExpertStorage::Float(dtype) => {
            object.shift_remove(QUANTIZATION);
            // A config may have either spelling, or both.
            let mut spellings: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|key| object.contains_key(*key)).collect();
            if spellings.is_empty() {
                spellings.push("dtype");
            }
            for key in spellings {
                object.insert(key.to_owned(), dtype.torch_name().into());
            }
        }
    }
    if was_sorted {
        let mut entries: Vec<(String, Value)> = object.into_iter().collect();
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        object = Map::from_iter(entries);
    }
    Ok(Value::Object(object))
}

/// Source: openai/gpt-oss-20b config.json.
fn quantization_config() -> Value {
    json!({
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4",
    })
}
