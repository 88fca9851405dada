//! Model directories: config, tensors by name, and a streaming writer.
//!
//! Two layouts are read: that of the Hugging Face Hub, sharded or not, with experts in MXFP4 or as plain floats, and OpenAI's `original/`
//! one; a GGUF file is read as if it were such a model. Whatever the layout, tensors go by their Hugging Face names. The Hugging Face layout
//! is written, and OpenAI's.
//!
//! Letters: e experts, d model width, f expert width, s scale blocks.

mod config;
mod experts;
mod generation_config;
mod gguf;
mod layout;
#[cfg(test)]
mod malformed;
mod random;
mod reader;
#[cfg(test)]
mod round_trip;
mod shards;
mod tensor;
mod tensors;
mod writer;

pub use config::{Config, ConfigProblem, LayerType, YarnScaling};
pub use experts::{ExpertMatrix, ExpertWeights};
pub use random::write_random_model;
pub use reader::Checkpoint;
pub use shards::IndexProblem;
pub use tensor::CheckpointTensor;
pub use tensors::{ExpertStorage, Projection, tensor_specs};
pub use writer::{CheckpointWriter, SealedCheckpoint};
