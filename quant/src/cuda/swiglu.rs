//! Launches of the clamped SwiGLU. Source of layout and thread mapping: `quant/kernels/swiglu.cu`.
//!
//! Letters: r rows, f width of the output, e experts.

use super::error::CudaError;
use super::expert_bias::ExpertBias;
use super::gpu::Gpu;
use super::launch::{Arguments, ElementType, blocks_of_items};

/// The input of an activation, on the device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Swiglu {
    /// Of all that is not said to be of another type.
    pub element: ElementType,
    /// r.
    pub rows: usize,
    /// f.
    pub width: usize,
    /// Slope inside the sigmoid.
    pub alpha: f32,
    /// Bound of the gate from above, and of the linear half on both sides.
    pub limit: f32,
    /// Gates in even columns and linear halves in odd ones, [r, 2f].
    pub gate_up: u64,
    /// Added to `gate_up` first, [e, 2f]; the sum is rounded to the element type.
    pub bias: Option<ExpertBias>,
}

impl Gpu {
    /// As [`crate::training::swiglu`], on the device, on a stream, and does not wait for it.
    ///
    /// # Shapes
    /// `out` [r, f].
    ///
    /// # Errors
    /// [`CudaError::Misaligned`] where an address is no multiple of an element, [`CudaError::TooLarge`] for more than 2^32 chunks of 16 bytes;
    /// what compiling and launching refuse. What goes wrong on the device later is reported by the next call that waits.
    ///
    /// # Safety
    /// `stream` is a stream (`CUstream`) of this device's primary context, null being the default one. The addresses are of this device, of
    /// as many elements as the shapes say, and stay until the stream has passed the call; nothing else writes them meanwhile, and `out`
    /// shares no byte with the others.
    pub unsafe fn swiglu_on(&self, stream: u64, of: Swiglu, out: u64) -> Result<(), CudaError> {
        of.element.check([("out", out)])?;
        let name = of.element.kernel(c"swiglu_bf16", c"swiglu_f32");
        let (arguments, work) = of.arguments([out])?;
        // SAFETY: the parameters of the kernel in their order; the addresses are as the caller says.
        unsafe { self.launch(&self.modules.swiglu, name, work, stream, arguments) }
    }

    /// As [`crate::training::swiglu_backward`], on the device, on a stream, and does not wait for it.
    ///
    /// # Shapes
    /// `gradient` [r, f], that of the output; `result` [r, 2f].
    ///
    /// # Errors
    /// As [`Gpu::swiglu_on`].
    ///
    /// # Safety
    /// As [`Gpu::swiglu_on`], `result` being the output.
    pub unsafe fn swiglu_backward_on(&self, stream: u64, of: Swiglu, gradient: u64, result: u64) -> Result<(), CudaError> {
        of.element.check([("gradient", gradient), ("result", result)])?;
        let name = of.element.kernel(c"swiglu_backward_bf16", c"swiglu_backward_f32");
        let (arguments, work) = of.arguments([gradient, result])?;
        // SAFETY: as above.
        unsafe { self.launch(&self.modules.swiglu, name, work, stream, arguments) }
    }
}

impl Swiglu {
    /// The parameters of both kernels, which differ in what comes after the input; and the thread blocks that they take.
    fn arguments<const N: usize>(self, others: [u64; N]) -> Result<(Arguments, u64), CudaError> {
        let bias = self.bias.filter(|bias| bias.num_experts > 0);
        let (bias, ends, num_experts) = bias.map_or((0, 0, 0), |bias| (bias.bias, bias.ends, bias.num_experts));
        self.element.check([("gate_up", self.gate_up), ("bias", bias)])?;
        ElementType::F32.check([("ends", ends)])?;
        let mut arguments = Arguments::new();
        arguments.addresses([self.gate_up, bias, ends]);
        arguments.addresses(others);
        arguments.dims([("rows", self.rows), ("width", self.width), ("experts", num_experts)])?;
        arguments.float(self.alpha);
        arguments.float(self.limit);
        Ok((arguments, blocks_of_items("chunks of all rows", &[self.rows, self.element.chunks(self.width)])?))
    }
}
