//! One matrix product for each group of rows: the experts' work on tokens sorted by expert.
//!
//! Letters: e experts, r rows (a token for each of its experts), i input width, o output width, s blocks of an input row, b bytes of a
//! block.

mod groups;
mod packed;
mod plain;

use tch::{Kind, Tensor};

pub use groups::Groups;
pub use packed::{PIECE_BYTES, PackedWeight, Workspace, packed_matmul};
pub use plain::grouped_matmul;

/// libtorch's grouped product takes any dims whose strides are multiples of 16 bytes.
///
/// Source: `aten/src/ATen/native/GroupedMMUtils.h` of torch 2.11.
fn has_fast_strides(tensor: &Tensor) -> bool {
    let element_bytes: i64 = if tensor.kind() == Kind::Float { 4 } else { 2 };
    let strides = tensor.stride();
    let unit = strides.iter().rev().take(2).any(|&stride| stride == 1);
    unit && strides.iter().all(|stride| *stride == 1 || stride * element_bytes % 16 == 0)
}
