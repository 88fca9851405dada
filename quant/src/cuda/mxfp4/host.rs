//! The kernels on slices of the host, with the signatures and the errors of [`crate::mxfp4`].

use half::bf16;
use half::slice::HalfFloatSliceExt;
use std::sync::PoisonError;

use super::{Layout, PackedPointers, STATUS_BYTES};
use crate::cuda::error::CudaError;
use crate::cuda::gpu::{Buffers, Gpu};
use crate::error::Error;
use crate::float::Float;
use crate::mxfp4::{self, BLOCK_BYTES, BLOCK_ELEMENTS, Packing, check_length};

/// Blocks that are on the device at a time where any number will do: 64 MiB of values.
const CHUNK_BLOCKS: usize = 1 << 20;

impl Gpu {
    /// As [`mxfp4::unpack`], on the device.
    ///
    /// # Shapes
    /// As [`mxfp4::unpack`].
    ///
    /// # Errors
    /// [`CudaError::Codec`] as there, and what goes wrong on the device.
    pub fn unpack(&self, blocks: &[u8], scales: &[u8], out: &mut [bf16]) -> Result<(), CudaError> {
        check_length("blocks", scales.len() * BLOCK_BYTES, blocks.len())?;
        check_length("out", scales.len() * BLOCK_ELEMENTS, out.len())?;
        let chunks = blocks.chunks(CHUNK_BLOCKS * BLOCK_BYTES).zip(scales.chunks(CHUNK_BLOCKS));
        for (chunk, ((blocks, scales), out)) in chunks.zip(out.chunks_mut(CHUNK_BLOCKS * BLOCK_ELEMENTS)).enumerate() {
            let unpacked = self.unpack_at_once(Layout::Rows { num_blocks: scales.len() }, blocks, scales, out);
            unpacked.map_err(|error| later(error, chunk))?;
        }
        Ok(())
    }

    /// As [`mxfp4::unpack_transposed`], on the device, which must hold the matrix in both forms.
    ///
    /// # Shapes
    /// As [`mxfp4::unpack_transposed`].
    ///
    /// # Errors
    /// [`CudaError::Codec`] as there, and what goes wrong on the device.
    pub fn unpack_transposed(&self, blocks: &[u8], scales: &[u8], outputs: usize, values: &mut [bf16]) -> Result<(), CudaError> {
        let row_blocks = scales.len().checked_div(outputs).unwrap_or(0);
        check_length("scales", row_blocks * outputs, scales.len())?;
        check_length("blocks", scales.len() * BLOCK_BYTES, blocks.len())?;
        check_length("values", scales.len() * BLOCK_ELEMENTS, values.len())?;
        self.unpack_at_once(Layout::Columns { num_experts: 1, outputs, row_blocks }, blocks, scales, values)
    }

    /// As [`mxfp4::pack`], on the device. Types other than bf16 are packed by the CPU.
    ///
    /// # Shapes
    /// As [`mxfp4::pack`].
    ///
    /// # Errors
    /// [`CudaError::Codec`] as there, and what goes wrong on the device.
    pub fn pack<T: Float>(
        &self,
        values: &[T],
        packing: Packing,
        hints: Option<&[u8]>,
        blocks: &mut [u8],
        scales: &mut [u8],
    ) -> Result<(), CudaError> {
        let Some(bits) = T::bf16_bits(values) else { return Ok(mxfp4::pack(values, packing, hints, blocks, scales)?) };
        if !values.len().is_multiple_of(BLOCK_ELEMENTS) {
            return Err(Error::PartialBlock { block: BLOCK_ELEMENTS, found: values.len() }.into());
        }
        check_length("blocks", values.len() / 2, blocks.len())?;
        check_length("scales", values.len() / BLOCK_ELEMENTS, scales.len())?;
        let (packing, hints) = packing.with_hints(hints, scales.len())?;
        let chunks = blocks.chunks_mut(CHUNK_BLOCKS * BLOCK_BYTES).zip(scales.chunks_mut(CHUNK_BLOCKS));
        for (chunk, ((blocks, scales), bits)) in chunks.zip(bits.chunks(CHUNK_BLOCKS * BLOCK_ELEMENTS)).enumerate() {
            let hints = hints.map(|hints| &hints[chunk * CHUNK_BLOCKS..][..scales.len()]);
            let packed = self.pack_at_once(Layout::Rows { num_blocks: scales.len() }, bits, packing, hints, blocks, scales);
            packed.map_err(|error| later(error, chunk))?;
        }
        Ok(())
    }

    /// As [`mxfp4::pack_transposed`], on the device, which must hold the matrix in both forms. Types other than bf16 are packed by the CPU.
    ///
    /// # Shapes
    /// As [`mxfp4::pack_transposed`].
    ///
    /// # Errors
    /// [`CudaError::Codec`] as there, and what goes wrong on the device.
    pub fn pack_transposed<T: Float>(
        &self,
        values: &[T],
        outputs: usize,
        packing: Packing,
        hints: Option<&[u8]>,
        blocks: &mut [u8],
        scales: &mut [u8],
    ) -> Result<(), CudaError> {
        let Some(bits) = T::bf16_bits(values) else {
            return Ok(mxfp4::pack_transposed(values, outputs, packing, hints, blocks, scales)?);
        };
        let inputs = values.len().checked_div(outputs).unwrap_or(0);
        check_length("values", inputs * outputs, values.len())?;
        if !inputs.is_multiple_of(BLOCK_ELEMENTS) {
            return Err(Error::PartialBlock { block: BLOCK_ELEMENTS, found: inputs }.into());
        }
        check_length("blocks", values.len() / 2, blocks.len())?;
        check_length("scales", values.len() / BLOCK_ELEMENTS, scales.len())?;
        let (packing, hints) = packing.with_hints(hints, scales.len())?;
        let layout = Layout::Columns { num_experts: 1, outputs, row_blocks: inputs / BLOCK_ELEMENTS };
        self.pack_at_once(layout, bits, packing, hints, blocks, scales)
    }

    fn unpack_at_once(&self, layout: Layout, blocks: &[u8], scales: &[u8], values: &mut [bf16]) -> Result<(), CudaError> {
        if scales.is_empty() {
            return Ok(());
        }
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let buffers = workspace.buffers(&self.context, scales.len(), false)?;
        buffers.blocks.write(blocks, &self.stream)?;
        buffers.scales.write(scales, &self.stream)?;
        buffers.status.fill(STATUS_BYTES, &self.stream)?;
        // SAFETY: the stream is ours; the buffers have room for the layout, whose number of blocks the slices were checked to have, and nobody
        // else uses them while the workspace is locked, which it is until the values were read.
        unsafe { self.unpack_on(self.stream(), layout, buffers.packed(), buffers.values.address, buffers.status.address)? };
        Self::unpack_error(self.status(&buffers)?)?;
        buffers.values.read(bytes_mut(values.reinterpret_cast_mut()), &self.stream)
    }

    fn pack_at_once(
        &self,
        layout: Layout,
        values: &[u16],
        packing: Packing,
        hints: Option<&[u8]>,
        blocks: &mut [u8],
        scales: &mut [u8],
    ) -> Result<(), CudaError> {
        if scales.is_empty() {
            return Ok(());
        }
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let buffers = workspace.buffers(&self.context, scales.len(), hints.is_some())?;
        buffers.values.write(bytes(values), &self.stream)?;
        let hint_address = match hints {
            Some(hints) => buffers.hints.write(hints, &self.stream).map(|()| Some(buffers.hints.address))?,
            None => None,
        };
        buffers.status.fill(STATUS_BYTES, &self.stream)?;
        let (values, status) = (buffers.values.address, buffers.status.address);
        // SAFETY: as in `unpack_at_once`; the hints are as many as the scales.
        unsafe { self.pack_on(self.stream(), layout, packing, values, hint_address, buffers.packed(), status)? };
        Self::pack_error(self.status(&buffers)?)?;
        buffers.blocks.read(blocks, &self.stream)?;
        buffers.scales.read(scales, &self.stream)
    }

    fn status(&self, buffers: &Buffers<'_>) -> Result<[u64; 2], CudaError> {
        let mut bytes = [0; STATUS_BYTES];
        buffers.status.read(&mut bytes, &self.stream)?;
        let words = bytes.as_chunks::<8>().0;
        Ok([u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])])
    }
}

impl Buffers<'_> {
    fn packed(&self) -> PackedPointers {
        PackedPointers { blocks: self.blocks.address, scales: self.scales.address }
    }
}

/// The error of a chunk, with indices of the whole.
fn later(error: CudaError, chunk: usize) -> CudaError {
    let blocks = chunk * CHUNK_BLOCKS;
    match error {
        CudaError::Codec(Error::ReservedScale { index }) => Error::ReservedScale { index: blocks + index }.into(),
        CudaError::Codec(Error::Overflow { index, scale }) => Error::Overflow { index: blocks + index, scale }.into(),
        CudaError::Codec(Error::NotFinite { index }) => Error::NotFinite { index: blocks * BLOCK_ELEMENTS + index }.into(),
        other => other,
    }
}

fn bytes(values: &[u16]) -> &[u8] {
    // SAFETY: every u16 is two bytes, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_mut(values: &mut [u16]) -> &mut [u8] {
    // SAFETY: as above, and every two bytes are a u16.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_of_a_chunk_become_indices_of_the_whole() {
        assert_eq!(later(Error::ReservedScale { index: 2 }.into(), 3), Error::ReservedScale { index: 3 * CHUNK_BLOCKS + 2 }.into());
        let value = 3 * CHUNK_BLOCKS * BLOCK_ELEMENTS + 2;
        assert_eq!(later(Error::NotFinite { index: 2 }.into(), 3), Error::NotFinite { index: value }.into());
        let overflow = |index| CudaError::from(Error::Overflow { index, scale: 253 });
        assert_eq!(later(overflow(2), 1), overflow(CHUNK_BLOCKS + 2));
    }
}
