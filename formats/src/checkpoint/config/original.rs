//! `original/config.json`, OpenAI's own spelling.
//!
//! Source: openai/gpt-oss `gpt_oss/torch/model.py` `ModelConfig`; transformers `convert_gpt_oss_weights_to_hf.py`.

use serde_json::{Map, Value, json};

use super::read::Keys;
use super::{Config, ConfigProblem, LayerType, YarnScaling, validate};

/// True for OpenAI's spelling: it has no `model_type`, and names of its own.
pub(super) fn is_original(object: &Map<String, Value>) -> bool {
    !object.contains_key("model_type") && (object.contains_key("num_experts") || object.contains_key("rope_scaling_factor"))
}

/// The content of OpenAI's `config.json` for `config`.
///
/// # Errors
/// The key that it has no place for, the value found, and the one that it stands for when it is silent.
pub(in crate::checkpoint) fn to_json(config: &Config) -> Result<Value, (&'static str, String, &'static str)> {
    let published = YarnScaling::published();
    let scaling = config.rope_scaling.unwrap_or(YarnScaling { factor: 1.0, ..published });
    if config.layer_types != LayerType::alternating(config.num_hidden_layers) {
        return Err(("layer_types", "of another order".to_owned(), "sliding and full in turn"));
    }
    if scaling.truncate {
        return Err(("rope_scaling.truncate", "true".to_owned(), "false"));
    }
    if config.swiglu_alpha != 1.702 {
        return Err(("swiglu_alpha", config.swiglu_alpha.to_string(), "1.702"));
    }
    if config.rms_norm_eps != 1e-5 {
        return Err(("rms_norm_eps", config.rms_norm_eps.to_string(), "1e-5"));
    }
    Ok(json!({
        "num_hidden_layers": config.num_hidden_layers,
        "num_experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_token,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": config.rope_scaling.map_or(config.max_position_embeddings, |yarn| yarn.original_max_position_embeddings),
        "rope_theta": config.rope_theta,
        "rope_scaling_factor": scaling.factor,
        "rope_ntk_alpha": scaling.beta_slow,
        "rope_ntk_beta": scaling.beta_fast,
    }))
}

/// The config that `object` spells, with the published values where it is silent.
pub(super) fn parse(object: &Map<String, Value>) -> Result<Config, ConfigProblem> {
    let keys = Keys::of(object);
    let published = Config::gpt_oss_20b();
    let num_hidden_layers = keys.required("num_hidden_layers")?;
    if num_hidden_layers > validate::LIMIT_LAYERS {
        let found = num_hidden_layers.to_string();
        return Err(ConfigProblem::OutOfRange { key: "num_hidden_layers", expected: "1 to 4096", found });
    }
    let initial_context_length = keys.count("initial_context_length")?.unwrap_or(4096);
    let factor = keys.float("rope_scaling_factor")?.unwrap_or(32.0);
    let stretched = initial_context_length as f64 * factor;
    if !(1.0..=validate::LIMIT_SIZE as f64).contains(&stretched) {
        let expected = "one that stretches `initial_context_length` to at most 2^31 positions";
        return Err(ConfigProblem::OutOfRange { key: "rope_scaling_factor", expected, found: factor.to_string() });
    }
    Ok(Config {
        vocab_size: keys.required("vocab_size")?,
        hidden_size: keys.required("hidden_size")?,
        intermediate_size: keys.required("intermediate_size")?,
        num_hidden_layers,
        num_local_experts: keys.required("num_experts")?,
        num_experts_per_token: keys.either("experts_per_token", "num_experts_per_tok", "`num_experts_per_tok`")?,
        num_attention_heads: keys.required("num_attention_heads")?,
        num_key_value_heads: keys.required("num_key_value_heads")?,
        head_dim: keys.required("head_dim")?,
        layer_types: LayerType::alternating(num_hidden_layers),
        sliding_window: keys.count("sliding_window")?.unwrap_or(published.sliding_window),
        rope_theta: keys.float("rope_theta")?.unwrap_or(published.rope_theta),
        // The reference leaves the frequencies alone unless the factor exceeds 1.
        rope_scaling: (factor > 1.0).then_some(YarnScaling {
            factor,
            beta_fast: keys.float("rope_ntk_beta")?.unwrap_or(32.0),
            beta_slow: keys.float("rope_ntk_alpha")?.unwrap_or(1.0),
            truncate: false,
            original_max_position_embeddings: initial_context_length,
        }),
        swiglu_limit: keys.float("swiglu_limit")?.unwrap_or(published.swiglu_limit),
        max_position_embeddings: stretched as usize,
        ..published
    })
}
