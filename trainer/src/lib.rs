//! The gpt-oss model on libtorch, and how it learns.
//!
//! This crate owns the model (`model`), what is trained of it (`adapters`), the way from conversations to tokens (`data`), the
//! recipe (`recipe`), the optimizer, and the run itself. Files and their layouts are `ft-formats`' business, number formats
//! `ft-quant`'s, words and rendering the program's.

pub mod adapters;
pub mod data;
pub mod error;
pub mod evaluation;
pub mod generation;
pub mod logits;
pub mod loss;
pub mod model;
pub mod optimizer;
pub mod random;
pub mod recipe;
pub mod run;
pub mod torch;
pub mod tracking;
pub mod verification;

pub use error::{Error, Result};
