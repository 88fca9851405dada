//! What the optimizer remembers of each parameter.

use crate::recipe::OptimizerKind;

/// Elements that share one scale when moments are kept in 8 bits.
///
/// Source: `blocksize` of the optimizers of bitsandbytes; the paper, Dettmers et al., "8-bit Optimizers via Block-wise Quantization"
/// (arXiv 2110.02861), takes 2,048.
pub const BLOCK_ELEMENTS: u64 = 256;

/// Parameters of fewer elements keep their moments in f32.
///
/// Source: `min_8bit_size` of bitsandbytes.
pub const SMALLEST_PACKED: u64 = 4096;

/// Bytes that the moments of parameters of so many `elements` take.
#[must_use]
pub fn state_bytes(kind: OptimizerKind, elements: &[u64]) -> u64 {
    let bytes = |&count: &u64| match kind {
        OptimizerKind::Adamw8bit if count >= SMALLEST_PACKED => 2 * (count + 4 * count.div_ceil(BLOCK_ELEMENTS)),
        OptimizerKind::Adamw | OptimizerKind::Adamw8bit => 8 * count,
    };
    elements.iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parameters_cost_as_much_in_either_kind() {
        let sizes = [4095, 100];
        assert_eq!(state_bytes(OptimizerKind::Adamw, &sizes), 4195 * 8);
        assert_eq!(state_bytes(OptimizerKind::Adamw8bit, &sizes), 4195 * 8);
    }

    #[test]
    fn a_scale_is_counted_for_each_block_begun() {
        assert_eq!(state_bytes(OptimizerKind::Adamw8bit, &[4096, 4097]), 2 * (4096 + 16 * 4) + 2 * (4097 + 17 * 4));
    }
}
