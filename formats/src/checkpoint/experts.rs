//! The experts' matrices, as they are stored and unpacked.

use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};
use half::bf16;
use rayon::prelude::*;

use crate::safetensors::TensorView;

/// The experts' matrices of a layer, as they lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertWeights<'a> {
    /// Plain floats [e, in, out].
    Float(TensorView<'a>),
    /// MXFP4, each matrix as [out, in].
    Mxfp4 {
        /// Bytes [e, out, s, 16].
        blocks: TensorView<'a>,
        /// Bytes [e, out, s].
        scales: TensorView<'a>,
    },
}

/// Blocks of a row that are unpacked together: a cache line of input, and of output.
const TILE_BLOCKS: usize = 4;

/// Unpacks the matrix of one expert and transposes it, with the threads of the current rayon pool.
///
/// # Shapes
/// `blocks` [output, s, 16] and `scales` [output, s] to [32 s, output].
///
/// # Errors
/// That of the codec, its index counted over `scales`; of several, the one in the first columns.
pub(super) fn unpack_transposed(blocks: &[u8], scales: &[u8], output: usize) -> Result<Vec<bf16>, ft_quant::Error> {
    let row_blocks = scales.len() / output.max(1);
    let mut transposed = vec![bf16::ZERO; scales.len() * BLOCK_ELEMENTS];
    let unpack_tile = |(tile, columns): (usize, &mut [bf16])| {
        let first = tile * TILE_BLOCKS;
        let count = TILE_BLOCKS.min(row_blocks - first);
        let mut values = [bf16::ZERO; TILE_BLOCKS * BLOCK_ELEMENTS];
        let values = &mut values[..count * BLOCK_ELEMENTS];
        for row in 0..output {
            let start = row * row_blocks + first;
            let packed = &blocks[start * BLOCK_BYTES..(start + count) * BLOCK_BYTES];
            ft_quant::mxfp4::unpack(packed, &scales[start..start + count], values).map_err(|error| shifted(error, start))?;
            for (column, value) in columns.chunks_exact_mut(output).zip(&*values) {
                column[row] = *value;
            }
        }
        Ok(())
    };
    let tile_elements = (TILE_BLOCKS * BLOCK_ELEMENTS * output).max(1);
    // Collected, so that of several errors always the same one is told.
    let results: Vec<Result<(), ft_quant::Error>> = transposed.par_chunks_mut(tile_elements).enumerate().map(unpack_tile).collect();
    results.into_iter().collect::<Result<(), _>>().map(|()| transposed)
}

/// `error` with its index counted from the first scale of the expert.
fn shifted(error: ft_quant::Error, start: usize) -> ft_quant::Error {
    match error {
        ft_quant::Error::ReservedScale { index } => ft_quant::Error::ReservedScale { index: start + index },
        ft_quant::Error::Overflow { index, scale } => ft_quant::Error::Overflow { index: start + index, scale },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_transposes() {
        for (output, row_blocks) in [(1, 1), (3, 2), (5, 4), (70, 5), (33, 9)] {
            let scales: Vec<u8> = (0..output * row_blocks).map(|index| 120 + (index % 13) as u8).collect();
            let blocks: Vec<u8> = (0..scales.len() * BLOCK_BYTES).map(|index| (index * 37 % 251) as u8).collect();
            let mut plain = vec![bf16::ZERO; scales.len() * BLOCK_ELEMENTS];
            ft_quant::mxfp4::unpack(&blocks, &scales, &mut plain).unwrap();
            let transposed = unpack_transposed(&blocks, &scales, output).unwrap();
            let input = row_blocks * BLOCK_ELEMENTS;
            for row in 0..output {
                for column in 0..input {
                    assert_eq!(transposed[column * output + row].to_bits(), plain[row * input + column].to_bits());
                }
            }
        }
    }

    #[test]
    fn a_reserved_scale_is_named_by_its_place_in_the_expert() {
        let mut scales = vec![127; 3 * 6];
        scales[11] = 255;
        let error = unpack_transposed(&vec![0; 3 * 6 * BLOCK_BYTES], &scales, 3).unwrap_err();
        assert_eq!(error, ft_quant::Error::ReservedScale { index: 11 });
    }
}
