//! MXFP4: blocks of 32 four-bit elements (E2M1) that share an eight-bit power of two (E8M0).
//!
//! The layout is that of gpt-oss checkpoints: `blocks` holds 16 bytes a block, element `2 * i` in the low nibble of byte `i` and element
//! `2 * i + 1` in the high one; `scales` holds one byte a block.
//!
//! Source: OCP Microscaling Formats (MX) specification 1.0, sections 5.2 and 6.3; openai/gpt-oss `gpt_oss/torch/weights.py`.

mod block;
mod element;
mod scale;

pub use block::{pack, unpack};
pub use scale::ScaleRule;

/// Elements that share a scale. Source: OCP MX 1.0, table 1.
pub const BLOCK_ELEMENTS: usize = 32;

/// Bytes of a block without its scale: two elements a byte.
pub const BLOCK_BYTES: usize = BLOCK_ELEMENTS / 2;
