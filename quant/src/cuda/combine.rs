//! Launches of the weighted sum of expert rows. Source of layout and thread mapping: `quant/kernels/combine.cu`.
//!
//! Letters: n rows, t tokens, a active experts per token, d width.

use super::error::CudaError;
use super::gpu::Gpu;
use super::launch::{Arguments, ElementType, blocks_of_items};

/// What rows and weights are kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CombineTypes {
    /// Both bf16.
    Bf16,
    /// Rows bf16, weights f32.
    Bf16WithF32Weights,
    /// Both f32.
    F32,
}

impl CombineTypes {
    /// The types of rows and of weights.
    #[must_use]
    pub fn elements(self) -> (ElementType, ElementType) {
        match self {
            Self::Bf16 => (ElementType::Bf16, ElementType::Bf16),
            Self::Bf16WithF32Weights => (ElementType::Bf16, ElementType::F32),
            Self::F32 => (ElementType::F32, ElementType::F32),
        }
    }
}

/// The input of a sum, on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combine {
    /// Of rows and weights, and of the gradients of each.
    pub types: CombineTypes,
    /// n.
    pub num_rows: usize,
    /// t.
    pub tokens: usize,
    /// a.
    pub active: usize,
    /// d.
    pub width: usize,
    /// [n, d].
    pub rows: u64,
    /// i32 [t, a]. One that is no row makes what is summed over it NaN.
    pub row_of_slot: u64,
    /// [t, a]; all 1 where there are none.
    pub weights: Option<u64>,
}

impl Gpu {
    /// As [`crate::training::combine`], on the device, on a stream, and does not wait for it. With a = 1 and no weights it gathers rows, bit
    /// for bit.
    ///
    /// # Shapes
    /// `out` [t, d], of the type of the rows.
    ///
    /// # Errors
    /// As [`Gpu::swiglu_on`].
    ///
    /// # Safety
    /// As [`Gpu::swiglu_on`].
    pub unsafe fn combine_on(&self, stream: u64, of: Combine, out: u64) -> Result<(), CudaError> {
        of.types.elements().0.check([("out", out)])?;
        let mut arguments = of.inputs()?;
        arguments.addresses([out]);
        of.dims(&mut arguments)?;
        let work = blocks_of_items("chunks of all tokens", &[of.tokens, of.types.elements().0.chunks(of.width)])?;
        let name = match of.types {
            CombineTypes::Bf16 => c"combine_bf16_bf16",
            CombineTypes::Bf16WithF32Weights => c"combine_bf16_f32",
            CombineTypes::F32 => c"combine_f32_f32",
        };
        // SAFETY: the parameters of the kernel in their order; the addresses are as the caller says.
        unsafe { self.launch(&self.modules.combine, name, work, stream, arguments) }
    }

    /// As [`crate::training::combine_backward`], on the device, on a stream, and does not wait for it. A row that no slot names is not written.
    ///
    /// # Shapes
    /// `gradient` (of the output) [t, d], `row_gradients` [n, d] and `weight_gradients` [t, a] where they are wanted.
    ///
    /// # Errors
    /// As [`Gpu::swiglu_on`].
    ///
    /// # Safety
    /// As [`Gpu::swiglu_on`]; the gradients of rows and weights are written. No two slots name one row. The rows are read for the gradients of
    /// the weights alone.
    pub unsafe fn combine_backward_on(
        &self,
        stream: u64,
        of: Combine,
        gradient: u64,
        row_gradients: Option<u64>,
        weight_gradients: Option<u64>,
    ) -> Result<(), CudaError> {
        let (row_gradients, weight_gradients) = (row_gradients.unwrap_or(0), weight_gradients.unwrap_or(0));
        of.types.elements().0.check([("gradient", gradient), ("row_gradients", row_gradients)])?;
        of.types.elements().1.check([("weight_gradients", weight_gradients)])?;
        let mut arguments = of.inputs()?;
        arguments.addresses([gradient, row_gradients, weight_gradients]);
        of.dims(&mut arguments)?;
        // A warp for each slot.
        let work = blocks_of_items("slots", &[of.tokens, of.active]).map(|blocks| blocks * 32)?;
        let name = match of.types {
            CombineTypes::Bf16 => c"combine_backward_bf16_bf16",
            CombineTypes::Bf16WithF32Weights => c"combine_backward_bf16_f32",
            CombineTypes::F32 => c"combine_backward_f32_f32",
        };
        // SAFETY: as above.
        unsafe { self.launch(&self.modules.combine, name, work, stream, arguments) }
    }
}

impl Combine {
    fn inputs(self) -> Result<Arguments, CudaError> {
        let weights = self.weights.unwrap_or(0);
        let (row, weight) = self.types.elements();
        row.check([("rows", self.rows)])?;
        weight.check([("weights", weights)])?;
        ElementType::F32.check([("row_of_slot", self.row_of_slot)])?;
        let mut arguments = Arguments::new();
        arguments.addresses([self.rows, self.row_of_slot, weights]);
        Ok(arguments)
    }

    fn dims(self, arguments: &mut Arguments) -> Result<(), CudaError> {
        arguments.dims([("rows", self.num_rows), ("tokens", self.tokens), ("active", self.active), ("width", self.width)])
    }
}
