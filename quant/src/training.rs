//! What the CUDA kernels of training compute, by definition: slow, obvious loops in f64, of the shapes and in the order of the launches
//! that [`crate::cuda::Gpu`] offers under the same names.
//!
//! Nothing is rounded here but where a definition says so; the kernels compute in f32 and round once, within the bounds that the files in
//! `quant/kernels` state. The kernels are tested against this on every device. Elements are [`Float`]s, bf16 or f32; lengths that do not
//! fit are the caller's mistake, and panic.

mod combine;
mod cross_entropy;
mod expert_bias;
mod rms_norm;
mod rope;
mod swiglu;

pub use combine::{Slots, combine, combine_backward};
pub use cross_entropy::cross_entropy;
pub use expert_bias::{BiasByExpert, add_expert_bias};
pub use rms_norm::{rms_norm, rms_norm_backward, rms_norm_weight_gradient};
pub use rope::rope;
pub use swiglu::{SwigluInput, swiglu, swiglu_backward};

use crate::Float;

/// The value of an element, exactly.
fn wide<T: Float>(element: T) -> f64 {
    element.to_f32().into()
}
