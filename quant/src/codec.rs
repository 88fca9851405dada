//! Where weights are packed and unpacked.

use half::bf16;

use crate::cuda::{CudaError, Gpu};
use crate::float::Float;
use crate::mxfp4::{self, Packing};

/// The processor that does it. Every one gives the same bytes.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Codec {
    /// The cores of this machine, with the threads of the current rayon pool.
    #[default]
    Cpu,
    /// A GPU. It takes bf16; other floats are packed by the cores of this machine.
    Cuda(Box<Gpu>),
}

impl Codec {
    /// [`mxfp4::pack`].
    ///
    /// # Errors
    /// As there, as [`CudaError::Codec`]; what a device refuses besides.
    pub fn pack<T: Float>(
        &self,
        values: &[T],
        packing: Packing,
        hints: Option<&[u8]>,
        blocks: &mut [u8],
        scales: &mut [u8],
    ) -> Result<(), CudaError> {
        match self {
            Self::Cpu => Ok(mxfp4::pack(values, packing, hints, blocks, scales)?),
            Self::Cuda(gpu) => gpu.pack(values, packing, hints, blocks, scales),
        }
    }

    /// [`mxfp4::unpack`].
    ///
    /// # Errors
    /// As there, as [`CudaError::Codec`]; what a device refuses besides.
    pub fn unpack(&self, blocks: &[u8], scales: &[u8], out: &mut [bf16]) -> Result<(), CudaError> {
        match self {
            Self::Cpu => Ok(mxfp4::unpack(blocks, scales, out)?),
            Self::Cuda(gpu) => gpu.unpack(blocks, scales, out),
        }
    }

    /// [`mxfp4::pack_transposed`].
    ///
    /// # Errors
    /// As there, as [`CudaError::Codec`]; what a device refuses besides.
    pub fn pack_transposed<T: Float>(
        &self,
        values: &[T],
        outputs: usize,
        packing: Packing,
        hints: Option<&[u8]>,
        blocks: &mut [u8],
        scales: &mut [u8],
    ) -> Result<(), CudaError> {
        match self {
            Self::Cpu => Ok(mxfp4::pack_transposed(values, outputs, packing, hints, blocks, scales)?),
            Self::Cuda(gpu) => gpu.pack_transposed(values, outputs, packing, hints, blocks, scales),
        }
    }

    /// [`mxfp4::unpack_transposed`].
    ///
    /// # Errors
    /// As there, as [`CudaError::Codec`]; what a device refuses besides.
    pub fn unpack_transposed(&self, blocks: &[u8], scales: &[u8], outputs: usize, values: &mut [bf16]) -> Result<(), CudaError> {
        match self {
            Self::Cpu => Ok(mxfp4::unpack_transposed(blocks, scales, outputs, values)?),
            Self::Cuda(gpu) => gpu.unpack_transposed(blocks, scales, outputs, values),
        }
    }
}
