//! Launches of the softmax cross entropy. Source of layout and thread mapping: `quant/kernels/cross_entropy.cu`.
//!
//! Letters: n tokens, v vocabulary.

use super::error::CudaError;
use super::gpu::Gpu;
use super::launch::{Arguments, ElementType, check_aligned};

/// Logits and what they are compared with, on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrossEntropy {
    /// Of the logits.
    pub element: ElementType,
    /// n.
    pub rows: usize,
    /// v.
    pub vocabulary: usize,
    /// [n, v]; their gradient takes their place where it is wanted.
    pub logits: u64,
    /// i64 [n]. One that is not below v makes loss and gradient of its row NaN.
    pub targets: u64,
    /// f32 [n].
    pub weights: u64,
}

impl Gpu {
    /// As [`crate::training::cross_entropy`], on the device, on a stream, and does not wait for it. The gradient is written where it is wanted
    /// alone.
    ///
    /// # Shapes
    /// `losses` f32 [n].
    ///
    /// # Errors
    /// As [`Gpu::swiglu_on`], n and v being below 2^31 each.
    ///
    /// # Safety
    /// As [`Gpu::swiglu_on`]; `losses` are written, and with `wants_gradient` the logits.
    pub unsafe fn cross_entropy_on(&self, stream: u64, of: CrossEntropy, wants_gradient: bool, losses: u64) -> Result<(), CudaError> {
        of.element.check([("logits", of.logits)])?;
        check_aligned("targets", of.targets, size_of::<i64>() as u64)?;
        ElementType::F32.check([("weights", of.weights), ("losses", losses)])?;
        let mut arguments = Arguments::new();
        arguments.addresses([of.logits, of.targets, of.weights, losses]);
        arguments.dims([("rows", of.rows), ("vocabulary", of.vocabulary)])?;
        arguments.number(wants_gradient.into());
        let name = of.element.kernel(c"cross_entropy_bf16", c"cross_entropy_f32");
        // SAFETY: the parameters of the kernel in their order; the addresses are as the caller says.
        unsafe { self.launch(&self.modules.cross_entropy, name, of.rows as u64, stream, arguments) }
    }
}
