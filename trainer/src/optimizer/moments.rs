//! What the optimizer remembers of each parameter: as f32, or in 8 bits.

use std::fmt;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::recipe::OptimizerKind;
use crate::torch::host::{BLOCK_ELEMENTS, SIGNED_ZERO};
use crate::torch::ops::{Named, zeros};

/// Parameters of fewer elements keep their moments in f32.
///
/// Source: `min_8bit_size` of bitsandbytes.
pub const SMALLEST_PACKED: u64 = 4096;

/// How the moments of a parameter are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentsKind {
    /// As f32.
    Float,
    /// A byte for each element, under a scale for each block.
    Packed,
}

impl MomentsKind {
    /// For a parameter of so many `elements`.
    #[must_use]
    pub fn of(kind: OptimizerKind, elements: u64) -> Self {
        match kind {
            OptimizerKind::Adamw8bit if elements >= SMALLEST_PACKED => Self::Packed,
            OptimizerKind::Adamw | OptimizerKind::Adamw8bit => Self::Float,
        }
    }
}

impl fmt::Display for MomentsKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Float => "f32 moments",
            Self::Packed => "8-bit moments",
        })
    }
}

/// Bytes that the moments of parameters of so many `elements` take.
#[must_use]
pub fn state_bytes(kind: OptimizerKind, elements: &[u64]) -> u64 {
    let bytes = |&count: &u64| match MomentsKind::of(kind, count) {
        MomentsKind::Float => 8 * count,
        MomentsKind::Packed => 2 * (count + 4 * count.div_ceil(BLOCK_ELEMENTS as u64)),
    };
    elements.iter().map(bytes).sum()
}

/// Both moments of a parameter.
#[derive(Debug)]
pub enum Moments {
    /// f32, in the parameter's shape.
    Float {
        /// First moment.
        first: Tensor,
        /// Second moment.
        second: Tensor,
    },
    /// In 8 bits.
    Packed {
        /// First moment, by [`crate::torch::host::CodeMap::signed`].
        first: Packed,
        /// Second moment, by [`crate::torch::host::CodeMap::unsigned`].
        second: Packed,
    },
}

/// A moment in 8 bits. Blocks are of [`BLOCK_ELEMENTS`] elements in row-major order, the last one may be shorter.
#[derive(Debug)]
pub struct Packed {
    /// u8, in the parameter's shape.
    pub codes: Tensor,
    /// f32 [blocks].
    pub scales: Tensor,
}

impl Packed {
    fn zeros(shape: &[i64], zero: u8, device: Device) -> Result<Self> {
        let codes = Tensor::f_full(shape, i64::from(zero), (Kind::Uint8, device)).named("moments", &[])?;
        let blocks = codes.numel().div_ceil(BLOCK_ELEMENTS);
        let scales = zeros(&[i64::try_from(blocks).unwrap_or(i64::MAX)], Kind::Float, device)?;
        Ok(Self { codes, scales })
    }
}

impl Moments {
    /// Zero moments of `parameter`, on its device.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] out of memory.
    pub fn zeros(kind: OptimizerKind, parameter: &Tensor) -> Result<Self> {
        let (shape, device) = (parameter.size(), parameter.device());
        let moment = || zeros(&shape, Kind::Float, device);
        Ok(match MomentsKind::of(kind, parameter.numel() as u64) {
            MomentsKind::Float => Self::Float { first: moment()?, second: moment()? },
            MomentsKind::Packed => {
                Self::Packed { first: Packed::zeros(&shape, SIGNED_ZERO, device)?, second: Packed::zeros(&shape, 0, device)? }
            }
        })
    }

    /// How they are kept.
    #[must_use]
    pub fn kind(&self) -> MomentsKind {
        match self {
            Self::Float { .. } => MomentsKind::Float,
            Self::Packed { .. } => MomentsKind::Packed,
        }
    }

    /// The tensors that make them up, by the names under which checkpoints keep them after the parameter's.
    #[must_use]
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Float { first, second } => vec![("first", first), ("second", second)],
            Self::Packed { first, second } => vec![
                ("first.codes", &first.codes),
                ("first.scales", &first.scales),
                ("second.codes", &second.codes),
                ("second.scales", &second.scales),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parameters_cost_as_much_in_either_kind() {
        let sizes = [4095, 100];
        assert_eq!(state_bytes(OptimizerKind::Adamw, &sizes), 4195 * 8);
        assert_eq!(state_bytes(OptimizerKind::Adamw8bit, &sizes), 4195 * 8);
    }

    #[test]
    fn a_scale_is_counted_for_each_block_begun() {
        assert_eq!(state_bytes(OptimizerKind::Adamw8bit, &[4096, 4097]), 2 * (4096 + 16 * 4) + 2 * (4097 + 17 * 4));
    }

    #[test]
    fn the_bytes_counted_are_those_of_the_tensors() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Adamw8bit] {
            for shape in [[5, 7], [64, 64], [91, 47]] {
                let parameter = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
                let moments = Moments::zeros(kind, &parameter).unwrap();
                let found: usize = moments.tensors().iter().map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum();
                assert_eq!(found as u64, state_bytes(kind, &[parameter.numel() as u64]), "{kind:?} {shape:?}");
            }
        }
    }
}
