//! From a checkpoint on disk to a model on a device, one tensor at a time; and the model's parameters by their names.

use std::sync::Arc;

use ft_formats::checkpoint::{Checkpoint, CheckpointTensor, Config, ExpertMatrix, ExpertStorage, LayerType, Projection};
use ft_formats::dtype::Dtype;
use tch::{Device, Kind, Tensor};

use super::attention::Attention;
use super::block::Block;
use super::experts::{ExpertProjection, MixtureOfExperts};
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::router::Router;
use super::transformer::Transformer;
use crate::error::{Error, Result};
use crate::recipe::TrainingDtype;
use crate::torch::functions::SwigluLimits;
use crate::torch::ops::{Named, empty};

/// How a model is held.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// Type of the weights: f32 where they are trained, else that of the activations.
    pub weights: Kind,
    /// Type of the activations.
    pub activations: Kind,
    /// Where.
    pub device: Device,
}

impl Placement {
    /// Weights and activations of one type.
    #[must_use]
    pub fn uniform(kind: Kind, device: Device) -> Self {
        Self { weights: kind, activations: kind, device }
    }
}

impl From<TrainingDtype> for Kind {
    fn from(dtype: TrainingDtype) -> Self {
        match dtype {
            TrainingDtype::Bf16 => Self::BFloat16,
            TrainingDtype::F32 => Self::Float,
        }
    }
}

/// Reads the model, calling `progress` with the bytes of each tensor read.
///
/// # Errors
/// Those of the checkpoint's reader, [`Error::NotFiniteWeight`], or [`Error::Torch`] out of memory.
pub fn load(checkpoint: &Checkpoint, placement: Placement, progress: &mut dyn FnMut(u64)) -> Result<Transformer> {
    let mut model = load_frame(checkpoint, placement, progress)?;
    let layers = 0..checkpoint.config().num_hidden_layers;
    model.blocks = layers.map(|layer| load_layer(checkpoint, placement, layer, progress)).collect::<Result<_>>()?;
    Ok(model)
}

/// Reads all of the model but its layers, for those who read them one by one.
///
/// # Errors
/// As [`load`].
pub fn load_frame(checkpoint: &Checkpoint, placement: Placement, progress: &mut dyn FnMut(u64)) -> Result<Transformer> {
    let config = checkpoint.config();
    let mut reader = Reader { checkpoint, placement, progress };
    Ok(Transformer {
        embedding: reader.tensor("model.embed_tokens.weight")?,
        blocks: Vec::new(),
        norm: RmsNorm { weight: reader.tensor("model.norm.weight")?, epsilon: config.rms_norm_eps },
        head: Linear { weight: reader.tensor("lm_head.weight")?, bias: None, update: None },
        rope: Rope::new(config, placement.device)?,
        kind: placement.activations,
        device: placement.device,
        num_positions: config.max_position_embeddings,
    })
}

/// Reads layer number `layer`.
///
/// # Errors
/// As [`load`].
pub fn load_layer(checkpoint: &Checkpoint, placement: Placement, layer: usize, progress: &mut dyn FnMut(u64)) -> Result<Arc<Block>> {
    Reader { checkpoint, placement, progress }.block(layer).map(Arc::new)
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    placement: Placement,
    progress: &'a mut dyn FnMut(u64),
}

impl Reader<'_> {
    fn config(&self) -> &Config {
        self.checkpoint.config()
    }

    fn block(&mut self, layer: usize) -> Result<Block> {
        let config = self.config();
        let (epsilon, head_width) = (config.rms_norm_eps, dimension(config.head_dim));
        let (num_active, limits) =
            (dimension(config.num_experts_per_token), SwigluLimits { alpha: config.swiglu_alpha, limit: config.swiglu_limit });
        let window = match config.layer_types[layer] {
            LayerType::SlidingAttention => Some(dimension(config.sliding_window)),
            LayerType::FullAttention => None,
        };
        let prefix = format!("model.layers.{layer}");
        Ok(Block {
            attention_norm: RmsNorm { weight: self.tensor(&format!("{prefix}.input_layernorm.weight"))?, epsilon },
            attention: Attention {
                query: self.linear(&format!("{prefix}.self_attn.q_proj"))?,
                key: self.linear(&format!("{prefix}.self_attn.k_proj"))?,
                value: self.linear(&format!("{prefix}.self_attn.v_proj"))?,
                output: self.linear(&format!("{prefix}.self_attn.o_proj"))?,
                sinks_h: self.tensor(&format!("{prefix}.self_attn.sinks"))?,
                head_width,
                window,
            },
            experts_norm: RmsNorm { weight: self.tensor(&format!("{prefix}.post_attention_layernorm.weight"))?, epsilon },
            experts: MixtureOfExperts {
                router: Router { projection: self.linear(&format!("{prefix}.mlp.router"))?, num_active },
                gate_up: self.experts(layer, Projection::GateUp, &format!("{prefix}.mlp.experts.gate_up_proj"))?,
                down: self.experts(layer, Projection::Down, &format!("{prefix}.mlp.experts.down_proj"))?,
                limits,
            },
        })
    }

    fn linear(&mut self, name: &str) -> Result<Linear> {
        let bias = Some(self.tensor(&format!("{name}.bias"))?);
        Ok(Linear { weight: self.tensor(&format!("{name}.weight"))?, bias, update: None })
    }

    fn tensor(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.checkpoint.tensor(name)?;
        self.place(&tensor)
    }

    fn experts(&mut self, layer: usize, projection: Projection, name: &str) -> Result<ExpertProjection> {
        // What is mapped is read at once, all else an expert at a time.
        let is_mapped = matches!(self.checkpoint.expert_storage(), ExpertStorage::Float(_)) && self.checkpoint.gguf().is_none();
        let weight_eio = if is_mapped { self.tensor(name)? } else { self.expert_by_expert(layer, projection, name)? };
        Ok(ExpertProjection { weight_eio, bias_eo: self.tensor(&format!("{name}_bias"))?, update: None })
    }

    /// The experts in the layout of a bf16 checkpoint, one at a time.
    fn expert_by_expert(&mut self, layer: usize, projection: Projection, name: &str) -> Result<Tensor> {
        let config = self.config();
        let [input, output] = projection.dims(config);
        let shape = [config.num_local_experts, input, output].map(dimension);
        let weight_eio = empty(&shape, self.placement.weights, self.placement.device)?;
        for expert in 0..config.num_local_experts {
            let (tensor, bytes) = match self.checkpoint.expert(layer, projection, expert)? {
                ExpertMatrix::Float { dtype, values } => (Tensor::f_from_data_size(&values, &shape[1..], kind(dtype)), values.len()),
                ExpertMatrix::Mxfp4 { blocks, scales } => {
                    let values = self.checkpoint.unpack_expert(layer, projection, expert)?;
                    (Tensor::f_from_data_size(bytemuck::cast_slice(&values), &shape[1..], Kind::BFloat16), blocks.len() + scales.len())
                }
            };
            tensor.and_then(|tensor| weight_eio.f_select(0, dimension(expert))?.f_copy_(&tensor)).named("load", &[&weight_eio])?;
            (self.progress)(bytes as u64);
        }
        self.check_finite(&weight_eio, name)?;
        Ok(weight_eio)
    }

    fn place(&mut self, stored: &CheckpointTensor<'_>) -> Result<Tensor> {
        let shape: Vec<i64> = stored.shape.iter().map(|&dim| dimension(dim)).collect();
        let tensor = Tensor::f_from_data_size(&stored.bytes, &shape, kind(stored.dtype))
            .and_then(|tensor| tensor.f_to_device(self.placement.device))
            .and_then(|tensor| tensor.f_to_kind(self.placement.weights))
            .named("load", &[])?;
        (self.progress)(stored.bytes.len() as u64);
        self.check_finite(&tensor, stored.name)?;
        Ok(tensor)
    }

    fn check_finite(&self, tensor: &Tensor, name: &str) -> Result<()> {
        // max() propagates NaN.
        let largest = tensor.f_abs().and_then(|magnitude| magnitude.f_max()).and_then(|max| max.f_double_value(&[]));
        if tensor.numel() == 0 || largest.named("load", &[tensor])?.is_finite() {
            return Ok(());
        }
        Err(Error::NotFiniteWeight { tensor: name.to_owned(), path: self.checkpoint.path().to_path_buf() })
    }
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        _ => Kind::BFloat16,
    }
}

fn dimension(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

impl Transformer {
    /// Every weight by its name in a bf16 checkpoint, in the order of a forward pass.
    ///
    /// Empty when the graph of a forward pass still holds a layer.
    pub fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut parameters = vec![("model.embed_tokens.weight".to_owned(), &mut self.embedding)];
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let Some(block) = Arc::get_mut(block) else { return Vec::new() };
            let mut name = |part: &str, tensor| parameters.push((format!("model.layers.{layer}.{part}"), tensor));
            name("input_layernorm.weight", &mut block.attention_norm.weight);
            let attention = &mut block.attention;
            for (part, linear) in [
                ("self_attn.q_proj", &mut attention.query),
                ("self_attn.k_proj", &mut attention.key),
                ("self_attn.v_proj", &mut attention.value),
                ("self_attn.o_proj", &mut attention.output),
                ("mlp.router", &mut block.experts.router.projection),
            ] {
                name(&format!("{part}.weight"), &mut linear.weight);
                if let Some(bias) = &mut linear.bias {
                    name(&format!("{part}.bias"), bias);
                }
            }
            name("self_attn.sinks", &mut attention.sinks_h);
            name("post_attention_layernorm.weight", &mut block.experts_norm.weight);
            for (part, experts) in [("gate_up_proj", &mut block.experts.gate_up), ("down_proj", &mut block.experts.down)] {
                name(&format!("mlp.experts.{part}"), &mut experts.weight_eio);
                name(&format!("mlp.experts.{part}_bias"), &mut experts.bias_eo);
            }
        }
        parameters.push(("model.norm.weight".to_owned(), &mut self.norm.weight));
        parameters.push(("lm_head.weight".to_owned(), &mut self.head.weight));
        parameters
    }
}
