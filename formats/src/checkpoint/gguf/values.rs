//! From the order of values in GGUF to that of a checkpoint.
//!
//! Letters: p parts whose rows take turns in a checkpoint (gate and up, or one alone), r rows of a part, i inputs, s scale blocks of a row.

use ft_quant::Error;
use ft_quant::ggml::relayout::ggml_to_checkpoint;
use ft_quant::mxfp4::BLOCK_BYTES;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::gguf::TensorType;

/// Blocks that one thread decodes at a time.
const PIECE_BLOCKS: usize = 1024;

/// Inputs that are transposed together, each a line of the result that is written from front to back.
const TILE: usize = 32;

/// The values of whole rows as little-endian f32, exactly those that they stand for.
///
/// # Errors
/// That of the first block that stands for no numbers, its index counted from the first block of `bytes`.
pub(super) fn to_f32(tensor_type: TensorType, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    // The type's blocks were checked against the file; both numbers are small.
    let (block_elements, block_bytes) = (tensor_type.block_elements() as usize, tensor_type.block_bytes() as usize);
    let mut values = vec![0; bytes.len() / block_bytes * block_elements * size_of::<f32>()];
    let targets = values.par_chunks_mut(PIECE_BLOCKS * block_elements * size_of::<f32>());
    let decode = |(piece, (stored, target)): (usize, (&[u8], &mut [u8]))| {
        // The bytes of the result need not be aligned to numbers.
        let mut floats = vec![0f32; target.len() / size_of::<f32>()];
        let outcome = match (tensor_type, tensor_type.block_type()) {
            (_, Some(codec)) => codec.dequantize(stored, &mut floats),
            (TensorType::F16, None) => widen(stored, &mut floats, |half| f16::from_le_bytes(half).into()),
            (TensorType::Bf16, None) => widen(stored, &mut floats, |half| bf16::from_le_bytes(half).into()),
            _ => widen(stored, &mut floats, f32::from_le_bytes),
        };
        target.copy_from_slice(bytemuck::cast_slice(&floats));
        outcome.err().map(|error| moved(error, piece * PIECE_BLOCKS))
    };
    let failed = bytes.par_chunks(PIECE_BLOCKS * block_bytes).zip(targets).enumerate().find_map_first(decode);
    failed.map_or(Ok(values), Err)
}

fn widen<const N: usize>(bytes: &[u8], values: &mut [f32], read: impl Fn([u8; N]) -> f32) -> Result<(), Error> {
    bytes.as_chunks::<N>().0.iter().zip(values).for_each(|(bytes, value)| *value = read(*bytes));
    Ok(())
}

/// The error of a piece that begins at block `first`.
fn moved(error: Error, first: usize) -> Error {
    match error {
        Error::ReservedScale { index } => Error::ReservedScale { index: index + first },
        Error::Overflow { index, scale } => Error::Overflow { index: index + first, scale },
        Error::ScaleNotFinite { index } => Error::ScaleNotFinite { index: index + first },
        other => other,
    }
}

/// Writes the blocks and the scales of an MXFP4 matrix in a checkpoint's layout.
///
/// # Shapes
/// `parts` p of bytes [r, s, 17]; `blocks` bytes [r * p, s, 16] and `scales` [r * p, s].
///
/// # Errors
/// The part of the first bad scale, and the scale's index within it.
pub(super) fn packed(parts: &[&[u8]], row_blocks: usize, blocks: &mut [u8], scales: &mut [u8]) -> Result<(), (usize, Error)> {
    let row_bytes = row_blocks * (BLOCK_BYTES + 1);
    let rows = blocks.par_chunks_mut(row_blocks * BLOCK_BYTES).zip(scales.par_chunks_mut(row_blocks));
    let convert = |(row, (blocks, scales)): (usize, (&mut [u8], &mut [u8]))| {
        let (part, row) = (row % parts.len(), row / parts.len());
        let stored = &parts[part][row * row_bytes..(row + 1) * row_bytes];
        ggml_to_checkpoint(stored, blocks, scales).err().map(|error| (part, moved(error, row * row_blocks)))
    };
    rows.enumerate().find_map_first(convert).map_or(Ok(()), Err)
}

/// A matrix of plain elements in a checkpoint's layout: transposed, with the rows of the parts in turn.
///
/// # Shapes
/// `parts` p of elements [r, i]; the result has elements [i, r * p].
pub(super) fn transposed<B: AsRef<[u8]>>(parts: &[B], inputs: usize, element_bytes: usize) -> Vec<u8> {
    let parts: Vec<&[u8]> = parts.iter().map(AsRef::as_ref).collect();
    match element_bytes {
        2 => transpose::<2>(&parts, inputs),
        _ => transpose::<4>(&parts, inputs),
    }
}

fn transpose<const N: usize>(parts: &[&[u8]], inputs: usize) -> Vec<u8> {
    let mut transposed = vec![0; parts.iter().map(|part| part.len()).sum()];
    let outputs = transposed.len() / N / inputs;
    let tiles = transposed.as_chunks_mut::<N>().0.par_chunks_mut(TILE * outputs);
    tiles.enumerate().for_each(|(tile, lines)| {
        for (offset, part) in parts.iter().enumerate() {
            for (row, values) in part.as_chunks::<N>().0.chunks_exact(inputs).enumerate() {
                let column = row * parts.len() + offset;
                values[tile * TILE..].iter().zip(lines.chunks_exact_mut(outputs)).for_each(|(value, line)| line[column] = *value);
            }
        }
    });
    transposed
}

/// The elements of the parts in turn.
///
/// # Shapes
/// `parts` p of elements [e, r]; the result has elements [e, r * p].
pub(super) fn taken_in_turn<B: AsRef<[u8]>>(parts: &[B], element_bytes: usize) -> Vec<u8> {
    let mut elements: Vec<_> = parts.iter().map(|part| part.as_ref().chunks_exact(element_bytes)).collect();
    let mut taken = Vec::with_capacity(parts.iter().map(|part| part.as_ref().len()).sum());
    while let Some(first) = elements.first_mut().and_then(Iterator::next) {
        taken.extend_from_slice(first);
        elements[1..].iter_mut().filter_map(Iterator::next).for_each(|element| taken.extend_from_slice(element));
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_two_parts_take_turns_in_the_columns() {
        // Gate 0..15 and up 100..115, three rows of five inputs.
        for element_bytes in [2, 4] {
            let part = |first: u16| -> Vec<u8> {
                (first..first + 15)
                    .flat_map(
                        |value| if element_bytes == 2 { value.to_le_bytes().to_vec() } else { u32::from(value).to_le_bytes().to_vec() },
                    )
                    .collect()
            };
            let found = transposed(&[part(0), part(100)], 5, element_bytes);
            let found: Vec<u8> = found.chunks_exact(element_bytes).map(|element| element[0]).collect();
            assert_eq!(found[..12], [0, 100, 5, 105, 10, 110, 1, 101, 6, 106, 11, 111]);
            assert_eq!(found[24..], [4, 104, 9, 109, 14, 114]);
        }
    }

    #[test]
    fn tiles_make_no_difference() {
        let inputs = 2 * TILE + 7;
        let part: Vec<u8> = (0..3 * inputs as u16).flat_map(u16::to_le_bytes).collect();
        let found = transposed(&[&part], inputs, 2);
        for (index, element) in found.as_chunks::<2>().0.iter().enumerate() {
            let (input, row) = (index / 3, index % 3);
            assert_eq!(usize::from(u16::from_le_bytes(*element)), row * inputs + input);
        }
    }

    #[test]
    fn biases_take_turns() {
        assert_eq!(taken_in_turn(&[[1u8, 2, 3, 4], [5, 6, 7, 8]], 2), [1, 2, 5, 6, 3, 4, 7, 8]);
    }

    #[test]
    fn packed_rows_take_turns_and_a_bad_scale_is_named() {
        // Two parts of three rows of two blocks; the scale of each block is its number.
        let block = |number: u8| [&[number][..], &[number; 16]].concat();
        let part = |first: u8| -> Vec<u8> { (first..first + 6).flat_map(block).collect() };
        let (gate, mut up) = (part(0), part(100));
        let (mut blocks, mut scales) = ([0; 12 * 16], [0; 12]);
        packed(&[&gate, &up], 2, &mut blocks, &mut scales).unwrap();
        assert_eq!(scales, [0, 1, 100, 101, 2, 3, 102, 103, 4, 5, 104, 105]);
        up[17 * 5] = 255;
        assert_eq!(packed(&[&gate, &up], 2, &mut blocks, &mut scales), Err((1, Error::ReservedScale { index: 5 })));
    }

    #[test]
    fn the_first_block_that_is_no_number_is_named() {
        let count = 3 * PIECE_BLOCKS;
        let mut blocks = vec![0; count * 34];
        for bad in [count - 1, PIECE_BLOCKS + 3] {
            blocks[bad * 34 + 1] = 0x7c;
            assert_eq!(to_f32(TensorType::Q8_0, &blocks), Err(Error::ScaleNotFinite { index: bad }));
        }
    }

    #[test]
    fn floats_become_wider_and_keep_their_values() {
        let halves: Vec<u8> = [1.5f32, -0.1].iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        let expected: Vec<u8> = [1.5f32, f16::from_f32(-0.1).to_f32()].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(to_f32(TensorType::F16, &halves), Ok(expected));
        let halves: Vec<u8> = [1.5f32, -0.1].iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        let expected: Vec<u8> = [1.5f32, bf16::from_f32(-0.1).to_f32()].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(to_f32(TensorType::Bf16, &halves), Ok(expected));
    }
}
