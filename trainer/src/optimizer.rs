//! From gradients to the next weights.

pub mod adamw;
pub mod clipping;
pub mod moments;
mod packed;
pub mod schedule;

pub use adamw::{AdamW, AdamWOptions};
pub use clipping::{clip, gradient_norm, read_together};
pub use moments::{Moments, MomentsKind, state_bytes};
pub use schedule::Schedule;
