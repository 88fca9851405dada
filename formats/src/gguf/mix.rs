//! Which type every tensor of a gpt-oss model gets when people ask for `Q4_K_M` and the like.
//!
//! The names are those of llama-quantize, and so are the rules: for the architecture `gpt-oss`, without an importance matrix and
//! without types of one's own for single tensors. Rows that are no whole blocks get a type of smaller blocks, which for gpt-oss
//! (rows of 2880) are most of them.
//!
//! Source: llama.cpp b11739 `src/llama-quant.cpp`.

use super::{FileType, TensorType};

/// What people ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mix {
    /// Every tensor in single precision.
    F32,
    /// Weights in half precision.
    F16,
    /// Weights in bfloat16.
    Bf16,
    /// Eight bits and a scale.
    Q8_0,
    /// Experts in MXFP4, the other weights in eight bits: how gpt-oss is published.
    Mxfp4,
    /// Four bits and a scale.
    Q4_0,
    /// Five bits and a scale.
    Q5_0,
    /// Five bits, a scale and a minimum.
    Q5_1,
    /// Four bits with scales of parts, five for some of the first layers.
    Q4KS,
    /// Four bits with scales of parts, six for what matters most.
    Q4KM,
    /// Five bits with scales of parts.
    Q5KS,
    /// Five bits with scales of parts, six for what matters most.
    Q5KM,
    /// Six bits with scales of parts.
    Q6K,
}

/// What of a model decides over its types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MixModel {
    /// Layers.
    pub num_layers: usize,
    /// Experts of a layer.
    pub num_experts: usize,
    /// False where the embedding is the output too: it is then stored as the output would be.
    pub has_output: bool,
}

/// What a weight is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Output,
    Embedding,
    Value(usize),
    Key,
    AttentionOutput,
    Down(usize),
    Other,
}

impl Mix {
    /// Every one, from the most bits to the least within a kind.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q6K,
        Self::Q5KM,
        Self::Q5KS,
        Self::Q4KM,
        Self::Q4KS,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_0,
        Self::Mxfp4,
    ];

    /// The mix of a name, whatever the case of its letters. `MXFP4_MOE`, `Q4_K` and `Q5_K` are second names of `MXFP4`, `Q4_K_M` and
    /// `Q5_K_M`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let others = [("MXFP4_MOE", Self::Mxfp4), ("Q4_K", Self::Q4KM), ("Q5_K", Self::Q5KM)];
        let names = Self::ALL.map(|mix| (mix.name(), mix)).into_iter().chain(others);
        names.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, mix)| mix)
    }

    /// The name that people ask with.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mxfp4 => "MXFP4",
            other => other.file_type().name(),
        }
    }

    /// What a file says of itself.
    #[must_use]
    pub fn file_type(self) -> FileType {
        match self {
            Self::F32 => FileType::F32,
            Self::F16 => FileType::F16,
            Self::Bf16 => FileType::BF16,
            Self::Q8_0 => FileType::Q8_0,
            Self::Mxfp4 => FileType::MXFP4_MOE,
            Self::Q4_0 => FileType::Q4_0,
            Self::Q5_0 => FileType::Q5_0,
            Self::Q5_1 => FileType::Q5_1,
            Self::Q4KS => FileType::Q4_K_S,
            Self::Q4KM => FileType::Q4_K_M,
            Self::Q5KS => FileType::Q5_K_S,
            Self::Q5KM => FileType::Q5_K_M,
            Self::Q6K => FileType::Q6_K,
        }
    }

    /// The type of a tensor.
    ///
    /// What is never quantized is f32: norms, biases, sinks, the router.
    ///
    /// # Shapes
    /// `shape` has the last dimension contiguous, as in [`GgufTensor`](super::GgufTensor); `name` is that of GGUF.
    #[must_use]
    pub fn tensor_type(self, model: &MixModel, name: &str, shape: &[usize]) -> TensorType {
        let base = self.base();
        match *shape {
            [.., columns] if is_weight(name, shape) => {
                if base.block_elements() == 1 {
                    return base;
                }
                let wanted = self.wanted(model, role(name, model), columns, is_stack(shape));
                wanted.fitting(columns)
            }
            _ => TensorType::F32,
        }
    }

    /// The type of most weights. Source: llama.cpp `src/llama-quant.cpp`, `llama_ftype_get_default_type`.
    fn base(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::Bf16 => TensorType::Bf16,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Mxfp4 => TensorType::Mxfp4,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q5_0 => TensorType::Q5_0,
            Self::Q5_1 => TensorType::Q5_1,
            Self::Q4KS | Self::Q4KM => TensorType::Q4K,
            Self::Q5KS | Self::Q5KM => TensorType::Q5K,
            Self::Q6K => TensorType::Q6K,
        }
    }

    /// The type of a weight, if its rows are whole blocks of that.
    ///
    /// Source: llama.cpp `src/llama-quant.cpp`, `llama_tensor_get_type_impl`.
    fn wanted(self, model: &MixModel, role: Role, columns: usize, is_stack: bool) -> TensorType {
        let base = self.base();
        // In models of eight experts attention is small beside them, and more bits for it cost little.
        let has_eight = model.num_experts == 8;
        match (self, role) {
            (_, Role::Output) => match base {
                TensorType::Mxfp4 => TensorType::Q8_0,
                _ if base == TensorType::Q8_0 || !is_whole(base, columns) => TensorType::Q8_0,
                _ => TensorType::Q6K,
            },
            (Self::Mxfp4, _) => {
                if is_stack {
                    TensorType::Mxfp4
                } else {
                    TensorType::Q8_0
                }
            }
            (_, Role::Value(_) | Role::Key) if has_eight => TensorType::Q8_0,
            (Self::Q4KM | Self::Q5KM, Role::Value(layer) | Role::Down(layer)) if has_more_bits(layer, model.num_layers) => TensorType::Q6K,
            (Self::Q4KS, Role::Value(0..4)) => TensorType::Q5K,
            (Self::Q4KS, Role::Down(layer)) if layer < model.num_layers / 8 => TensorType::Q5K,
            (Self::Q4KS | Self::Q4KM, Role::AttentionOutput) if has_eight => TensorType::Q5K,
            _ => base,
        }
    }
}

/// True for what is quantized. Dimensions of 1 that stand first count for nothing.
///
/// Source: llama.cpp `src/llama-quant.cpp`, `tensor_allows_quantization`; ggml `ggml.c`, `ggml_n_dims`.
fn is_weight(name: &str, shape: &[usize]) -> bool {
    let has_rows = shape.iter().rev().skip(1).any(|&size| size > 1);
    has_rows && name.ends_with(".weight") && !name.ends_with("_norm.weight") && !name.ends_with("ffn_gate_inp.weight")
}

/// True for the weights of several experts.
fn is_stack(shape: &[usize]) -> bool {
    matches!(*shape, [.., experts, _, _] if experts > 1)
}

/// Source: llama.cpp `src/llama-quant.cpp`, `tensor_get_category`.
fn role(name: &str, model: &MixModel) -> Role {
    let in_layer = || {
        let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
        Some((layer.parse().ok()?, part))
    };
    match name {
        "output.weight" => Role::Output,
        "token_embd.weight" if model.has_output => Role::Embedding,
        "token_embd.weight" => Role::Output,
        _ => match in_layer() {
            Some((layer, "attn_v.weight")) => Role::Value(layer),
            Some((_, "attn_k.weight")) => Role::Key,
            Some((_, "attn_output.weight")) => Role::AttentionOutput,
            Some((layer, "ffn_down_exps.weight")) => Role::Down(layer),
            _ => Role::Other,
        },
    }
}

/// True for the first and the last eighth of the layers and every third between. Source: llama.cpp `src/llama-quant.cpp`,
/// `use_more_bits`.
fn has_more_bits(layer: usize, num_layers: usize) -> bool {
    let eighth = num_layers / 8;
    layer < eighth || layer >= 7 * num_layers / 8 || (layer - eighth) % 3 == 2
}

fn is_whole(tensor_type: TensorType, columns: usize) -> bool {
    u64::try_from(columns).is_ok_and(|columns| columns.is_multiple_of(tensor_type.block_elements()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Config;
    use crate::gguf::gguf_tensors;
    use std::collections::BTreeMap;

    const MODEL: MixModel = MixModel { num_layers: 24, num_experts: 32, has_output: true };

    #[test]
    fn names_are_read_back_whatever_their_case() {
        for mix in Mix::ALL {
            assert_eq!(Mix::from_name(mix.name()), Some(mix));
            assert_eq!(Mix::from_name(&mix.name().to_lowercase()), Some(mix));
        }
        assert_eq!(Mix::from_name("mxfp4_moe"), Some(Mix::Mxfp4));
        assert_eq!(Mix::from_name("q4_k"), Some(Mix::Q4KM));
        assert_eq!(Mix::from_name("Q4_K_L"), None);
    }

    #[test]
    fn what_is_not_multiplied_with_stays_f32() {
        for tensor in gguf_tensors(&Config::gpt_oss_20b()).iter().filter(|tensor| tensor.is_always_f32()) {
            for mix in Mix::ALL {
                assert_eq!(mix.tensor_type(&MODEL, &tensor.name, &tensor.shape), TensorType::F32, "{} of {mix:?}", tensor.name);
            }
        }
    }

    #[test]
    fn every_type_has_room_for_its_rows() {
        for columns in [1, 31, 32, 96, 256, 288, 2880, 4096] {
            for mix in Mix::ALL {
                for name in ["output.weight", "token_embd.weight", "blk.0.attn_v.weight", "blk.9.ffn_down_exps.weight"] {
                    let shape = [3, 2, columns];
                    let found = mix.tensor_type(&MODEL, name, &shape);
                    assert!(found.byte_length(&shape).is_some(), "{found} for {columns} columns of {name} in {mix:?}");
                }
            }
        }
    }

    /// How many weights of gpt-oss-20b have which type.
    fn weights_of_20b(mix: Mix) -> BTreeMap<TensorType, usize> {
        let mut count = BTreeMap::new();
        for tensor in gguf_tensors(&Config::gpt_oss_20b()).iter().filter(|tensor| !tensor.is_always_f32()) {
            *count.entry(mix.tensor_type(&MODEL, &tensor.name, &tensor.shape)).or_default() += 1;
        }
        count
    }

    #[test]
    fn rows_of_2880_are_no_whole_blocks_of_256() {
        // Query, key, gate, up and embedding; half of value and down, of which half the layers have more bits; the output.
        let expected = [(TensorType::Q5_0, 4 * 24 + 1 + 2 * 12), (TensorType::Q8_0, 2 * 12 + 1), (TensorType::Q4K, 24)];
        assert_eq!(weights_of_20b(Mix::Q4KM), BTreeMap::from(expected));
        assert_eq!(weights_of_20b(Mix::Mxfp4), BTreeMap::from([(TensorType::Mxfp4, 3 * 24), (TensorType::Q8_0, 4 * 24 + 2)]));
        assert_eq!(weights_of_20b(Mix::Bf16), BTreeMap::from([(TensorType::Bf16, 7 * 24 + 2)]));
    }
}
