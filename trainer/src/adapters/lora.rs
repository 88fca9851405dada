//! Low-rank adapters: where they sit in the model, how they begin, and their way to and from PEFT's files.
//!
//! Letters: e experts, r rank.

use std::path::Path;
use std::sync::Arc;

use ft_formats::checkpoint::{Config, Projection};
use ft_formats::peft::{AdapterConfig, AdapterPair, AdapterTarget, AttentionProjection, PeftAdapter, write_adapter};
use tch::{Device, Tensor};

use super::trainable::Trainable;
use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::model::linear::LowRank;
use crate::random::Stream;
use crate::torch::ops::{Named, to_f32_vec};

/// Which weights get an update, and of what rank.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSpec {
    /// Rank of every update.
    pub rank: usize,
    /// Scaling times rank (times its root with `rslora`).
    pub alpha: f64,
    /// Scale by the root of the rank.
    pub rslora: bool,
    /// The weights, in the order of a forward pass.
    pub targets: Vec<AdapterTarget>,
}

impl LoraSpec {
    /// Factor of every update.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    pub fn scaling(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// The updates of a model under training.
#[derive(Debug)]
pub struct Adapter {
    spec: LoraSpec,
    updates: Vec<Update>,
}

#[derive(Debug)]
struct Update {
    target: AdapterTarget,
    a: Tensor,
    b: Tensor,
    scaling: f64,
}

impl Adapter {
    /// Adds fresh updates to `model`: A uniform within 1 / sqrt(in), B zero, so that training starts at the base model.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`] for a target that the model does not have, or [`Error::Torch`] out of memory.
    ///
    /// Source: the initialisation is PEFT's default, `kaiming_uniform_(a=sqrt(5))` on A.
    pub fn fresh(model: &mut Transformer, spec: LoraSpec, seed: u64) -> Result<Self> {
        let mut updates = Vec::new();
        for target in &spec.targets {
            let [experts, input, output] = dims(model, target)?;
            let mut stream = Stream::new(seed, &format!("lora {}", name(target)), 0);
            let bound = 1.0 / f64::from(u32::try_from(input).unwrap_or(u32::MAX)).sqrt();
            let rank = i64::try_from(spec.rank).unwrap_or(i64::MAX);
            #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
            let values: Vec<f32> = (0..experts * rank * input).map(|_| ((stream.uniform() * 2.0 - 1.0) * bound) as f32).collect();
            let zeros = vec![0f32; usize::try_from(experts * output * rank).unwrap_or(0)];
            let [a_shape, b_shape] = shapes(target, experts, rank, input, output);
            updates.push(Update {
                target: *target,
                a: leaf(&values, &a_shape, model.device)?,
                b: leaf(&zeros, &b_shape, model.device)?,
                scaling: spec.scaling(),
            });
        }
        Self::attach(model, spec, updates)
    }

    /// Adds the updates of a PEFT adapter to `model`, whose config is `config`, to be used or trained further.
    ///
    /// # Errors
    /// Those of the reader, which also says when the adapter was made for another model.
    pub fn from_peft(model: &mut Transformer, config: &Config, path: &Path) -> Result<Self> {
        let adapter = PeftAdapter::open_for(path, config)?;
        let config = adapter.config();
        let mut updates = Vec::new();
        for pair in adapter.pairs() {
            let [a_shape, b_shape] = [&pair.a_shape, &pair.b_shape]
                .map(|shape| shape.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect::<Vec<_>>());
            updates.push(Update {
                target: pair.target,
                a: leaf(&pair.a, &a_shape, model.device)?,
                b: leaf(&pair.b, &b_shape, model.device)?,
                scaling: pair.scaling,
            });
        }
        let spec = LoraSpec {
            rank: config.rank,
            alpha: config.alpha,
            rslora: config.use_rslora,
            targets: updates.iter().map(|update| update.target).collect(),
        };
        Self::attach(model, spec, updates)
    }

    fn attach(model: &mut Transformer, spec: LoraSpec, updates: Vec<Update>) -> Result<Self> {
        for Update { target, a, b, scaling } in &updates {
            let update = LowRank { a: a.shallow_clone(), b: b.shallow_clone(), scaling: *scaling };
            *slot(model, target)? = Some(update);
        }
        Ok(Self { spec, updates })
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &LoraSpec {
        &self.spec
    }

    /// The leaves, in a fixed order.
    #[must_use]
    pub fn trainables(&self) -> Vec<Trainable> {
        let leaf = |name: String, tensor: &Tensor| Trainable { name, tensor: tensor.shallow_clone() };
        self.updates
            .iter()
            .flat_map(|Update { target, a, b, .. }| {
                [leaf(format!("{}.lora_A", name(target)), a), leaf(format!("{}.lora_B", name(target)), b)]
            })
            .collect()
    }

    /// Writes the adapter in PEFT's format, f32.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, path: &Path, base_model: &str) -> Result<()> {
        let pairs = self
            .updates
            .iter()
            .map(|Update { target, a, b, scaling }| {
                Ok(AdapterPair {
                    target: *target,
                    rank: a.size().iter().rev().nth(1).map_or(0, |&rank| usize::try_from(rank).unwrap_or(0)),
                    scaling: *scaling,
                    a: to_f32_vec(a)?,
                    a_shape: shape_of(a),
                    b: to_f32_vec(b)?,
                    b_shape: shape_of(b),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let config = AdapterConfig::for_pairs(base_model, self.spec.rank, self.spec.alpha, self.spec.rslora, &pairs);
        Ok(write_adapter(path, &config, &pairs)?)
    }
}

fn shape_of(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect()
}

fn leaf(values: &[f32], shape: &[i64], device: Device) -> Result<Tensor> {
    Tensor::f_from_slice(values)
        .and_then(|tensor| tensor.f_reshape(shape))
        .and_then(|tensor| tensor.f_to_device(device))
        .and_then(|tensor| tensor.f_set_requires_grad(true))
        .named("lora", &[])
}

/// Shapes of A and B.
fn shapes(target: &AdapterTarget, experts: i64, rank: i64, input: i64, output: i64) -> [Vec<i64>; 2] {
    match target {
        AdapterTarget::Experts { .. } => [vec![experts, rank, input], vec![experts, output, rank]],
        _ => [vec![rank, input], vec![output, rank]],
    }
}

/// [experts (1 for a plain layer), in, out] of the weight that `target` names.
fn dims(model: &mut Transformer, target: &AdapterTarget) -> Result<[i64; 3]> {
    let plain = |weight: &Tensor| [1, weight.size()[1], weight.size()[0]];
    if let AdapterTarget::LmHead = target {
        return Ok(plain(&model.head.weight));
    }
    let block = block(model, target)?;
    Ok(match target {
        AdapterTarget::Attention { projection, .. } => plain(match projection {
            AttentionProjection::Q => &block.attention.query.weight,
            AttentionProjection::K => &block.attention.key.weight,
            AttentionProjection::V => &block.attention.value.weight,
            AttentionProjection::O => &block.attention.output.weight,
        }),
        AdapterTarget::Experts { projection: Projection::GateUp, .. } => block.experts.gate_up.weight.dims(),
        AdapterTarget::Experts { projection: Projection::Down, .. } => block.experts.down.weight.dims(),
        _ => plain(&block.experts.router.projection.weight),
    })
}

fn block<'a>(model: &'a mut Transformer, target: &AdapterTarget) -> Result<&'a mut crate::model::block::Block> {
    let layer = match *target {
        AdapterTarget::Attention { layer, .. } | AdapterTarget::Experts { layer, .. } | AdapterTarget::Router { layer } => layer,
        AdapterTarget::LmHead => 0,
    };
    let num_layers = model.blocks.len();
    model.blocks.get_mut(layer).and_then(Arc::get_mut).ok_or(Error::NoSuchLayer { layer, num_layers })
}

fn slot<'a>(model: &'a mut Transformer, target: &AdapterTarget) -> Result<&'a mut Option<LowRank>> {
    if let AdapterTarget::LmHead = target {
        return Ok(&mut model.head.update);
    }
    let block = block(model, target)?;
    Ok(match target {
        AdapterTarget::Attention { projection, .. } => match projection {
            AttentionProjection::Q => &mut block.attention.query.update,
            AttentionProjection::K => &mut block.attention.key.update,
            AttentionProjection::V => &mut block.attention.value.update,
            AttentionProjection::O => &mut block.attention.output.update,
        },
        AdapterTarget::Experts { projection: Projection::GateUp, .. } => &mut block.experts.gate_up.update,
        AdapterTarget::Experts { projection: Projection::Down, .. } => &mut block.experts.down.update,
        _ => &mut block.experts.router.projection.update,
    })
}

/// Name of the adapted weight, as in a bf16 checkpoint.
fn name(target: &AdapterTarget) -> String {
    match target {
        AdapterTarget::Attention { layer, projection } => {
            let letter = match projection {
                AttentionProjection::Q => 'q',
                AttentionProjection::K => 'k',
                AttentionProjection::V => 'v',
                AttentionProjection::O => 'o',
            };
            format!("model.layers.{layer}.self_attn.{letter}_proj")
        }
        AdapterTarget::Experts { layer, projection: Projection::GateUp } => format!("model.layers.{layer}.mlp.experts.gate_up_proj"),
        AdapterTarget::Experts { layer, projection: Projection::Down } => format!("model.layers.{layer}.mlp.experts.down_proj"),
        AdapterTarget::Router { layer } => format!("model.layers.{layer}.mlp.router"),
        AdapterTarget::LmHead => "lm_head".to_owned(),
    }
}
