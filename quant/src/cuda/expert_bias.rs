//! Launches of the addition of expert biases. Source of layout and thread mapping: `quant/kernels/expert_bias.cu`.
//!
//! Letters: r rows sorted by expert, o width, e experts.

use super::error::CudaError;
use super::gpu::Gpu;
use super::launch::{Arguments, ElementType, blocks_of_items};

/// A bias for each expert, and the rows that each owns, on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertBias {
    /// e; where it is 0, nothing is added.
    pub num_experts: usize,
    /// [e, o].
    pub bias: u64,
    /// i32 [e], rising: expert k owns the rows from the end before its own, or 0, to its own. The last one owns what lies beyond all ends.
    pub ends: u64,
}

impl Gpu {
    /// As [`crate::training::add_expert_bias`], on the device, on a stream, and does not wait for it.
    ///
    /// # Shapes
    /// `rows` [r, o] for `num_rows` r and `width` o, of one type with the bias; it is added where they lie.
    ///
    /// # Errors
    /// As [`Gpu::swiglu_on`].
    ///
    /// # Safety
    /// As [`Gpu::swiglu_on`], `rows` being the output.
    pub unsafe fn add_expert_bias_on(
        &self,
        stream: u64,
        element: ElementType,
        (num_rows, width): (usize, usize),
        rows: u64,
        bias: ExpertBias,
    ) -> Result<(), CudaError> {
        element.check([("rows", rows), ("bias", bias.bias)])?;
        ElementType::F32.check([("ends", bias.ends)])?;
        if bias.num_experts == 0 {
            return Ok(());
        }
        let mut arguments = Arguments::new();
        arguments.addresses([rows, bias.bias, bias.ends]);
        arguments.dims([("rows", num_rows), ("width", width), ("experts", bias.num_experts)])?;
        let work = blocks_of_items("chunks of all rows", &[num_rows, element.chunks(width)])?;
        let name = element.kernel(c"expert_bias_bf16", c"expert_bias_f32");
        // SAFETY: the parameters of the kernel in their order; the addresses are as the caller says.
        unsafe { self.launch(&self.modules.expert_bias, name, work, stream, arguments) }
    }
}
