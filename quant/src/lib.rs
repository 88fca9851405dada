//! Block codecs for gpt-oss weights: MXFP4 to and from bf16, and the block types of ggml to and from f32.
//!
//! This crate owns the numbers alone: it knows no files and no model. Callers give slices and get slices, or an error that
//! says which element was wrong. The kernels of training live here too, with their definitions in [`training`]: one crate owns device code.

#![deny(missing_docs)]

mod accuracy;
mod codec;
pub mod cuda;
mod error;
mod float;
pub mod ggml;
pub mod mxfp4;
mod processor;
pub mod training;

pub use accuracy::Accuracy;
pub use codec::Codec;
pub use error::Error;
pub use float::Float;
pub use processor::instructions;
