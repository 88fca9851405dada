//! The files of gpt-oss: checkpoints, adapters, GGUF, the tokenizer, the harmony format and its chat template; and what makes one of them of
//! another.
//!
//! This crate owns layouts and validation, and knows no tensor library: a tensor is a name, a dtype, a shape and bytes. Whatever a file
//! says is checked before it is used: no allocation follows from a number in a file that the file's length does not bear out.

#![deny(missing_docs)]

pub mod bundle;
pub mod card;
pub mod checkpoint;
pub mod comparison;
pub mod dtype;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod gguf;
pub mod harmony;
mod json;
pub mod merge;
pub mod ollama;
pub mod original;
mod output;
pub mod peft;
pub mod report;
pub mod requantize;
pub mod safetensors;
mod stream;
pub mod template;
#[cfg(test)]
mod testing;
pub mod tokenizer;

pub use error::{Error, Hint, Result};
