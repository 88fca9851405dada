//! MXFP4 blocks to bf16 on libtorch's threads.

use std::sync::{Mutex, PoisonError};

use ft_quant::Error;
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS, unpack_on_this_thread};
use half::bf16;

use super::parallel::{Shared, for_each_range};

/// Blocks that one thread takes at least.
const GRAIN: usize = 1 << 10;

/// As [`ft_quant::mxfp4::unpack`], which has threads of its own.
///
/// # Shapes
/// With n blocks: `blocks` has 16 n bytes, `scales` n, `values` 32 n elements.
///
/// # Errors
/// Those of [`ft_quant::mxfp4::unpack`].
///
/// # Panics
/// When the slices do not fit each other: the caller's mistake.
pub fn unpack_blocks(blocks: &[u8], scales: &[u8], values: &mut [bf16]) -> Result<(), Error> {
    assert!(blocks.len() == scales.len() * BLOCK_BYTES && values.len() == scales.len() * BLOCK_ELEMENTS, "32 values for each block");
    let first_error: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let shared = Shared::new(values);
    for_each_range(scales.len(), GRAIN, |range| {
        // SAFETY: ranges are disjoint.
        let values = unsafe { shared.part(range.start * BLOCK_ELEMENTS..range.end * BLOCK_ELEMENTS) };
        let blocks = &blocks[range.start * BLOCK_BYTES..range.end * BLOCK_BYTES];
        if let Err(error) = unpack_on_this_thread(blocks, &scales[range.clone()], values) {
            let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
            if first.as_ref().is_none_or(|(start, _)| range.start < *start) {
                *first = Some((range.start, error));
            }
        }
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some((start, Error::ReservedScale { index })) => Err(Error::ReservedScale { index: start + index }),
        Some((start, Error::Overflow { index, scale })) => Err(Error::Overflow { index: start + index, scale }),
        Some((_, error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_errors_are_those_of_the_codec() {
        let count = 5 * GRAIN + 7;
        let blocks: Vec<u8> = (0..count * BLOCK_BYTES).map(|byte| u8::try_from(byte * 31 % 256).unwrap()).collect();
        let mut scales: Vec<u8> = (0..count).map(|block| u8::try_from(block % 253).unwrap()).collect();
        let values = || vec![bf16::NAN; count * BLOCK_ELEMENTS];
        let (mut found, mut expected) = (values(), values());
        unpack_blocks(&blocks, &scales, &mut found).unwrap();
        ft_quant::mxfp4::unpack(&blocks, &scales, &mut expected).unwrap();
        assert!(found == expected);
        for (index, scale) in [(count - 1, 255), (3 * GRAIN + 5, 254), (GRAIN, 255)] {
            scales[index] = scale;
            let expected = ft_quant::mxfp4::unpack(&blocks, &scales, &mut values()).unwrap_err();
            assert_eq!(unpack_blocks(&blocks, &scales, &mut values()).unwrap_err(), expected);
            assert!(matches!(expected, Error::ReservedScale { index: at } | Error::Overflow { index: at, .. } if at == index));
        }
    }
}
