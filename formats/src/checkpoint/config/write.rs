//! `config.json` as it is written: the keys of the published file, in its alphabetical order.

use serde_json::{Value, json};

use super::{Config, LayerType};

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

/// Source: openai/gpt-oss-20b config.json.
fn quantization_config() -> Value {
    json!({
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4",
    })
}
