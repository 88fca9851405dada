//! Block types of ggml: what the tensors of a GGUF file are made of.
//!
//! A block holds 32 neighbours of a row, or 256 for the K types. Quantizers write, byte for byte, what ggml's reference quantizers write on a machine that
//! neither fuses a multiplication with an addition nor reorders sums, which is how llama.cpp is built for x86-64; `llama-quantize`
//! without an importance matrix writes the same. Four things differ, each where ggml leaves the road:
//!
//! * NaN and infinities are refused, where ggml computes on.
//! * A block whose scale leaves the range of f16 is written as ggml writes it, and then reported: the file would be refused by
//!   its readers, and llama-quantize stops there too.
//! * A Q6_K block of magnitudes far beyond its range, for which ggml may write zeros that no reader refuses, is reported likewise.
//! * An MXFP4 block whose largest magnitude is below 2^-125 gets scale byte 0, where C leaves the conversion undefined (and x86-64
//!   makes it a byte from 232 up, 255 among them).
//!
//! Files and names of tensors are for the callers, and so are threads: rows are independent.
//!
//! Source: ggml `ggml-quants.c` and `ggml-common.h`; `gguf/constants.py` of the gguf package.

mod affine;
mod block;
mod iq4_nl;
mod lanes;
mod mxfp4;
mod nibbles;
mod q4_0;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
pub mod relayout;
mod rounding;

use crate::error::Error;
use block::{BLOCK_ELEMENTS, K_BLOCK_ELEMENTS};

/// How the values of a block are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Type {
    /// Four bits and an f16 scale: `(q - 8) * d`. Stands in for `Q2_K` and `Q3_K` where rows are no multiple of 256.
    Q4_0,
    /// Five bits and an f16 scale: `(q - 16) * d`. Stands in for `Q4_K` where rows are no multiple of 256.
    Q5_0,
    /// Five bits, an f16 scale and an f16 minimum: `q * d + m`. Stands in for `Q5_K` where rows are no multiple of 256.
    Q5_1,
    /// Eight bits and an f16 scale: `q * d`. Stands in for `Q6_K` where rows are no multiple of 256.
    Q8_0,
    /// Four bits and, for each 32 elements, a scale and a minimum of six bits: `q * d - m`.
    Q4K,
    /// Five bits and, for each 32 elements, a scale and a minimum of six bits: `q * d - m`.
    Q5K,
    /// Six bits and, for each 16 elements, a scale of eight bits: `(q - 32) * d`.
    Q6K,
    /// Four bits that name one of sixteen uneven levels, and an f16 scale. Stands in for the other `IQ` types where rows are no
    /// multiple of 256.
    Iq4Nl,
    /// Four-bit floats under a power of two, as in gpt-oss checkpoints but in another order: see [`relayout`].
    Mxfp4,
}

impl Type {
    /// Every type.
    pub const ALL: [Self; 9] = [Self::Q4_0, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K, Self::Iq4Nl, Self::Mxfp4];

    /// Elements of a block; a row holds a whole number of blocks.
    #[must_use]
    pub const fn block_elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl | Self::Mxfp4 => BLOCK_ELEMENTS,
            Self::Q4K | Self::Q5K | Self::Q6K => K_BLOCK_ELEMENTS,
        }
    }

    /// Bytes of a block with its scale. Source: ggml `ggml-common.h`, the `block_*` structs.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => q4_0::BLOCK_BYTES,
            Self::Q5_0 => q5_0::BLOCK_BYTES,
            Self::Q5_1 => q5_1::BLOCK_BYTES,
            Self::Q8_0 => q8_0::BLOCK_BYTES,
            Self::Q4K => q4_k::BLOCK_BYTES,
            Self::Q5K => q5_k::BLOCK_BYTES,
            Self::Q6K => q6_k::BLOCK_BYTES,
            Self::Iq4Nl => iq4_nl::BLOCK_BYTES,
            Self::Mxfp4 => mxfp4::BLOCK_BYTES,
        }
    }

    /// Writes the blocks of one or more whole rows.
    ///
    /// # Shapes
    /// With n blocks: `values` has `n * block_elements()` elements, `blocks` `n * block_bytes()` bytes.
    ///
    /// # Errors
    /// [`Error::PartialBlock`] or [`Error::Length`] when the slices do not fit each other; [`Error::NotFinite`] for a NaN or an
    /// infinity, `blocks` being partly written then; [`Error::ScaleNotFinite`] with the first block whose values are too large for
    /// the type, every block being written then.
    pub fn quantize(self, values: &[f32], blocks: &mut [u8]) -> Result<(), Error> {
        block::check_lengths(self, values.len(), blocks.len())?;
        match self {
            Self::Q4_0 => block::quantize::<q4_0::Q4_0, _, _>(values, blocks),
            Self::Q5_0 => block::quantize::<q5_0::Q5_0, _, _>(values, blocks),
            Self::Q5_1 => block::quantize::<q5_1::Q5_1, _, _>(values, blocks),
            Self::Q8_0 => block::quantize::<q8_0::Q8_0, _, _>(values, blocks),
            Self::Q4K => block::quantize::<q4_k::Q4K, _, _>(values, blocks),
            Self::Q5K => block::quantize::<q5_k::Q5K, _, _>(values, blocks),
            Self::Q6K => block::quantize::<q6_k::Q6K, _, _>(values, blocks),
            Self::Iq4Nl => block::quantize::<iq4_nl::Iq4Nl, _, _>(values, blocks),
            Self::Mxfp4 => block::quantize::<mxfp4::Mxfp4, _, _>(values, blocks),
        }
    }

    /// Writes the values of one or more whole rows of blocks, as ggml's `dequantize_row_*` do.
    ///
    /// # Shapes
    /// With n blocks: `blocks` has `n * block_bytes()` bytes, `values` `n * block_elements()` elements.
    ///
    /// # Errors
    /// [`Error::PartialBlock`] or [`Error::Length`] when the slices do not fit each other; [`Error::ScaleNotFinite`],
    /// [`Error::ReservedScale`] or [`Error::Overflow`] for a block that stands for no numbers, `values` being partly written then.
    pub fn dequantize(self, blocks: &[u8], values: &mut [f32]) -> Result<(), Error> {
        block::check_lengths(self, values.len(), blocks.len())?;
        match self {
            Self::Q4_0 => block::dequantize::<q4_0::Q4_0, _, _>(blocks, values),
            Self::Q5_0 => block::dequantize::<q5_0::Q5_0, _, _>(blocks, values),
            Self::Q5_1 => block::dequantize::<q5_1::Q5_1, _, _>(blocks, values),
            Self::Q8_0 => block::dequantize::<q8_0::Q8_0, _, _>(blocks, values),
            Self::Q4K => block::dequantize::<q4_k::Q4K, _, _>(blocks, values),
            Self::Q5K => block::dequantize::<q5_k::Q5K, _, _>(blocks, values),
            Self::Q6K => block::dequantize::<q6_k::Q6K, _, _>(blocks, values),
            Self::Iq4Nl => block::dequantize::<iq4_nl::Iq4Nl, _, _>(blocks, values),
            Self::Mxfp4 => block::dequantize::<mxfp4::Mxfp4, _, _>(blocks, values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quantized(kind: Type, values: &[f32]) -> Result<Vec<u8>, Error> {
        let mut blocks = vec![0; values.len() / kind.block_elements() * kind.block_bytes()];
        kind.quantize(values, &mut blocks).map(|()| blocks)
    }

    fn dequantized(kind: Type, blocks: &[u8]) -> Result<Vec<f32>, Error> {
        let mut values = vec![0.0; blocks.len() / kind.block_bytes() * kind.block_elements()];
        kind.dequantize(blocks, &mut values).map(|()| values)
    }

    /// The first block of a scale of 1 (and a minimum of 2) and the given bytes after it, zeros following.
    fn known(scale: &[u8], bytes: &[u8], kind: Type) -> Vec<f32> {
        let mut block = [scale, bytes].concat();
        block.resize(kind.block_bytes(), 0);
        dequantized(kind, &block).unwrap()
    }

    #[test]
    fn known_bytes_stand_for_known_values() {
        let one = [0x00, 0x3c];
        let values = known(&one, &[0x0f, 0x98], Type::Q4_0);
        assert_eq!([values[0], values[16], values[1], values[17]], [7.0, -8.0, 0.0, 1.0]);
        let values = known(&one, &[0x03, 0x00, 0x01, 0x00, 0x1f, 0x20], Type::Q5_0);
        assert_eq!([values[0], values[16], values[1], values[17]], [15.0, 1.0, 0.0, -14.0]);
        let values = known(&[0x00, 0x3c, 0x00, 0x40], &[0x03, 0x00, 0x01, 0x00, 0x1f, 0x20], Type::Q5_1);
        assert_eq!([values[0], values[16], values[1], values[17]], [33.0, 19.0, 18.0, 4.0]);
        let values = known(&one, &[0x7f, 0x80, 0xff], Type::Q8_0);
        assert_eq!(values[..4], [127.0, -128.0, -1.0, 0.0]);
        // Scales of 3 and 35, minima of 5 and 33 for the first and the fifth part.
        let units_and_scales = [0x00, 0x3c, 0x00, 0x40, 0x83, 0, 0, 0, 0x85, 0, 0, 0, 0x13];
        let values = known(&units_and_scales, &[0, 0, 0, 0x0f, 0x50], Type::Q4K);
        assert_eq!([values[0], values[1], values[32], values[128]], [35.0, -10.0, 0.0, -66.0]);
        let values = known(&units_and_scales, &[0, 0, 0, 0x11, 0x02], Type::Q5K);
        assert_eq!([values[0], values[1], values[32], values[128]], [38.0, -10.0, 0.0, 494.0]);
        let mut block = [0; 210];
        (block[0], block[128], block[192], block[196], block[209]) = (0x4f, 0x33, 2, 0x80, 0x3c);
        let values = dequantized(Type::Q6K, &block).unwrap();
        assert_eq!([values[0], values[1], values[64], values[16]], [62.0, -64.0, -2560.0, 0.0]);
        let values = known(&one, &[0xf0, 0x87], Type::Iq4Nl);
        assert_eq!([values[0], values[16], values[1], values[17]], [-127.0, 113.0, -10.0, 1.0]);
        let values = known(&[127], &[0x7f, 0x91], Type::Mxfp4);
        assert_eq!([values[0], values[16], values[1], values[17]], [-6.0, 6.0, 0.5, -0.5]);
    }

    #[test]
    fn zeros_are_stored_as_ggml_stores_them() {
        for (kind, scale, code) in [
            (Type::Q4_0, vec![0x00, 0x80], 0x88),
            (Type::Q5_0, vec![0x00, 0x80, 0xff, 0xff, 0xff, 0xff], 0x00),
            (Type::Q5_1, vec![0; 8], 0x00),
            (Type::Q8_0, vec![0; 2], 0x00),
            (Type::Q4K, vec![], 0x00),
            (Type::Q5K, vec![], 0x00),
            (Type::Q6K, vec![], 0x00),
            (Type::Iq4Nl, vec![0; 2], 0x88),
            (Type::Mxfp4, vec![0], 0x00),
        ] {
            let zeros = vec![0.0; kind.block_elements()];
            let mut expected = scale;
            expected.resize(kind.block_bytes(), code);
            let blocks = quantized(kind, &zeros).unwrap();
            assert_eq!(blocks, expected, "{kind:?}");
            assert_eq!(dequantized(kind, &blocks).unwrap(), zeros, "{kind:?}");
        }
    }

    #[test]
    fn slices_that_do_not_fit_are_refused() {
        for kind in Type::ALL {
            let (block, bytes) = (kind.block_elements(), kind.block_bytes());
            let partial = Err(Error::PartialBlock { block, found: block - 1 });
            assert_eq!(kind.quantize(&vec![0.0; block - 1], &mut vec![0; bytes]), partial);
            assert_eq!(kind.dequantize(&vec![0; bytes], &mut vec![0.0; block - 1]), partial);
            let length = Err(Error::Length { slice: "blocks", expected: 2 * bytes, found: 2 * bytes - 1 });
            assert_eq!(kind.quantize(&vec![0.0; 2 * block], &mut vec![0; 2 * bytes - 1]), length);
            assert_eq!(kind.dequantize(&vec![0; 2 * bytes - 1], &mut vec![0.0; 2 * block]), length);
        }
    }

    #[test]
    fn values_that_are_no_numbers_are_named_by_their_index() {
        for kind in Type::ALL {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let block = kind.block_elements();
                let mut values = vec![1.0; 3 * block];
                (values[block + 8], values[3 * block - 6]) = (value, value);
                assert_eq!(quantized(kind, &values), Err(Error::NotFinite { index: block + 8 }), "{kind:?}");
            }
        }
    }

    #[test]
    fn scales_that_are_no_numbers_are_named_by_their_block() {
        for kind in Type::ALL.into_iter().filter(|kind| *kind != Type::Mxfp4) {
            let (block, bytes) = (kind.block_elements(), kind.block_bytes());
            let scale = if kind == Type::Q6K { bytes - 2 } else { 0 };
            for high in [0x7c, 0x7e, 0xfc] {
                let mut blocks = vec![0; 3 * bytes];
                blocks[bytes + scale + 1] = high;
                assert_eq!(dequantized(kind, &blocks), Err(Error::ScaleNotFinite { index: 1 }), "{kind:?}");
            }
            let mut values = vec![1.0; 3 * block];
            (values[block + 8], values[2 * block + 6]) = (1e9, 1e30);
            assert_eq!(quantized(kind, &values), Err(Error::ScaleNotFinite { index: 1 }), "{kind:?}");
        }
        for kind in [Type::Q5_1, Type::Q4K, Type::Q5K] {
            let mut minimum = vec![0; kind.block_bytes()];
            minimum[3] = 0x7c;
            assert_eq!(dequantized(kind, &minimum), Err(Error::ScaleNotFinite { index: 0 }), "{kind:?}");
        }
        let mut reserved = [0; 34];
        reserved[17] = 255;
        assert_eq!(dequantized(Type::Mxfp4, &reserved), Err(Error::ReservedScale { index: 1 }));
    }

    #[test]
    fn too_large_a_block_does_not_keep_the_others_from_being_written() {
        let mut values = [1.0; 64];
        values[0] = 1e30;
        let mut blocks = [0; 68];
        assert_eq!(Type::Q8_0.quantize(&values, &mut blocks), Err(Error::ScaleNotFinite { index: 0 }));
        assert_eq!(blocks[..4], [0x00, 0x7c, 127, 0]);
        assert_eq!(blocks[34..], quantized(Type::Q8_0, &[1.0; 32]).unwrap());
    }

    #[test]
    fn values_whose_squares_overflow_are_not_lost_in_silence() {
        for exponent in 29..128 {
            let mut values = vec![1.0; 512];
            values[300] = -(exponent as f32).exp2();
            assert_eq!(quantized(Type::Q6K, &values), Err(Error::ScaleNotFinite { index: 1 }), "2^{exponent}");
        }
        let mut values = vec![1.0; 256];
        values[7] = -260e6;
        let back = dequantized(Type::Q6K, &quantized(Type::Q6K, &values).unwrap()).unwrap();
        assert!((back[7] / values[7] - 1.0).abs() < 1e-3, "{}", back[7]);
    }

    /// How far a value may come back from where it was, in units of the block's largest magnitude: half a step, or a whole one where
    /// the largest magnitude of one sign has no code; and 2^-11 of the scale that f16 rounds.
    fn bound(kind: Type) -> f32 {
        let rounding = 2_f32.powi(-11);
        match kind {
            Type::Q4_0 => 1.0 / 8.0 + rounding,
            Type::Q5_0 => 1.0 / 16.0 + rounding,
            // The range is twice the largest magnitude at most.
            Type::Q5_1 => 1.0 / 31.0 + 3.0 * rounding,
            Type::Q8_0 => 0.5 / 127.0 + rounding,
            // Half a code of a range of two peaks at most, and another that the search may clip; half a unit of scale and minimum.
            Type::Q4K => 3.0 / 15.0 + 1.5 / 63.0,
            Type::Q5K => 3.0 / 31.0 + 1.5 / 63.0,
            Type::Q6K => 1.0 / 32.0 + 0.5 / 128.0,
            // Half of the widest gap is 12 units of 127; a scale up to a tenth smaller clips up to a tenth more.
            Type::Iq4Nl => 0.2,
            // 8 units are clipped to 6.
            Type::Mxfp4 => 0.25,
        }
    }

    proptest! {
        #[test]
        fn values_come_back_within_the_bound_of_their_type(
            mut values in proptest::collection::vec(-1.0..=1.0_f32, 256), peak in 0..32_usize, negative: bool, exponent in -6..12_i32
        ) {
            for values in values.chunks_exact_mut(32) {
                values[peak] = if negative { -1.0 } else { 1.0 };
            }
            let factor = (exponent as f32).exp2();
            let values: Vec<f32> = values.into_iter().map(|value| value * factor).collect();
            for kind in Type::ALL {
                let back = dequantized(kind, &quantized(kind, &values).unwrap()).unwrap();
                for (value, back) in values.iter().zip(back) {
                    let error = (value - back).abs() / factor;
                    prop_assert!(error <= bound(kind), "{:?}: {} came back as {}, off by {}", kind, value, back, error);
                }
            }
        }

        #[test]
        fn any_blocks_are_finite_values_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 5 * 210)) {
            for kind in Type::ALL {
                match dequantized(kind, &bytes[..5 * kind.block_bytes()]) {
                    Ok(values) => prop_assert!(values.iter().all(|value| value.is_finite())),
                    Err(Error::ScaleNotFinite { index } | Error::ReservedScale { index } | Error::Overflow { index, .. }) => {
                        prop_assert!(index < 5);
                    }
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
        }

        #[test]
        fn any_values_become_blocks_or_an_error(bits in proptest::collection::vec(any::<u32>(), 512), exponent in 0..255_u32) {
            let any_bits: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
            let one_size: Vec<f32> = bits.iter().map(|bits| f32::from_bits(bits & 0x807f_ffff | exponent << 23)).collect();
            for (kind, values) in Type::ALL.into_iter().flat_map(|kind| [(kind, &any_bits), (kind, &one_size)]) {
                match quantized(kind, values) {
                    Ok(blocks) => prop_assert!(dequantized(kind, &blocks).is_ok()),
                    Err(Error::NotFinite { index }) => prop_assert!(!values[index].is_finite()),
                    Err(error) => prop_assert!(matches!(error, Error::ScaleNotFinite { .. }), "{error}"),
                }
            }
        }
    }
}
