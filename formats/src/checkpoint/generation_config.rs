//! `generation_config.json`.

use serde_json::{Value, json};

use super::Config;

/// The content of the published file, without ids that the vocabulary does not reach.
///
/// Source: openai/gpt-oss-20b generation_config.json.
pub(super) fn generation_config(config: &Config) -> Value {
    let within = |id: &u64| *id < config.vocab_size as u64;
    let eos: Vec<u64> = [200_002, 199_999, 200_012].into_iter().filter(within).collect();
    let mut content = json!({
        "bos_token_id": Some(199_998).filter(within),
        "do_sample": true,
        "eos_token_id": (!eos.is_empty()).then_some(eos),
        "pad_token_id": Some(199_999).filter(within),
        "transformers_version": "4.55.0.dev0",
    });
    if let Value::Object(object) = &mut content {
        object.retain(|_, value| !value.is_null());
    }
    content
}
