//! Block codecs for gpt-oss weights: MXFP4 to and from bf16.
//!
//! This crate owns the numbers alone: it knows no files and no model. Callers give slices and get slices, or an error that
//! says which element was wrong.

#![deny(missing_docs)]

pub mod cuda;
mod error;
mod float;
pub mod mxfp4;

pub use error::Error;
pub use float::Float;
