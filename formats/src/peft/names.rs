//! What can be adapted, and the names of its tensors.

use std::fmt;

use crate::checkpoint::{Config, Projection};

/// What PEFT puts before the names of the model.
const PREFIX: &str = "base_model.model.";

/// One of the four projections of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttentionProjection {
    /// Query.
    Q,
    /// Key.
    K,
    /// Value.
    V,
    /// Output.
    O,
}

impl AttentionProjection {
    /// All, in the order of a forward pass.
    pub const ALL: [Self; 4] = [Self::Q, Self::K, Self::V, Self::O];

    /// The name in a checkpoint.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
        }
    }
}

/// A weight that an adapter changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdapterTarget {
    /// A projection of attention.
    Attention {
        /// Its layer.
        layer: usize,
        /// Which one.
        projection: AttentionProjection,
    },
    /// The router.
    Router {
        /// Its layer.
        layer: usize,
    },
    /// One of the matrices of all experts.
    Experts {
        /// Their layer.
        layer: usize,
        /// Which one.
        projection: Projection,
    },
    /// The output head.
    LmHead,
}

impl AdapterTarget {
    /// The layer, where it is in one.
    #[must_use]
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::Attention { layer, .. } | Self::Router { layer } | Self::Experts { layer, .. } => Some(layer),
            Self::LmHead => None,
        }
    }

    /// The name by which PEFT's patterns know it: of a module, or of a parameter for the router and the experts.
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Self::LmHead => "lm_head".to_owned(),
            Self::Attention { layer, .. } | Self::Router { layer } | Self::Experts { layer, .. } => {
                format!("model.layers.{layer}.{}", self.local_key())
            }
        }
    }

    /// The name of its tensor in a checkpoint; for experts without the endings of blocks and scales.
    #[must_use]
    pub fn tensor_name(self) -> String {
        match self {
            Self::Attention { .. } | Self::LmHead => format!("{}.weight", self.key()),
            Self::Router { .. } | Self::Experts { .. } => self.key(),
        }
    }

    /// The name of its part of a layer.
    #[must_use]
    pub fn part_name(self) -> &'static str {
        match self {
            Self::Attention { projection, .. } => projection.name(),
            Self::Router { .. } => "router",
            Self::Experts { projection, .. } => projection.name(),
            Self::LmHead => "lm_head",
        }
    }

    /// The key without its layer.
    pub(super) fn local_key(self) -> &'static str {
        match self {
            Self::LmHead => "lm_head",
            Self::Router { .. } => "mlp.router.weight",
            Self::Experts { projection: Projection::GateUp, .. } => "mlp.experts.gate_up_proj",
            Self::Experts { projection: Projection::Down, .. } => "mlp.experts.down_proj",
            Self::Attention { projection: AttentionProjection::Q, .. } => "self_attn.q_proj",
            Self::Attention { projection: AttentionProjection::K, .. } => "self_attn.k_proj",
            Self::Attention { projection: AttentionProjection::V, .. } => "self_attn.v_proj",
            Self::Attention { projection: AttentionProjection::O, .. } => "self_attn.o_proj",
        }
    }

    /// True for what PEFT adapts as a parameter, not as a module.
    pub(super) fn is_parameter(self) -> bool {
        matches!(self, Self::Router { .. } | Self::Experts { .. })
    }

    /// Experts (1 where there are none), inputs and outputs of the weight.
    #[must_use]
    pub fn dims(self, config: &Config) -> [usize; 3] {
        let (d, queries, keys) = (config.hidden_size, config.query_size(), config.key_value_size());
        match self {
            Self::Attention { projection: AttentionProjection::Q, .. } => [1, d, queries],
            Self::Attention { projection: AttentionProjection::O, .. } => [1, queries, d],
            Self::Attention { .. } => [1, d, keys],
            Self::Router { .. } => [1, d, config.num_local_experts],
            Self::Experts { projection, .. } => {
                let [input, output] = projection.dims(config);
                [config.num_local_experts, input, output]
            }
            Self::LmHead => [1, d, config.vocab_size],
        }
    }

    /// Elements of A and B together, at rank `rank`.
    #[must_use]
    pub fn num_parameters(self, config: &Config, rank: usize) -> u64 {
        let [experts, input, output] = self.dims(config);
        experts as u64 * rank as u64 * (input as u64 + output as u64)
    }
}

impl fmt::Display for AdapterTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.key())
    }
}

/// The module that carries a pair in a file. Of two matrices of the same experts, PEFT wraps the wrapper of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Slot {
    /// A weight that has a module of its own.
    Plain(AdapterTarget),
    /// The wrapper next to the experts: of `gate_up_proj`, where both are adapted.
    InnerExperts { layer: usize },
    /// The outermost wrapper: of `down_proj` where both are adapted, of either one where one is.
    OuterExperts { layer: usize },
}

/// A or B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Half {
    A,
    B,
}

impl Slot {
    /// The place of a target; `both` says that both of the experts' matrices of its layer are adapted.
    pub(super) fn of(target: AdapterTarget, both: bool) -> Self {
        match target {
            AdapterTarget::Experts { layer, projection: Projection::GateUp } if both => Self::InnerExperts { layer },
            AdapterTarget::Experts { layer, .. } => Self::OuterExperts { layer },
            plain => Self::Plain(plain),
        }
    }

    /// The name of a tensor.
    pub(super) fn tensor_name(self, half: Half) -> String {
        let module = match self {
            Self::Plain(AdapterTarget::Router { layer }) => format!("model.layers.{layer}.mlp.router"),
            Self::Plain(target) => target.key(),
            Self::InnerExperts { layer } => format!("model.layers.{layer}.mlp.experts.base_layer"),
            Self::OuterExperts { layer } => format!("model.layers.{layer}.mlp.experts"),
        };
        let half = if half == Half::A { "lora_A" } else { "lora_B" };
        format!("{PREFIX}{module}.{half}.weight")
    }

    /// The place that a tensor's name says.
    pub(super) fn parse(tensor: &str) -> Option<(Self, Half)> {
        let name = tensor.strip_prefix(PREFIX)?;
        let (module, half) = match name.strip_suffix(".lora_A.weight") {
            Some(module) => (module, Half::A),
            None => (name.strip_suffix(".lora_B.weight")?, Half::B),
        };
        if module == "lm_head" {
            return Some((Self::Plain(AdapterTarget::LmHead), half));
        }
        let (number, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
        let layer: usize = number.parse().ok()?;
        let slot = match part {
            "mlp.router" => Self::Plain(AdapterTarget::Router { layer }),
            "mlp.experts.base_layer" => Self::InnerExperts { layer },
            "mlp.experts" => Self::OuterExperts { layer },
            _ => {
                let projection =
                    AttentionProjection::ALL.into_iter().find(|projection| part.strip_prefix("self_attn.") == Some(projection.name()))?;
                Self::Plain(AdapterTarget::Attention { layer, projection })
            }
        };
        // Refuses a number that is spelled otherwise, such as "+1" or "01".
        (slot.tensor_name(half) == tensor).then_some((slot, half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_slots() {
        let mut slots: Vec<Slot> = AttentionProjection::ALL
            .into_iter()
            .map(|projection| Slot::Plain(AdapterTarget::Attention { layer: 17, projection }))
            .collect();
        slots.extend([
            Slot::Plain(AdapterTarget::Router { layer: 0 }),
            Slot::InnerExperts { layer: 3 },
            Slot::OuterExperts { layer: 3 },
            Slot::Plain(AdapterTarget::LmHead),
        ]);
        for slot in slots {
            for half in [Half::A, Half::B] {
                assert_eq!(Slot::parse(&slot.tensor_name(half)), Some((slot, half)));
            }
        }
    }

    #[test]
    fn other_names_are_no_slots() {
        for name in [
            "base_model.model.model.layers.01.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.+1.mlp.router.lora_A.weight",
            "base_model.model.model.layers.1.self_attn.qkv_proj.lora_A.weight",
            "base_model.model.model.layers.1.mlp.experts.base_layer.base_layer.lora_A.weight",
            "model.layers.1.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight",
            "base_model.model.model.embed_tokens.lora_embedding_A",
        ] {
            assert_eq!(Slot::parse(name), None, "{name}");
        }
    }
}
