//! Launches of the rotary position embedding. Source of layout and thread mapping: `quant/kernels/rope.cu`.
//!
//! Letters: t tokens, h heads, p pairs (half the width of a head).

use super::error::CudaError;
use super::gpu::Gpu;
use super::launch::{Arguments, ElementType, blocks_of_items};

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeDirection {
    /// Heads, by their positions.
    Forward,
    /// Gradients of rotated heads, back to the heads: the transposed map.
    Backward,
}

impl RopeDirection {
    /// What the sines are multiplied by.
    #[must_use]
    pub fn sign(self) -> f32 {
        match self {
            Self::Forward => 1.0,
            Self::Backward => -1.0,
        }
    }
}

/// A rotation, on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rope {
    /// Of the heads.
    pub element: ElementType,
    /// t.
    pub tokens: usize,
    /// h.
    pub num_heads: usize,
    /// p.
    pub pairs: usize,
    /// f32 [t, p], times whatever scales the rotated heads.
    pub cosines: u64,
    /// f32 [t, p], as the cosines.
    pub sines: u64,
}

impl Gpu {
    /// As [`crate::training::rope`], on the device, on a stream, and does not wait for it.
    ///
    /// # Shapes
    /// `heads` [t, h, 2p], `out` the same.
    ///
    /// # Errors
    /// As [`Gpu::swiglu_on`].
    ///
    /// # Safety
    /// As [`Gpu::swiglu_on`]: `out` is not `heads`.
    pub unsafe fn rope_on(&self, stream: u64, of: Rope, direction: RopeDirection, heads: u64, out: u64) -> Result<(), CudaError> {
        of.element.check([("heads", heads), ("out", out)])?;
        ElementType::F32.check([("cosines", of.cosines), ("sines", of.sines)])?;
        let mut arguments = Arguments::new();
        arguments.addresses([heads, of.cosines, of.sines, out]);
        arguments.dims([("tokens", of.tokens), ("heads", of.num_heads), ("pairs", of.pairs)])?;
        arguments.float(direction.sign());
        let work = blocks_of_items("chunks of all heads", &[of.tokens, of.num_heads, of.element.chunks(of.pairs)])?;
        let name = of.element.kernel(c"rope_bf16", c"rope_f32");
        // SAFETY: the parameters of the kernel in their order; the addresses are as the caller says.
        unsafe { self.launch(&self.modules.rope, name, work, stream, arguments) }
    }
}
