//! How a tensor of the Hugging Face layout is stored in a file: under its own name, or within one of OpenAI's `original/` layout.
//!
//! Source: openai/gpt-oss `gpt_oss/torch/model.py`, `weights.py`; transformers `convert_gpt_oss_weights_to_hf.py`.

use std::ops::Range;

use super::Config;
use crate::safetensors::TensorSpec;

/// The naming of a checkpoint's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    HuggingFace,
    Original,
}

/// Where a tensor is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) name: String,
    /// Shape of the whole stored tensor.
    pub(super) shape: Vec<usize>,
    /// Rows of it that are meant.
    pub(super) rows: Range<usize>,
}

impl Layout {
    /// The place of `spec` in this layout.
    pub(super) fn stored(self, spec: &TensorSpec, config: &Config) -> Stored {
        let whole = |name: String| Stored { name, shape: spec.shape.clone(), rows: 0..spec.shape.first().copied().unwrap_or(0) };
        if self == Self::HuggingFace {
            return whole(spec.name.clone());
        }
        let Some((layer, part)) = spec.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
            return whole(match spec.name.as_str() {
                "model.embed_tokens.weight" => "embedding.weight".to_owned(),
                "model.norm.weight" => "norm.scale".to_owned(),
                _ => "unembedding.weight".to_owned(),
            });
        };
        if let Some((projection, kind)) = part.strip_prefix("self_attn.").and_then(|part| part.split_once("_proj."))
            && projection != "o"
        {
            let (queries, keys) = (config.query_size(), config.key_value_size());
            let rows = match projection {
                "q" => 0..queries,
                "k" => queries..queries + keys,
                _ => queries + keys..queries + 2 * keys,
            };
            let mut shape = spec.shape.clone();
            shape[0] = queries + 2 * keys;
            return Stored { name: format!("block.{layer}.attn.qkv.{kind}"), shape, rows };
        }
        let original = match part {
            "input_layernorm.weight" => "attn.norm.scale",
            "self_attn.o_proj.weight" => "attn.out.weight",
            "self_attn.o_proj.bias" => "attn.out.bias",
            "self_attn.sinks" => "attn.sinks",
            "post_attention_layernorm.weight" => "mlp.norm.scale",
            "mlp.router.weight" => "mlp.gate.weight",
            "mlp.router.bias" => "mlp.gate.bias",
            "mlp.experts.gate_up_proj_blocks" => "mlp.mlp1_weight.blocks",
            "mlp.experts.gate_up_proj_scales" => "mlp.mlp1_weight.scales",
            "mlp.experts.gate_up_proj_bias" => "mlp.mlp1_bias",
            "mlp.experts.down_proj_blocks" => "mlp.mlp2_weight.blocks",
            "mlp.experts.down_proj_scales" => "mlp.mlp2_weight.scales",
            "mlp.experts.down_proj_bias" => "mlp.mlp2_bias",
            other => other,
        };
        whole(format!("block.{layer}.{original}"))
    }
}

/// The layout that `name` gives away as one that is not read, in words.
pub(super) fn foreign(name: &str) -> Option<&'static str> {
    if name.contains(".mlp.experts.gate_up_projs.") || name.contains(".mlp.experts.down_projs.") || name.contains(".mlp.router.linear.") {
        return Some("Unsloth's layout of one matrix per expert");
    }
    if name.ends_with(".mlp.mlp1_weight") || name.ends_with(".mlp.mlp2_weight") {
        return Some("plain experts in OpenAI's layout");
    }
    if name.contains(".quant_state.") || name.ends_with(".absmax") {
        return Some("weights quantized by bitsandbytes");
    }
    name.contains(".lora_A.").then_some("an adapter among the weights")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{ExpertStorage, tensor_specs};

    #[test]
    fn fused_rows_are_queries_then_keys_then_values() {
        let config = Config { num_hidden_layers: 1, ..Config::gpt_oss_20b() };
        let find = |name: &str| {
            let specs = tensor_specs(&config, ExpertStorage::Mxfp4);
            Layout::Original.stored(specs.iter().find(|spec| spec.name == name).unwrap(), &config)
        };
        let stored = find("model.layers.0.self_attn.k_proj.weight");
        assert_eq!(stored, Stored { name: "block.0.attn.qkv.weight".into(), shape: vec![5120, 2880], rows: 4096..4608 });
        let stored = find("model.layers.0.self_attn.v_proj.bias");
        assert_eq!(stored, Stored { name: "block.0.attn.qkv.bias".into(), shape: vec![5120], rows: 4608..5120 });
        assert_eq!(find("model.layers.0.self_attn.o_proj.weight").name, "block.0.attn.out.weight");
        assert_eq!(find("lm_head.weight").name, "unembedding.weight");
    }

    #[test]
    fn every_tensor_has_a_place_of_its_own_in_the_original_layout() {
        let config = Config { num_hidden_layers: 2, ..Config::gpt_oss_20b() };
        let mut places: Vec<(String, usize)> = tensor_specs(&config, ExpertStorage::Mxfp4)
            .iter()
            .map(|spec| Layout::Original.stored(spec, &config))
            .map(|stored| (stored.name, stored.rows.start))
            .collect();
        let count = places.len();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), count);
        assert!(places.iter().all(|(name, _)| !name.contains("proj") && !name.contains("layernorm")), "{places:?}");
    }
}
