//! What is trained of a model: low-rank updates, or all of it.

pub mod lora;
pub mod trainable;

pub use trainable::{Trainable, train_everything};
