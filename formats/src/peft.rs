//! Low-rank adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Pairs are handed out and taken in the layout that multiplies: A [rank, in] and B [out, rank], with a leading axis of experts for those
//! of the experts. PEFT's own layout of the latter is the business of `layout`.
//!
//! Letters: e experts, r rank.
//!
//! Source: PEFT 0.21 `tuners/lora/layer.py` (`Linear`, `ParamWrapper`), `tuners_utils.py` (`_inject_parameters`).

mod config;
mod layout;
#[cfg(test)]
mod malformed;
#[cfg(test)]
mod mutated;
mod names;
mod problem;
mod reader;
#[cfg(test)]
mod round_trip;
mod writer;

pub use config::AdapterConfig;
pub use layout::{b_from_peft, b_to_peft};
pub use names::{AdapterTarget, AttentionProjection};
pub use problem::AdapterProblem;
pub use reader::PeftAdapter;
pub use writer::write_adapter;

/// Name of the config in an adapter's directory.
const CONFIG: &str = "adapter_config.json";

/// Name of the tensors in an adapter's directory.
const TENSORS: &str = "adapter_model.safetensors";

/// The update of one weight: `scaling * B A`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterPair {
    /// The weight.
    pub target: AdapterTarget,
    /// Rank of the update.
    pub rank: usize,
    /// Factor of the update.
    pub scaling: f64,
    /// A, row by row.
    pub a: Vec<f32>,
    /// [rank, in], or [e, rank, in] for experts.
    pub a_shape: Vec<usize>,
    /// B, row by row.
    pub b: Vec<f32>,
    /// [out, rank], or [e, out, rank] for experts.
    pub b_shape: Vec<usize>,
}
