//! From a checkpoint on disk to a model on a device, one tensor at a time; and the model's parameters by their names.

use std::sync::Arc;

use ft_formats::checkpoint::{Checkpoint, CheckpointTensor, Config, ExpertMatrix, ExpertStorage, LayerType, Projection};
use ft_formats::dtype::Dtype;
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};
use tch::{Device, Kind, Tensor};

use super::attention::Attention;
use super::block::Block;
use super::experts::{ExpertProjection, ExpertWeight, MixtureOfExperts};
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::router::Router;
use super::transformer::Transformer;
use crate::error::{Error, Result};
use crate::recipe::{Experts, TrainingDtype};
use crate::torch::functions::{PackedWeight, SwigluLimits, Workspace};
use crate::torch::ops::{Named, empty};

/// How a model is held.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// Type of the weights: f32 where they are trained, else that of the activations.
    pub weights: Kind,
    /// Type of the activations.
    pub activations: Kind,
    /// How experts that are stored as MXFP4 are held; others are numbers always.
    pub experts: Experts,
    /// Where.
    pub device: Device,
    /// Where the embedding is: a frozen one only gives rows to the device.
    pub embedding: Device,
}

impl Placement {
    /// Frozen weights, of the type of the activations; packed experts stay packed, and the embedding stays in host memory.
    #[must_use]
    pub fn frozen(kind: Kind, device: Device) -> Self {
        Self { weights: kind, activations: kind, experts: Experts::Mxfp4, device, embedding: Device::Cpu }
    }

    /// Weights to be trained, in f32, under activations of `kind`.
    #[must_use]
    pub fn trained(kind: Kind, device: Device) -> Self {
        Self { weights: Kind::Float, activations: kind, experts: Experts::Bf16, device, embedding: device }
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
    let mut reader = Reader::new(checkpoint, placement, progress);
    model.blocks = (0..checkpoint.config().num_hidden_layers).map(|layer| reader.block(layer).map(Arc::new)).collect::<Result<_>>()?;
    Ok(model)
}

/// Reads all of the model but its layers, for those who read them one by one.
///
/// # Errors
/// As [`load`].
pub fn load_frame(checkpoint: &Checkpoint, placement: Placement, progress: &mut dyn FnMut(u64)) -> Result<Transformer> {
    let config = checkpoint.config();
    let mut reader = Reader::new(checkpoint, placement, progress);
    Ok(Transformer {
        embedding: reader.tensor_on(placement.embedding, "model.embed_tokens.weight")?,
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
    Reader::new(checkpoint, placement, progress).block(layer).map(Arc::new)
}

/// Up to this scale every code stands for a number in bf16.
const LARGEST_SCALE: u8 = 252;

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    placement: Placement,
    progress: &'a mut dyn FnMut(u64),
    workspace: Workspace,
}

impl<'a> Reader<'a> {
    fn new(checkpoint: &'a Checkpoint, placement: Placement, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self { checkpoint, placement, progress, workspace: Workspace::default() }
    }

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
        self.tensor_on(self.placement.device, name)
    }

    fn tensor_on(&mut self, device: Device, name: &str) -> Result<Tensor> {
        let tensor = self.checkpoint.tensor(name)?;
        self.place(&tensor, device)
    }

    fn experts(&mut self, layer: usize, projection: Projection, name: &str) -> Result<ExpertProjection> {
        let weight = match (self.checkpoint.expert_storage(), self.placement.experts) {
            (ExpertStorage::Mxfp4, Experts::Mxfp4) => ExpertWeight::Packed(self.packed(layer, projection)?),
            // What is mapped is read at once, all else an expert at a time.
            (ExpertStorage::Float(_), _) if self.checkpoint.gguf().is_none() => ExpertWeight::Numbers(self.tensor(name)?),
            _ => ExpertWeight::Numbers(self.expert_by_expert(layer, projection, name)?),
        };
        Ok(ExpertProjection { weight, bias_eo: self.tensor(&format!("{name}_bias"))?, update: None })
    }

    /// The experts as they are stored.
    fn packed(&mut self, layer: usize, projection: Projection) -> Result<PackedWeight> {
        let config = self.config();
        let ([input, output], experts) = (projection.dims(config), config.num_local_experts);
        let of_expert = [output, input / BLOCK_ELEMENTS, BLOCK_BYTES].map(dimension);
        let on_device = |shape: &[i64]| empty(&[&[dimension(experts)], shape].concat(), Kind::Uint8, self.placement.device);
        let (blocks_eosb, scales_eos) = (on_device(&of_expert)?, on_device(&of_expert[..2])?);
        for expert in 0..experts {
            let ExpertMatrix::Mxfp4 { blocks, scales } = self.checkpoint.expert(layer, projection, expert)? else { continue };
            if scales.iter().any(|&scale| scale > LARGEST_SCALE) {
                // Not every code has a number under such a scale: whoever unpacks it knows, and names it.
                self.checkpoint.unpack_expert(layer, projection, expert)?;
            }
            let copy = |bytes: &[u8], shape: &[i64], to: &Tensor| {
                Tensor::f_from_data_size(bytes, shape, Kind::Uint8).and_then(|tensor| to.f_select(0, dimension(expert))?.f_copy_(&tensor))
            };
            copy(&blocks, &of_expert, &blocks_eosb).named("load", &[&blocks_eosb])?;
            copy(&scales, &of_expert[..2], &scales_eos).named("load", &[&scales_eos])?;
            (self.progress)((blocks.len() + scales.len()) as u64);
        }
        Ok(PackedWeight::new(blocks_eosb, scales_eos, self.workspace.clone()))
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

    fn place(&mut self, stored: &CheckpointTensor<'_>, device: Device) -> Result<Tensor> {
        let shape: Vec<i64> = stored.shape.iter().map(|&dim| dimension(dim)).collect();
        let tensor = Tensor::f_from_data_size(&stored.bytes, &shape, kind(stored.dtype))
            .and_then(|tensor| tensor.f_to_device(device))
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
    /// Every weight that is held as numbers, by its name in a bf16 checkpoint, in the order of a forward pass.
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
                if let ExpertWeight::Numbers(weight_eio) = &mut experts.weight {
                    name(&format!("mlp.experts.{part}"), weight_eio);
                }
                name(&format!("mlp.experts.{part}_bias"), &mut experts.bias_eo);
            }
        }
        parameters.push(("model.norm.weight".to_owned(), &mut self.norm.weight));
        parameters.push(("lm_head.weight".to_owned(), &mut self.head.weight));
        parameters
    }
}
