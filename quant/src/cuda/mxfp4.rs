//! Launches of the MXFP4 kernels, in place and on host slices.
//!
//! Source of the layouts, alignments and thread mappings: `quant/kernels/mxfp4_unpack.cu` and `mxfp4_pack.cu`.

mod host;

use super::error::CudaError;
use super::gpu::Gpu;
use super::launch::{Arguments, THREADS, check_aligned, grid};
use crate::error::Error;
use crate::mxfp4::{Packing, Rounding, ScaleRule};

/// Bytes of the status that the kernels write: two u64.
pub const STATUS_BYTES: usize = 16;

/// What a thread block does at a time, by the kernels' files.
const TILE_OUTPUTS: u32 = 64;
const TILE_BLOCKS: u32 = 8;

/// How values and blocks lie on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `blocks` [n, 16], `scales` [n], values [n, 32].
    Rows {
        /// n.
        num_blocks: usize,
    },
    /// `blocks` [e, out, s, 16], `scales` [e, out, s], values [e, 32 s, out].
    Columns {
        /// e.
        num_experts: usize,
        /// out.
        outputs: usize,
        /// s.
        row_blocks: usize,
    },
}

impl Layout {
    /// Number of blocks.
    #[must_use]
    pub fn num_blocks(self) -> usize {
        match self {
            Self::Rows { num_blocks } => num_blocks,
            Self::Columns { num_experts, outputs, row_blocks } => num_experts * outputs * row_blocks,
        }
    }
}

/// Where a packed matrix lies on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedPointers {
    /// The blocks, u8.
    pub blocks: u64,
    /// The scales, u8.
    pub scales: u64,
}

impl Gpu {
    /// Unpacks to bf16 on the device, on a stream, and does not wait for it.
    ///
    /// Where a scale is refused, `status` says so (see [`Gpu::unpack_error`]); it holds only ones, [`STATUS_BYTES`] of them, before.
    ///
    /// # Shapes
    /// As [`Layout`] says; values bf16. Columns are fast where `outputs` is a multiple of 8, and full lines where it is one of 64.
    ///
    /// # Errors
    /// [`CudaError::Misaligned`] where blocks are at no multiple of 16 bytes, or values, [`CudaError::TooLarge`] for a dimension of more than
    /// 32 bits; what compiling and launching refuse. What goes wrong on the device later is reported by the next call that waits.
    ///
    /// # Safety
    /// `stream` is a stream (`CUstream`) of this device's primary context, null being the default one. The addresses are of this device, of as
    /// many elements as `layout` says, and stay until the stream has passed the call; nothing else writes them meanwhile.
    pub unsafe fn unpack_on(&self, stream: u64, layout: Layout, packed: PackedPointers, values: u64, status: u64) -> Result<(), CudaError> {
        check_aligned("blocks", packed.blocks, 16)?;
        check_aligned("values", values, 16)?;
        let module = self.module(&self.modules.unpack)?;
        let mut arguments = Arguments::new();
        arguments.addresses([packed.blocks, packed.scales, values]);
        let name = if matches!(layout, Layout::Rows { .. }) { c"mxfp4_unpack_rows_bf16" } else { c"mxfp4_unpack_columns_bf16" };
        let grid = arguments.layout(layout, self.context.multiprocessors)?;
        arguments.addresses([status]);
        // SAFETY: the parameters of both kernels in their order; the addresses are as the caller says.
        unsafe { arguments.launch(&module, name, grid, stream) }
    }

    /// Packs bf16 on the device, on a stream, and does not wait for it.
    ///
    /// A rule that has no use for `hints` does not look at them; [`ScaleRule::Hint`] without them is [`ScaleRule::Even`]. Where a value or a
    /// hint is refused, `status` says so (see [`Gpu::pack_error`]); it holds only ones, [`STATUS_BYTES`] of them, before.
    ///
    /// # Shapes
    /// As [`Layout`] says; values bf16, `hints` as the scales. Columns are fast where `outputs` is even.
    ///
    /// # Errors
    /// As [`Gpu::unpack_on`].
    ///
    /// # Safety
    /// As [`Gpu::unpack_on`].
    #[expect(clippy::too_many_arguments, reason = "the addresses of one launch, all of them its contract")]
    pub unsafe fn pack_on(
        &self,
        stream: u64,
        layout: Layout,
        packing: Packing,
        values: u64,
        hints: Option<u64>,
        packed: PackedPointers,
        status: u64,
    ) -> Result<(), CudaError> {
        check_aligned("values", values, 16)?;
        check_aligned("blocks", packed.blocks, 16)?;
        let module = self.module(&self.modules.pack)?;
        let hints = hints.filter(|_| packing.rule == ScaleRule::Hint);
        // What a rule adds to the bits of the largest magnitude, and whether it looks for the smallest error from there.
        let (round_up, searches) = match packing.rule {
            ScaleRule::Hint if hints.is_some() => (0, true),
            ScaleRule::Mse => (0, true),
            ScaleRule::Hint | ScaleRule::Even => (0x20, false),
            ScaleRule::Floor => (0, false),
            ScaleRule::Rceil => (0x3f, false),
        };
        let is_rows = matches!(layout, Layout::Rows { .. });
        let name = match (is_rows, searches, packing.rounding) {
            (true, false, Rounding::Even) => c"mxfp4_pack_rows_even",
            (true, false, Rounding::TowardZero) => c"mxfp4_pack_rows_toward_zero",
            (true, true, Rounding::Even) => c"mxfp4_pack_rows_search_even",
            (true, true, Rounding::TowardZero) => c"mxfp4_pack_rows_search_toward_zero",
            (false, false, Rounding::Even) => c"mxfp4_pack_columns_even",
            (false, false, Rounding::TowardZero) => c"mxfp4_pack_columns_toward_zero",
            (false, true, Rounding::Even) => c"mxfp4_pack_columns_search_even",
            (false, true, Rounding::TowardZero) => c"mxfp4_pack_columns_search_toward_zero",
        };
        let mut arguments = Arguments::new();
        arguments.addresses([values, hints.unwrap_or(0), packed.blocks, packed.scales]);
        let grid = arguments.layout(layout, self.context.multiprocessors)?;
        arguments.number(round_up);
        arguments.addresses([status]);
        // SAFETY: the parameters of these kernels in their order; the addresses are as the caller says.
        unsafe { arguments.launch(&module, name, grid, stream) }
    }

    /// What the status says after [`Gpu::unpack_on`]: the first scale of all that was refused, as [`crate::mxfp4::unpack`] says it.
    ///
    /// # Errors
    /// [`Error::ReservedScale`] or [`Error::Overflow`].
    pub fn unpack_error(status: [u64; 2]) -> Result<(), Error> {
        match refused(status[0]) {
            None => Ok(()),
            Some((index, 255)) => Err(Error::ReservedScale { index }),
            Some((index, scale)) => Err(Error::Overflow { index, scale }),
        }
    }

    /// What the status says after [`Gpu::pack_on`]: the first hint that was refused, else the first value, as [`crate::mxfp4::pack`] says it.
    ///
    /// # Errors
    /// [`Error::ReservedScale`] or [`Error::NotFinite`].
    pub fn pack_error(status: [u64; 2]) -> Result<(), Error> {
        match (refused(status[1]), refused(status[0])) {
            (Some((index, _)), _) => Err(Error::ReservedScale { index }),
            (None, Some((index, _))) => Err(Error::NotFinite { index }),
            (None, None) => Ok(()),
        }
    }
}

/// Index and byte that a kernel reported. Source: `mxfp4_element.cuh`, `report`.
fn refused(word: u64) -> Option<(usize, u8)> {
    let [byte, ..] = word.to_le_bytes();
    (word != u64::MAX).then(|| (usize::try_from(word >> 8).unwrap_or(usize::MAX), byte))
}

impl Arguments {
    /// Adds the dims of a layout, and gives how many thread blocks it takes.
    fn layout(&mut self, layout: Layout, multiprocessors: u32) -> Result<u32, CudaError> {
        let work = match layout {
            Layout::Rows { num_blocks } => {
                let num_blocks = num_blocks as u64;
                self.addresses([num_blocks]);
                num_blocks.div_ceil(THREADS)
            }
            Layout::Columns { num_experts, outputs, row_blocks } => {
                let dims = [("experts", num_experts), ("outputs", outputs), ("blocks of an output", row_blocks)];
                let mut tiles = 1;
                for ((dimension, found), in_a_tile) in dims.into_iter().zip([1, TILE_OUTPUTS, TILE_BLOCKS]) {
                    // The kernels round up to whole tiles in 32 bits.
                    let number = u32::try_from(found).ok().filter(|&number| number <= u32::MAX - TILE_OUTPUTS);
                    let number = number.ok_or(CudaError::TooLarge { dimension, found })?;
                    self.number(number);
                    tiles *= u64::from(number.div_ceil(in_a_tile));
                }
                tiles
            }
        };
        Ok(grid(work, multiprocessors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_the_cpu_would_say_it() {
        const NONE: u64 = u64::MAX;
        assert_eq!(Gpu::unpack_error([NONE, NONE]), Ok(()));
        assert_eq!(Gpu::unpack_error([7 << 8 | 254, NONE]), Err(Error::Overflow { index: 7, scale: 254 }));
        assert_eq!(Gpu::unpack_error([(1 << 40) << 8 | 255, NONE]), Err(Error::ReservedScale { index: 1 << 40 }));
        assert_eq!(Gpu::pack_error([NONE, NONE]), Ok(()));
        assert_eq!(Gpu::pack_error([0, NONE]), Err(Error::NotFinite { index: 0 }));
        assert_eq!(Gpu::pack_error([3 << 8, 9 << 8 | 255]), Err(Error::ReservedScale { index: 9 }));
    }

    #[test]
    fn grids_cover_the_work_and_stay_below_a_limit() {
        let grid = |layout| Arguments::new().layout(layout, 2);
        assert_eq!(grid(Layout::Rows { num_blocks: 0 }), Ok(0));
        assert_eq!(grid(Layout::Rows { num_blocks: 257 }), Ok(2));
        assert_eq!(grid(Layout::Columns { num_experts: 3, outputs: 65, row_blocks: 9 }), Ok(12));
        assert_eq!(grid(Layout::Columns { num_experts: 3, outputs: 0, row_blocks: 9 }), Ok(0));
        assert_eq!(grid(Layout::Rows { num_blocks: 1 << 40 }), Ok(64));
        let outputs = 1 << 33;
        let too_large = CudaError::TooLarge { dimension: "outputs", found: outputs };
        assert_eq!(grid(Layout::Columns { num_experts: 1, outputs, row_blocks: 1 }), Err(too_large));
    }

    #[test]
    fn a_layout_has_its_blocks() {
        assert_eq!(Layout::Columns { num_experts: 2, outputs: 3, row_blocks: 5 }.num_blocks(), 30);
    }
}
