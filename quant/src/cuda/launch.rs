//! What the launches of all kernels have in common: their parameters, their grids, and what they ask of addresses and sizes.

use std::ffi::{CStr, c_void};

use cudarc::driver::sys::CUstream;

use super::driver::Module;
use super::error::CudaError;
use super::gpu::{Gpu, LazyModule};

/// Threads of a block.
pub(super) const THREADS: u64 = 256;

/// Thread blocks for each multiprocessor: some times what runs at once, so that none has to wait long for the last.
const BLOCKS_PER_MULTIPROCESSOR: u64 = 32;

/// Bytes that a thread reads and writes at a time. Source: `quant/kernels/floating.cuh`.
const CHUNK_BYTES: usize = 16;

/// What elements are kept as; all of them are computed with as f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// The upper half of an f32.
    Bf16,
    /// IEEE single precision.
    F32,
}

impl ElementType {
    /// Bytes of an element.
    #[must_use]
    pub fn num_bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Chunks of a row of `width` elements.
    pub(super) fn chunks(self, width: usize) -> usize {
        width.div_ceil(CHUNK_BYTES / self.num_bytes())
    }

    /// The kernel of this type.
    pub(super) fn kernel(self, bf16: &'static CStr, f32: &'static CStr) -> &'static CStr {
        match self {
            Self::Bf16 => bf16,
            Self::F32 => f32,
        }
    }

    pub(super) fn check<const N: usize>(self, addresses: [(&'static str, u64); N]) -> Result<(), CudaError> {
        addresses.into_iter().try_for_each(|(argument, address)| check_aligned(argument, address, self.num_bytes() as u64))
    }
}

pub(super) fn check_aligned(argument: &'static str, address: u64, alignment: u64) -> Result<(), CudaError> {
    if address.is_multiple_of(alignment) { Ok(()) } else { Err(CudaError::Misaligned { argument, alignment }) }
}

/// The thread blocks that work for `work` of them is given to.
pub(super) fn grid(work: u64, multiprocessors: u32) -> u32 {
    let most = u64::from(multiprocessors.max(1)) * BLOCKS_PER_MULTIPROCESSOR;
    u32::try_from(work.min(most)).unwrap_or(u32::MAX)
}

/// The thread blocks for a thread to each item, of which there are fewer than 2^32.
pub(super) fn blocks_of_items(dimension: &'static str, dims: &[usize]) -> Result<u64, CudaError> {
    let items = dims.iter().fold(1usize, |product, &dim| product.saturating_mul(dim));
    let items = u32::try_from(items).map_err(|_| CudaError::TooLarge { dimension, found: items })?;
    Ok(u64::from(items).div_ceil(THREADS))
}

/// A parameter of a kernel.
enum Argument {
    Number(u32),
    Wide(u64),
}

/// The parameters of a launch, in their order.
pub(super) struct Arguments(Vec<Argument>);

impl Arguments {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(10))
    }

    pub(super) fn addresses<const N: usize>(&mut self, addresses: [u64; N]) {
        self.0.extend(addresses.map(Argument::Wide));
    }

    pub(super) fn number(&mut self, number: u32) {
        self.0.push(Argument::Number(number));
    }

    pub(super) fn float(&mut self, float: f32) {
        self.0.push(Argument::Number(float.to_bits()));
    }

    /// Adds dims by name, none of them larger than what leaves the kernels room to round up to whole chunks in 32 bits.
    pub(super) fn dims<const N: usize>(&mut self, dims: [(&'static str, usize); N]) -> Result<(), CudaError> {
        for (dimension, found) in dims {
            let number = i32::try_from(found).map_err(|_| CudaError::TooLarge { dimension, found })?;
            self.number(number.cast_unsigned());
        }
        Ok(())
    }

    /// # Safety
    /// As [`Module::launch`]: the parameters are those of the kernel.
    pub(super) unsafe fn launch(mut self, module: &Module, name: &CStr, num_blocks: u32, stream: u64) -> Result<(), CudaError> {
        if num_blocks == 0 {
            return Ok(());
        }
        let pointer = |argument: &mut Argument| -> *mut c_void {
            match argument {
                Argument::Number(number) => std::ptr::from_mut(number).cast(),
                Argument::Wide(wide) => std::ptr::from_mut(wide).cast(),
            }
        };
        let mut pointers: Vec<*mut c_void> = self.0.iter_mut().map(pointer).collect();
        let stream: CUstream = std::ptr::with_exposed_provenance_mut(stream as usize);
        // SAFETY: each pointer is to a value of the parameter's size; the driver copies them during the call. The rest is as the caller says.
        unsafe { module.launch(name, num_blocks, stream, &mut pointers) }
    }
}

impl Gpu {
    /// Launches a kernel of a file on as many thread blocks as the device has use for.
    ///
    /// # Safety
    /// As [`Module::launch`].
    pub(super) unsafe fn launch(
        &self,
        file: &LazyModule,
        name: &CStr,
        work: u64,
        stream: u64,
        arguments: Arguments,
    ) -> Result<(), CudaError> {
        let module = self.module(file)?;
        // SAFETY: as the caller says.
        unsafe { arguments.launch(&module, name, grid(work, self.context.multiprocessors), stream) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        assert_eq!(check_aligned("blocks", 4096, 16), Ok(()));
        assert_eq!(check_aligned("blocks", 4104, 16), Err(CudaError::Misaligned { argument: "blocks", alignment: 16 }));
        assert_eq!(ElementType::Bf16.check([("rows", 4098), ("out", 0)]), Ok(()));
        let odd = CudaError::Misaligned { argument: "out", alignment: 4 };
        assert_eq!(ElementType::F32.check([("rows", 4096), ("out", 4098)]), Err(odd));
    }

    #[test]
    fn a_row_that_ends_within_a_chunk_takes_all_of_it() {
        assert_eq!([0, 1, 8, 9].map(|width| ElementType::Bf16.chunks(width)), [0, 1, 1, 2]);
        assert_eq!([0, 1, 4, 5].map(|width| ElementType::F32.chunks(width)), [0, 1, 1, 2]);
    }

    #[test]
    fn work_beyond_32_bits_is_refused() {
        assert_eq!(blocks_of_items("rows", &[0, 5]), Ok(0));
        assert_eq!(blocks_of_items("rows", &[257, 1]), Ok(2));
        assert_eq!(blocks_of_items("rows", &[65536, 65535]), Ok(65536 * 65535 / 256));
        assert_eq!(blocks_of_items("rows", &[65536, 65536]), Err(CudaError::TooLarge { dimension: "rows", found: 1 << 32 }));
        assert_eq!(blocks_of_items("rows", &[usize::MAX, 2]), Err(CudaError::TooLarge { dimension: "rows", found: usize::MAX }));
        let too_wide = CudaError::TooLarge { dimension: "width", found: 1 << 31 };
        assert_eq!(Arguments::new().dims([("rows", 1), ("width", 1 << 31)]), Err(too_wide));
        assert_eq!(grid(1 << 40, 2), 64);
    }
}
