//! Where weights are packed and unpacked.

use half::bf16;

use crate::error::Error;
use crate::float::Float;
use crate::mxfp4::{self, Packing};

/// The processor that does it. Every one gives the same bytes.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Codec {
    /// The cores of this machine, with the threads of the current rayon pool.
    #[default]
    Cpu,
}

impl Codec {
    /// [`mxfp4::pack`].
    ///
    /// # Errors
    /// As there.
    pub fn pack<T: Float>(
        &self,
        values: &[T],
        packing: Packing,
        hints: Option<&[u8]>,
        blocks: &mut [u8],
        scales: &mut [u8],
    ) -> Result<(), Error> {
        match self {
            Self::Cpu => mxfp4::pack(values, packing, hints, blocks, scales),
        }
    }

    /// [`mxfp4::unpack`].
    ///
    /// # Errors
    /// As there.
    pub fn unpack(&self, blocks: &[u8], scales: &[u8], out: &mut [bf16]) -> Result<(), Error> {
        match self {
            Self::Cpu => mxfp4::unpack(blocks, scales, out),
        }
    }

    /// [`mxfp4::pack_transposed`].
    ///
    /// # Errors
    /// As there.
    pub fn pack_transposed<T: Float>(
        &self,
        values: &[T],
        outputs: usize,
        packing: Packing,
        hints: Option<&[u8]>,
        blocks: &mut [u8],
        scales: &mut [u8],
    ) -> Result<(), Error> {
        match self {
            Self::Cpu => mxfp4::pack_transposed(values, outputs, packing, hints, blocks, scales),
        }
    }

    /// [`mxfp4::unpack_transposed`].
    ///
    /// # Errors
    /// As there.
    pub fn unpack_transposed(&self, blocks: &[u8], scales: &[u8], outputs: usize, values: &mut [bf16]) -> Result<(), Error> {
        match self {
            Self::Cpu => mxfp4::unpack_transposed(blocks, scales, outputs, values),
        }
    }
}
