//! Launches of the root mean square norm. Source of layout and thread mapping: `quant/kernels/rms_norm.cu`.
//!
//! Letters: t tokens, d width, s slices of the tokens.

use super::error::CudaError;
use super::gpu::Gpu;
use super::launch::{Arguments, ElementType, THREADS, blocks_of_items};

/// Tokens of a slice, while that makes no more than [`MOST_SLICES`].
const SLICE_ROWS: usize = 64;
const MOST_SLICES: usize = 256;

/// What a norm and its gradients have in common, on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RmsNorm {
    /// Of all that is not said to be of another type.
    pub element: ElementType,
    /// t.
    pub rows: usize,
    /// d.
    pub width: usize,
    /// The input, [t, d].
    pub hidden: u64,
    /// The reciprocals of the roots, f32 [t]: written by the norm, read by its gradients.
    pub reciprocals: u64,
}

/// s, the sums that the gradient of the weight is made of; it depends on the number of tokens alone.
#[must_use]
pub fn rms_norm_slices(rows: usize) -> usize {
    rows.div_ceil(slice_rows(rows))
}

fn slice_rows(rows: usize) -> usize {
    rows.div_ceil(MOST_SLICES).max(SLICE_ROWS)
}

impl Gpu {
    /// As [`crate::training::rms_norm`], on the device, on a stream, and does not wait for it.
    ///
    /// # Shapes
    /// `weight` f32 [d], `out` [t, d].
    ///
    /// # Errors
    /// As [`Gpu::swiglu_on`].
    ///
    /// # Safety
    /// As [`Gpu::swiglu_on`]; `out` and the reciprocals are written.
    pub unsafe fn rms_norm_on(&self, stream: u64, of: RmsNorm, weight: u64, epsilon: f32, out: u64) -> Result<(), CudaError> {
        of.check([("out", out)], [("weight", weight)])?;
        let mut arguments = Arguments::new();
        arguments.addresses([of.hidden, weight, out, of.reciprocals]);
        arguments.dims([("rows", of.rows), ("width", of.width)])?;
        arguments.float(epsilon);
        let name = of.element.kernel(c"rms_norm_bf16", c"rms_norm_f32");
        // SAFETY: the parameters of the kernel in their order; the addresses are as the caller says.
        unsafe { self.launch(&self.modules.rms_norm, name, of.rows as u64, stream, arguments) }
    }

    /// As [`crate::training::rms_norm_backward`], on the device, on a stream, and does not wait for it.
    ///
    /// # Shapes
    /// `weight` f32 [d], `gradient` (of the output) [t, d], `result` (of the input) [t, d].
    ///
    /// # Errors
    /// As [`Gpu::swiglu_on`].
    ///
    /// # Safety
    /// As [`Gpu::swiglu_on`], `result` being the output.
    pub unsafe fn rms_norm_backward_on(&self, stream: u64, of: RmsNorm, weight: u64, gradient: u64, result: u64) -> Result<(), CudaError> {
        of.check([("gradient", gradient), ("result", result)], [("weight", weight)])?;
        let mut arguments = Arguments::new();
        arguments.addresses([of.hidden, weight, of.reciprocals, gradient, result]);
        arguments.dims([("rows", of.rows), ("width", of.width)])?;
        let name = of.element.kernel(c"rms_norm_backward_bf16", c"rms_norm_backward_f32");
        // SAFETY: as above.
        unsafe { self.launch(&self.modules.rms_norm, name, of.rows as u64, stream, arguments) }
    }

    /// As [`crate::training::rms_norm_weight_gradient`], on the device, on a stream, and does not wait for it.
    ///
    /// # Shapes
    /// `gradient` (of the output) [t, d]; `partials` f32 [s, d] with [`rms_norm_slices`] of t for s, which are written and mean nothing to the
    /// caller; `result` (of the weight) f32 [d].
    ///
    /// # Errors
    /// As [`Gpu::swiglu_on`].
    ///
    /// # Safety
    /// As [`Gpu::swiglu_on`]; `partials` and `result` are written.
    pub unsafe fn rms_norm_weight_gradient_on(
        &self,
        stream: u64,
        of: RmsNorm,
        gradient: u64,
        partials: u64,
        result: u64,
    ) -> Result<(), CudaError> {
        of.check([("gradient", gradient)], [("partials", partials), ("result", result)])?;
        let slices = rms_norm_slices(of.rows);
        let mut arguments = Arguments::new();
        arguments.addresses([of.hidden, of.reciprocals, gradient, partials]);
        arguments.dims([("rows", of.rows), ("width", of.width), ("rows of a slice", slice_rows(of.rows))])?;
        let work = blocks_of_items("chunks of all slices", &[slices, of.element.chunks(of.width)])?;
        let name = of.element.kernel(c"rms_norm_weight_partials_bf16", c"rms_norm_weight_partials_f32");
        // SAFETY: as above.
        unsafe { self.launch(&self.modules.rms_norm, name, work, stream, arguments)? };
        let mut arguments = Arguments::new();
        arguments.addresses([partials, result]);
        arguments.dims([("slices", slices), ("width", of.width)])?;
        let work = (of.width as u64).div_ceil(THREADS);
        // SAFETY: as above; the partials are written before, on the same stream.
        unsafe { self.launch(&self.modules.rms_norm, c"rms_norm_weight_gradient", work, stream, arguments) }
    }
}

impl RmsNorm {
    fn check<const N: usize, const M: usize>(
        self,
        elements: [(&'static str, u64); N],
        floats: [(&'static str, u64); M],
    ) -> Result<(), CudaError> {
        self.element.check([("hidden", self.hidden)])?;
        self.element.check(elements)?;
        ElementType::F32.check([("reciprocals", self.reciprocals)])?;
        ElementType::F32.check(floats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_all_rows_and_stay_few() {
        assert_eq!([0, 1, 64, 65, 16384, 16385, 1 << 20].map(rms_norm_slices), [0, 1, 1, 2, 256, 253, 256]);
        for rows in (1..70_000).step_by(977) {
            let (slices, each) = (rms_norm_slices(rows), slice_rows(rows));
            assert!(slices <= MOST_SLICES && slices * each >= rows && (slices - 1) * each < rows, "{rows}");
        }
    }
}
