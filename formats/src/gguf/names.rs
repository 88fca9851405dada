//! The tensors of a gpt-oss model in GGUF, and what of a checkpoint each of them holds.
//!
//! Letters: d model width, e experts, f expert width, v vocabulary.
//!
//! Source: gguf 0.19.0 `tensor_mapping.py` and `constants.py` (`MODEL_ARCH.GPT_OSS`); llama.cpp `conversion/gpt_oss.py`.

use crate::checkpoint::{Config, ExpertStorage, Projection, tensor_specs};
use crate::dtype::Dtype;

/// Which outputs of an expert's projection a tensor holds: GGUF keeps gate and up apart, a checkpoint interleaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExpertRows {
    /// All, of the projection down.
    All,
    /// Outputs 0, 2, 4, ...: the gate.
    Gate,
    /// Outputs 1, 3, 5, ...
    Up,
}

/// What a tensor holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Held {
    /// The tensor of this Hugging Face name, as it is.
    Whole(String),
    /// The experts' weights, each [out, in].
    Experts {
        /// Index of the layer.
        layer: usize,
        /// Which of an expert's matrices.
        projection: Projection,
        /// Which of its outputs.
        rows: ExpertRows,
    },
    /// The experts' biases, [e, out].
    ExpertBiases {
        /// Index of the layer.
        layer: usize,
        /// Which of an expert's matrices they belong to.
        projection: Projection,
        /// Which of its outputs.
        rows: ExpertRows,
    },
}

/// A tensor of a gpt-oss model in GGUF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name in GGUF.
    pub name: String,
    /// Its dimensions, the last one contiguous; a file lists them the other way round.
    pub shape: Vec<usize>,
    /// What it holds.
    pub held: Held,
}

impl GgufTensor {
    /// True for what is always f32: all but the weights that are multiplied with.
    ///
    /// The router's weights are among them. Source: llama.cpp `conversion/base.py`, `prepare_tensors`.
    #[must_use]
    pub fn is_always_f32(&self) -> bool {
        self.shape.len() < 2 || !self.name.ends_with(".weight") || self.name.ends_with(".ffn_gate_inp.weight")
    }
}

/// Every tensor of a model of `config`, in the order of a forward pass.
#[must_use]
pub fn gguf_tensors(config: &Config) -> Vec<GgufTensor> {
    let mut tensors = Vec::new();
    for spec in tensor_specs(config, ExpertStorage::Float(Dtype::F32)) {
        let Some((layer, part)) = layer_and_part(&spec.name) else {
            let name = match spec.name.as_str() {
                "model.embed_tokens.weight" => "token_embd.weight",
                "model.norm.weight" => "output_norm.weight",
                _ => "output.weight",
            };
            tensors.push(GgufTensor { name: name.to_owned(), shape: spec.shape, held: Held::Whole(spec.name) });
            continue;
        };
        match part.strip_prefix("mlp.experts.") {
            Some(part) => tensors.extend(experts(config, layer, part)),
            None => {
                let name = format!("blk.{layer}.{}", plain_name(part));
                tensors.push(GgufTensor { name, shape: spec.shape, held: Held::Whole(spec.name) });
            }
        }
    }
    tensors
}

fn layer_and_part(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// The name within a block of what is no expert's.
fn plain_name(part: &str) -> String {
    let (module, kind) = part.rsplit_once('.').unwrap_or((part, "weight"));
    let (module, kind) = if kind == "sinks" { (part, "weight") } else { (module, kind) };
    let name = match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.sinks" => "attn_sinks",
        // The norm before the experts; in other models this name of GGUF is that of one after attention.
        "post_attention_layernorm" => "post_attention_norm",
        "mlp.router" => "ffn_gate_inp",
        other => other,
    };
    format!("{name}.{kind}")
}

fn experts(config: &Config, layer: usize, part: &str) -> Vec<GgufTensor> {
    let (projection, is_bias) = match part {
        "gate_up_proj" => (Projection::GateUp, false),
        "gate_up_proj_bias" => (Projection::GateUp, true),
        "down_proj" => (Projection::Down, false),
        _ => (Projection::Down, true),
    };
    let all: &[(&str, ExpertRows)] = match projection {
        Projection::GateUp => &[("ffn_gate_exps", ExpertRows::Gate), ("ffn_up_exps", ExpertRows::Up)],
        Projection::Down => &[("ffn_down_exps", ExpertRows::All)],
    };
    let [input, output] = projection.dims(config);
    let output = output / all.len();
    let tensor = |&(name, rows): &(&str, ExpertRows)| {
        if is_bias {
            let held = Held::ExpertBiases { layer, projection, rows };
            GgufTensor { name: format!("blk.{layer}.{name}.bias"), shape: vec![config.num_local_experts, output], held }
        } else {
            let held = Held::Experts { layer, projection, rows };
            GgufTensor { name: format!("blk.{layer}.{name}.weight"), shape: vec![config.num_local_experts, output, input], held }
        }
    };
    all.iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_in_the_published_files() {
        assert_eq!(gguf_tensors(&Config::gpt_oss_20b()).len(), 459);
        assert_eq!(gguf_tensors(&Config::gpt_oss_120b()).len(), 687);
    }

    #[test]
    fn a_layer_has_the_names_and_shapes_of_llama_cpp() {
        let config = Config {
            num_hidden_layers: 1,
            hidden_size: 96,
            intermediate_size: 64,
            num_local_experts: 5,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            vocab_size: 300,
            ..Config::nano()
        };
        let found: Vec<(String, Vec<usize>, bool)> =
            gguf_tensors(&config).into_iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone(), tensor.is_always_f32())).collect();
        let expected: [(&str, &[usize], bool); 22] = [
            ("token_embd.weight", &[300, 96], false),
            ("blk.0.attn_norm.weight", &[96], true),
            ("blk.0.attn_q.weight", &[64, 96], false),
            ("blk.0.attn_q.bias", &[64], true),
            ("blk.0.attn_k.weight", &[32, 96], false),
            ("blk.0.attn_k.bias", &[32], true),
            ("blk.0.attn_v.weight", &[32, 96], false),
            ("blk.0.attn_v.bias", &[32], true),
            ("blk.0.attn_output.weight", &[96, 64], false),
            ("blk.0.attn_output.bias", &[96], true),
            ("blk.0.attn_sinks.weight", &[4], true),
            ("blk.0.post_attention_norm.weight", &[96], true),
            ("blk.0.ffn_gate_inp.weight", &[5, 96], true),
            ("blk.0.ffn_gate_inp.bias", &[5], true),
            ("blk.0.ffn_gate_exps.weight", &[5, 64, 96], false),
            ("blk.0.ffn_up_exps.weight", &[5, 64, 96], false),
            ("blk.0.ffn_gate_exps.bias", &[5, 64], true),
            ("blk.0.ffn_up_exps.bias", &[5, 64], true),
            ("blk.0.ffn_down_exps.weight", &[5, 96, 64], false),
            ("blk.0.ffn_down_exps.bias", &[5, 96], true),
            ("output_norm.weight", &[96], true),
            ("output.weight", &[300, 96], false),
        ];
        let expected = expected.map(|(name, shape, is_f32)| (name.to_owned(), shape.to_vec(), is_f32));
        assert_eq!(found, expected);
    }
}
