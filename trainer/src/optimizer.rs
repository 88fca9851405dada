//! From gradients to the next weights.

pub mod adamw;
pub mod clipping;
pub mod moments;
pub mod schedule;

pub use adamw::{AdamW, AdamWOptions};
pub use clipping::clip;
pub use moments::state_bytes;
pub use schedule::Schedule;
