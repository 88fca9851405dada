//! Kernels for the CPU, and contiguous host tensors as slices.
//!
//! Each kernel is one plain loop, compiled for several instruction sets; the best that the machine has is chosen at run time. No
//! operation is reordered or fused, so all of them give the same bits. Only attention leaves its matrix products to the library that
//! libtorch carries.

mod adamw;
mod adamw_8bit;
mod adamw_maps;
mod attention;
mod cross_entropy;
mod dispatch;
mod element;
mod exponential;
mod matrix;
mod mxfp4;
mod parallel;
mod rms_norm;
mod rope;
mod rows;
mod slices;
mod softmax;
mod swiglu;

pub use adamw::{AdamWFactors, adamw};
pub use adamw_8bit::{BLOCK_ELEMENTS, PackedSlices, adamw_8bit};
pub use adamw_maps::{CodeMap, SIGNED_ZERO};
pub use attention::{AttentionGradients, AttentionInputs, AttentionResults, AttentionTiles, HeadShape, SpanRows};
pub use cross_entropy::{Row, cross_entropy_rows};
pub use element::{Element, Stored};
pub use mxfp4::unpack_matrix;
pub use parallel::map_indices;
pub use rms_norm::{rms_norm_backward_rows, rms_norm_rows};
pub use rope::turn_heads;
pub use rows::{TokenRows, combine_rows, spread_rows};
pub use slices::{elements, elements_mut, floats, floats_mut, is_host};
pub use softmax::{DivergenceSums, divergence_sums, finite_peak, sum_of_exponentials};
pub use swiglu::{swiglu_backward_rows, swiglu_rows};
