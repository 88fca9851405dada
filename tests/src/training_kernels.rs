//! The CUDA kernels of training against their definitions, on whatever device a [`Gpu`] stands for: within the bounds that the kernels'
//! files state, on sizes that fill no chunk and addresses that are no multiple of one.

mod combine;
mod cross_entropy;
mod rows;
mod samples;
mod swiglu;

pub use combine::{compare_combine, compare_gather};
pub use cross_entropy::compare_cross_entropy;
pub use rows::{compare_expert_bias, compare_rms_norm, compare_rope};
pub use swiglu::compare_swiglu;
