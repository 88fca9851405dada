//! MXFP4 matrices to bf16 on libtorch's threads.

use std::sync::atomic::{AtomicBool, Ordering};

use ft_quant::Error;
use ft_quant::mxfp4::{BLOCK_ELEMENTS, unpack_transposed, unpack_transposed_on_this_thread};
use half::bf16;

use super::parallel::{Shared, for_each_range};

/// As [`ft_quant::mxfp4::unpack_transposed`], which has threads of its own.
///
/// # Shapes
/// `blocks` [out, s, 16] and `scales` [out, s] with `outputs` as out to `values` [32 s, out].
///
/// # Errors
/// Those of [`ft_quant::mxfp4::unpack_transposed`].
pub fn unpack_matrix(blocks: &[u8], scales: &[u8], outputs: usize, values: &mut [bf16]) -> Result<(), Error> {
    let row_blocks = scales.len().checked_div(outputs).unwrap_or(0);
    let block_elements = outputs * BLOCK_ELEMENTS;
    let is_whole = AtomicBool::new(values.len() == row_blocks * block_elements);
    if is_whole.load(Ordering::Relaxed) {
        let shared = Shared::new(values);
        for_each_range(row_blocks, 1, |range| {
            // SAFETY: ranges are disjoint.
            let values = unsafe { shared.part(range.start * block_elements..range.end * block_elements) };
            if unpack_transposed_on_this_thread(blocks, scales, outputs, range.start, values).is_err() {
                is_whole.store(false, Ordering::Relaxed);
            }
        });
    }
    // Once more for the error, which names the first place.
    if is_whole.into_inner() { Ok(()) } else { unpack_transposed(blocks, scales, outputs, values) }
}

#[cfg(test)]
mod tests {
    use ft_quant::mxfp4::BLOCK_BYTES;

    use super::*;

    #[test]
    fn values_and_errors_are_those_of_the_codec() {
        let (outputs, row_blocks) = (37, 11);
        let count = outputs * row_blocks;
        let blocks: Vec<u8> = (0..count * BLOCK_BYTES).map(|byte| u8::try_from(byte * 31 % 256).unwrap()).collect();
        let mut scales: Vec<u8> = (0..count).map(|block| u8::try_from(block % 253).unwrap()).collect();
        let values = || vec![bf16::NAN; count * BLOCK_ELEMENTS];
        let (mut found, mut expected) = (values(), values());
        unpack_matrix(&blocks, &scales, outputs, &mut found).unwrap();
        unpack_transposed(&blocks, &scales, outputs, &mut expected).unwrap();
        assert!(found == expected);
        for (index, scale) in [(count - 1, 255), (3 * row_blocks + 5, 254), (row_blocks, 255)] {
            scales[index] = scale;
            let expected = unpack_transposed(&blocks, &scales, outputs, &mut values()).unwrap_err();
            assert_eq!(unpack_matrix(&blocks, &scales, outputs, &mut values()).unwrap_err(), expected);
            assert!(matches!(expected, Error::ReservedScale { index: at } | Error::Overflow { index: at, .. } if at == index));
        }
        assert!(matches!(unpack_matrix(&blocks, &scales, outputs, &mut values()[1..]), Err(Error::Length { .. })));
        unpack_matrix(&[], &[], 0, &mut []).unwrap();
    }
}
