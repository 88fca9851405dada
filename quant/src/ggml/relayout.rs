//! MXFP4 from the layout of gpt-oss checkpoints to that of ggml and back, without a change to any number.
//!
//! A checkpoint keeps 16 bytes of codes a block, element 2 i in the low nibble of byte i and element 2 i + 1 in the high one, and
//! the scale bytes in a tensor of their own. ggml keeps the scale before 16 bytes of which byte i has element i in the low nibble
//! and element i + 16 in the high one.
//!
//! Source: ggml `ggml-common.h`, `block_mxfp4`; llama.cpp `convert_hf_to_gguf.py`, `transform_nibble_layout`.

use super::{mxfp4, nibbles};
use crate::error::Error;
use crate::mxfp4 as checkpoint;

fn check_lengths(blocks: usize, scales: usize, ggml: usize) -> Result<(), Error> {
    for (slice, expected, found) in
        [("blocks", scales * checkpoint::BLOCK_BYTES, blocks), ("ggml_blocks", scales * mxfp4::BLOCK_BYTES, ggml)]
    {
        if expected != found {
            return Err(Error::Length { slice, expected, found });
        }
    }
    Ok(())
}

fn check_scale(index: usize, scale: u8) -> Result<(), Error> {
    if scale == mxfp4::RESERVED { Err(Error::ReservedScale { index }) } else { Ok(()) }
}

/// Writes the blocks of ggml's layout.
///
/// # Shapes
/// With n blocks: `blocks` has 16 n bytes, `scales` n, `ggml_blocks` 17 n.
///
/// # Errors
/// [`Error::Length`] when the slices do not fit each other, [`Error::ReservedScale`] for a scale byte of 255; `ggml_blocks` is then
/// partly written.
pub fn checkpoint_to_ggml(blocks: &[u8], scales: &[u8], ggml_blocks: &mut [u8]) -> Result<(), Error> {
    check_lengths(blocks.len(), scales.len(), ggml_blocks.len())?;
    let to = ggml_blocks.as_chunks_mut::<{ mxfp4::BLOCK_BYTES }>().0;
    let from = blocks.as_chunks::<{ nibbles::BYTES }>().0.iter().zip(scales);
    for (index, ((block, &scale), to)) in from.zip(to).enumerate() {
        check_scale(index, scale)?;
        let mut codes = [0; nibbles::BYTES];
        let (low, high) = block.split_at(nibbles::BYTES / 2);
        for (pair, (low, high)) in codes.as_chunks_mut::<2>().0.iter_mut().zip(low.iter().zip(high)) {
            *pair = [low & 0xf | high << 4, low >> 4 | high & 0xf0];
        }
        to[0] = scale;
        to[1..].copy_from_slice(&codes);
    }
    Ok(())
}

/// Writes the blocks and the scales of a checkpoint's layout.
///
/// # Shapes
/// With n blocks: `ggml_blocks` has 17 n bytes, `blocks` 16 n, `scales` n.
///
/// # Errors
/// [`Error::Length`] when the slices do not fit each other, [`Error::ReservedScale`] for a scale byte of 255; `blocks` and `scales`
/// are then partly written.
pub fn ggml_to_checkpoint(ggml_blocks: &[u8], blocks: &mut [u8], scales: &mut [u8]) -> Result<(), Error> {
    check_lengths(blocks.len(), scales.len(), ggml_blocks.len())?;
    let from = ggml_blocks.as_chunks::<{ mxfp4::BLOCK_BYTES }>().0;
    let to = blocks.as_chunks_mut::<{ nibbles::BYTES }>().0.iter_mut().zip(scales);
    for (index, (from, (block, scale))) in from.iter().zip(to).enumerate() {
        check_scale(index, from[0])?;
        *scale = from[0];
        let (low, high) = block.split_at_mut(nibbles::BYTES / 2);
        for (pair, (low, high)) in from[1..].as_chunks::<2>().0.iter().zip(low.iter_mut().zip(high)) {
            *low = pair[0] & 0xf | pair[1] << 4;
            *high = pair[0] >> 4 | pair[1] & 0xf0;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Element by element, from the definition of both layouts.
    fn obvious(blocks: &[u8], scales: &[u8]) -> Vec<u8> {
        let mut ggml = Vec::new();
        for (block, &scale) in blocks.chunks_exact(16).zip(scales) {
            let element = |index: usize| block[index / 2] >> (4 * (index % 2)) & 0xf;
            ggml.push(scale);
            ggml.extend((0..16).map(|byte| element(byte) | element(byte + 16) << 4));
        }
        ggml
    }

    fn to_ggml(blocks: &[u8], scales: &[u8]) -> Result<Vec<u8>, Error> {
        let mut ggml = vec![0; 17 * scales.len()];
        checkpoint_to_ggml(blocks, scales, &mut ggml).map(|()| ggml)
    }

    fn to_checkpoint(ggml: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let (mut blocks, mut scales) = (vec![0; ggml.len() / 17 * 16], vec![0; ggml.len() / 17]);
        ggml_to_checkpoint(ggml, &mut blocks, &mut scales).map(|()| (blocks, scales))
    }

    fn parts() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        (0..70_usize).prop_flat_map(|count| {
            let bytes = |count| proptest::collection::vec(any::<u8>(), count);
            (bytes(16 * count), proptest::collection::vec(0..255_u8, count))
        })
    }

    proptest! {
        #[test]
        fn relayout_equals_the_definition_and_is_undone((blocks, scales) in parts()) {
            let ggml = to_ggml(&blocks, &scales).unwrap();
            prop_assert_eq!(&ggml, &obvious(&blocks, &scales));
            prop_assert_eq!(to_checkpoint(&ggml).unwrap(), (blocks, scales));
        }

        #[test]
        fn relayout_is_undone_the_other_way_too(mut ggml in proptest::collection::vec(any::<[u8; 17]>(), 0..70)) {
            for block in &mut ggml {
                block[0] = block[0].min(254);
            }
            let ggml = ggml.concat();
            let (blocks, scales) = to_checkpoint(&ggml).unwrap();
            prop_assert_eq!(to_ggml(&blocks, &scales).unwrap(), ggml);
        }

        #[test]
        fn relayout_changes_no_value((blocks, mut scales) in parts()) {
            for scale in &mut scales {
                *scale = (*scale).min(252);
            }
            let mut expected = vec![half::bf16::ZERO; 32 * scales.len()];
            crate::mxfp4::unpack(&blocks, &scales, &mut expected).unwrap();
            let mut found = vec![0.0; expected.len()];
            crate::ggml::Type::Mxfp4.dequantize(&to_ggml(&blocks, &scales).unwrap(), &mut found).unwrap();
            let expected: Vec<f32> = expected.into_iter().map(f32::from).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_reserved_scale_is_named_by_its_index() {
        let error = Error::ReservedScale { index: 1 };
        assert_eq!(to_ggml(&[0; 32], &[3, 255]), Err(error));
        let mut ggml = [0; 34];
        ggml[17] = 255;
        assert_eq!(to_checkpoint(&ggml), Err(error));
    }

    #[test]
    fn slices_that_do_not_fit_are_refused() {
        let length = |slice, expected, found| Err(Error::Length { slice, expected, found });
        assert_eq!(checkpoint_to_ggml(&[0; 31], &[0; 2], &mut [0; 34]), length("blocks", 32, 31));
        assert_eq!(checkpoint_to_ggml(&[0; 32], &[0; 2], &mut [0; 33]), length("ggml_blocks", 34, 33));
        assert_eq!(ggml_to_checkpoint(&[0; 35], &mut [0; 32], &mut [0; 2]), length("ggml_blocks", 34, 35));
        assert_eq!(ggml_to_checkpoint(&[0; 34], &mut [0; 48], &mut [0; 2]), length("blocks", 32, 48));
    }
}
