//! The tensors of a model: names, types and shapes, in the order of a forward pass.

use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};

use super::Config;
use crate::dtype::Dtype;
use crate::safetensors::TensorSpec;

/// How the experts' weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExpertStorage {
    /// `_blocks` and `_scales`; all other weights in bf16.
    Mxfp4,
    /// Plain floats, as all other weights.
    Float(Dtype),
}

impl ExpertStorage {
    /// Type of the weights that are not MXFP4.
    #[must_use]
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Mxfp4 => Dtype::Bf16,
            Self::Float(dtype) => dtype,
        }
    }
}

/// One of an expert's two matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// From the residual stream to gate and up, interleaved.
    GateUp,
    /// Back to the residual stream.
    Down,
}

impl Projection {
    /// Both, in the order of a forward pass.
    pub const ALL: [Self; 2] = [Self::GateUp, Self::Down];

    /// The name in a checkpoint.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GateUp => "gate_up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Inputs and outputs of the matrix.
    #[must_use]
    pub fn dims(self, config: &Config) -> [usize; 2] {
        match self {
            Self::GateUp => [config.hidden_size, 2 * config.intermediate_size],
            Self::Down => [config.intermediate_size, config.hidden_size],
        }
    }

    /// The name of the experts' weights in a layer: of the tensor itself, or of `_blocks` and `_scales` without the ending.
    #[must_use]
    pub fn tensor_name(self, layer: usize) -> String {
        format!("model.layers.{layer}.mlp.experts.{}", self.name())
    }
}

/// Every tensor of a checkpoint of `config`, in the order of a forward pass.
///
/// # Shapes
/// Plain experts are [e, in, out]; blocks are [e, out, s, 16] and scales [e, out, s] with s = in / 32, rounded up.
///
/// Source: openai/gpt-oss-20b `model.safetensors.index.json`; transformers `modeling_gpt_oss.py`.
#[must_use]
pub fn tensor_specs(config: &Config, storage: ExpertStorage) -> Vec<TensorSpec> {
    let dtype = storage.dtype();
    let mut specs = Vec::new();
    let mut add = |name: String, dtype: Dtype, shape: &[usize]| specs.push(TensorSpec { name, dtype, shape: shape.to_vec() });
    let (d, v, e) = (config.hidden_size, config.vocab_size, config.num_local_experts);
    let (queries, keys) = (config.query_size(), config.key_value_size());
    add("model.embed_tokens.weight".to_owned(), dtype, &[v, d]);
    for layer in 0..config.num_hidden_layers {
        let prefix = format!("model.layers.{layer}");
        add(format!("{prefix}.input_layernorm.weight"), dtype, &[d]);
        for (part, rows, columns) in [("q_proj", queries, d), ("k_proj", keys, d), ("v_proj", keys, d), ("o_proj", d, queries)] {
            add(format!("{prefix}.self_attn.{part}.weight"), dtype, &[rows, columns]);
            add(format!("{prefix}.self_attn.{part}.bias"), dtype, &[rows]);
        }
        add(format!("{prefix}.self_attn.sinks"), dtype, &[config.num_attention_heads]);
        add(format!("{prefix}.post_attention_layernorm.weight"), dtype, &[d]);
        add(format!("{prefix}.mlp.router.weight"), dtype, &[e, d]);
        add(format!("{prefix}.mlp.router.bias"), dtype, &[e]);
        for projection in Projection::ALL {
            let name = projection.tensor_name(layer);
            let [input, output] = projection.dims(config);
            match storage {
                ExpertStorage::Float(_) => add(name.clone(), dtype, &[e, input, output]),
                ExpertStorage::Mxfp4 => {
                    let s = input.div_ceil(BLOCK_ELEMENTS);
                    add(format!("{name}_blocks"), Dtype::U8, &[e, output, s, BLOCK_BYTES]);
                    add(format!("{name}_scales"), Dtype::U8, &[e, output, s]);
                }
            }
            add(format!("{name}_bias"), dtype, &[e, output]);
        }
    }
    add("model.norm.weight".to_owned(), dtype, &[d]);
    add("lm_head.weight".to_owned(), dtype, &[v, d]);
    specs
}

/// Elements of a model, for any config whose sizes are at most 2^31.
pub(super) fn parameters(config: &Config) -> u128 {
    let wide = |size: usize| size as u128;
    let (d, f, v, e) = (wide(config.hidden_size), wide(config.intermediate_size), wide(config.vocab_size), wide(config.num_local_experts));
    let (queries, keys) = (wide(config.query_size()), wide(config.key_value_size()));
    let attention = (queries + 2 * keys) * (d + 1) + d * (queries + 1) + wide(config.num_attention_heads);
    let experts = e * (2 * f * (d + 1) + d * (f + 1));
    let layer = 2 * d + attention + e * (d + 1) + experts;
    2 * v * d + d + wide(config.num_hidden_layers) * layer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(config: &Config, storage: ExpertStorage) -> u64 {
        tensor_specs(config, storage).iter().map(|spec| spec.byte_length().unwrap()).sum()
    }

    /// Sums of the published index files, `metadata.total_size`.
    #[test]
    fn sizes_are_those_of_the_published_models() {
        let (small, large) = (Config::gpt_oss_20b(), Config::gpt_oss_120b());
        assert_eq!(bytes(&small, ExpertStorage::Mxfp4), 13_761_264_768);
        assert_eq!(bytes(&large, ExpertStorage::Mxfp4), 65_248_815_744);
        assert_eq!(bytes(&small, ExpertStorage::Float(Dtype::Bf16)), 41_829_514_368);
        assert_eq!(bytes(&large, ExpertStorage::Float(Dtype::Bf16)), 233_658_313_344);
        assert_eq!(tensor_specs(&small, ExpertStorage::Mxfp4).len(), 459);
        assert_eq!(tensor_specs(&large, ExpertStorage::Float(Dtype::Bf16)).len(), 615);
        assert_eq!([parameters(&small), parameters(&large)], [20_914_757_184, 116_829_156_672]);
    }

    #[test]
    fn the_sum_of_the_shapes_is_the_number_of_parameters() {
        let config = Config { hidden_size: 96, intermediate_size: 80, num_local_experts: 5, head_dim: 24, ..Config::nano() };
        let elements: usize =
            tensor_specs(&config, ExpertStorage::Float(Dtype::F32)).iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
        assert_eq!(elements as u128, parameters(&config));
    }
}
