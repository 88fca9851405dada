//! MXFP4: blocks of 32 four-bit elements (E2M1) that share an eight-bit power of two (E8M0).
//!
//! The layout is that of gpt-oss checkpoints: `blocks` holds 16 bytes a block, element `2 * i` in the low nibble of byte `i` and element
//! `2 * i + 1` in the high one; `scales` holds one byte a block.
//!
//! Values lie either as the blocks do, 32 neighbours to a block ([`pack`], [`unpack`]), or transposed, as plain checkpoints store the
//! experts ([`pack_transposed`], [`unpack_transposed`]).
//!
//! bf16 is converted by integer arithmetic alone, f32 by floating point that is exact wherever something hangs on it, so that every
//! processor and every device gives the same bytes; which ones is defined by one block at a time, in `reference`.
//!
//! Source: OCP Microscaling Formats (MX) specification 1.0, sections 5.2 and 6.3; openai/gpt-oss `gpt_oss/torch/weights.py`.

mod choice;
mod columns;
mod element;
mod lanes;
pub(crate) mod measure;
mod reference;
mod rows;
mod scale;
#[cfg(test)]
mod tests;
mod tile;
mod vectors;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use columns::{pack_transposed, unpack_transposed, unpack_transposed_on_this_thread};
pub use element::Rounding;
pub(crate) use element::VALUES;
pub use rows::{pack, unpack};
pub use scale::ScaleRule;

use crate::error::Error;

/// Elements that share a scale. Source: OCP MX 1.0, table 1.
pub const BLOCK_ELEMENTS: usize = 32;

/// Bytes of a block without its scale: two elements a byte.
pub const BLOCK_BYTES: usize = BLOCK_ELEMENTS / 2;

/// How values become blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packing {
    /// How a block's scale is chosen.
    pub rule: ScaleRule,
    /// How its elements are rounded.
    pub rounding: Rounding,
}

impl From<ScaleRule> for Packing {
    /// `rule` with elements rounded to even.
    fn from(rule: ScaleRule) -> Self {
        Self { rule, rounding: Rounding::Even }
    }
}

impl Packing {
    /// The rule with its hints; a rule that does not look at them, or that has none, is one without.
    pub(crate) fn with_hints(self, hints: Option<&[u8]>, num_blocks: usize) -> Result<(Self, Option<&[u8]>), Error> {
        let Some(hints) = hints.filter(|_| self.rule == ScaleRule::Hint) else {
            let rule = if self.rule == ScaleRule::Hint { ScaleRule::Even } else { self.rule };
            return Ok((Self { rule, ..self }, None));
        };
        check_length("hints", num_blocks, hints.len())?;
        match hints.iter().position(|&hint| hint == scale::RESERVED) {
            Some(index) => Err(Error::ReservedScale { index }),
            None => Ok((self, Some(hints))),
        }
    }
}

pub(crate) fn check_length(slice: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { slice, expected, found }) }
}
