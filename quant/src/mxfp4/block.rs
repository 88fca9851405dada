//! Whole blocks: the scalar reference that faster codecs are compared with.

use half::bf16;

use super::{BLOCK_BYTES, BLOCK_ELEMENTS, ScaleRule, element, scale};
use crate::error::Error;

/// Unpacks blocks to bf16, which holds every value exactly.
///
/// # Shapes
/// With n blocks: `blocks` has 16 n bytes, `scales` n, `out` 32 n elements.
///
/// # Errors
/// [`Error::Length`] when the slices do not fit each other, [`Error::ReservedScale`] for a scale byte of 255,
/// [`Error::Overflow`] where bf16 cannot hold the value; `out` is then partly written.
pub fn unpack(blocks: &[u8], scales: &[u8], out: &mut [bf16]) -> Result<(), Error> {
    check_length("blocks", scales.len() * BLOCK_BYTES, blocks.len())?;
    check_length("out", scales.len() * BLOCK_ELEMENTS, out.len())?;
    let packed = blocks.chunks_exact(BLOCK_BYTES).zip(scales);
    for (index, ((block, &scale), out)) in packed.zip(out.chunks_exact_mut(BLOCK_ELEMENTS)).enumerate() {
        if scale == scale::RESERVED {
            return Err(Error::ReservedScale { index });
        }
        let factor = scale::value(scale);
        let values = element::VALUES.map(|value| bf16::from_f32(value * factor));
        for (pair, byte) in out.chunks_exact_mut(2).zip(block) {
            pair[0] = values[usize::from(byte & 0xf)];
            pair[1] = values[usize::from(byte >> 4)];
        }
        // Only the two largest scales can exceed bf16.
        if scale >= 253 && out.iter().any(|value| !value.is_finite()) {
            return Err(Error::Overflow { index, scale });
        }
    }
    Ok(())
}

/// Packs bf16 values into blocks, each element rounded to the nearest code with ties to even, under the scale of `rule`.
///
/// # Shapes
/// With n blocks: `values` has 32 n elements, `blocks` 16 n bytes, `scales` n.
///
/// # Errors
/// [`Error::PartialBlock`] or [`Error::Length`] when the slices do not fit each other, [`Error::NotFinite`] for a NaN or an
/// infinity; `blocks` and `scales` are then partly written.
pub fn pack(values: &[bf16], rule: ScaleRule, blocks: &mut [u8], scales: &mut [u8]) -> Result<(), Error> {
    if !values.len().is_multiple_of(BLOCK_ELEMENTS) {
        return Err(Error::PartialBlock { block: BLOCK_ELEMENTS, found: values.len() });
    }
    check_length("blocks", values.len() / 2, blocks.len())?;
    check_length("scales", values.len() / BLOCK_ELEMENTS, scales.len())?;
    let packed = blocks.chunks_exact_mut(BLOCK_BYTES).zip(scales);
    for (index, (values, (block, scale))) in values.chunks_exact(BLOCK_ELEMENTS).zip(packed).enumerate() {
        let mut largest = 0;
        for (offset, value) in values.iter().enumerate() {
            if !value.is_finite() {
                return Err(Error::NotFinite { index: index * BLOCK_ELEMENTS + offset });
            }
            // Without the sign, the bits of finite numbers are in the order of their magnitudes.
            largest = largest.max(value.to_bits() & 0x7fff);
        }
        *scale = rule.scale(bf16::from_bits(largest));
        let factor = scale::inverse(*scale);
        let code = |value: bf16| element::nearest_code(value.to_f32() * factor);
        for (byte, pair) in block.iter_mut().zip(values.chunks_exact(2)) {
            *byte = code(pair[0]) | (code(pair[1]) << 4);
        }
    }
    Ok(())
}

fn check_length(slice: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { slice, expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A block in which every code stands twice: byte i holds code i low, and code i high.
    fn every_code() -> [u8; BLOCK_BYTES] {
        std::array::from_fn(|code| code as u8 * 0x11)
    }

    fn unpacked(block: &[u8], scale: u8) -> Result<Vec<bf16>, Error> {
        let mut out = vec![bf16::ZERO; BLOCK_ELEMENTS];
        unpack(block, &[scale], &mut out).map(|()| out)
    }

    fn packed(values: &[bf16], rule: ScaleRule) -> (Vec<u8>, Vec<u8>) {
        let mut blocks = vec![0; values.len() / 2];
        let mut scales = vec![0; values.len() / BLOCK_ELEMENTS];
        pack(values, rule, &mut blocks, &mut scales).unwrap();
        (blocks, scales)
    }

    #[test]
    fn low_nibble_comes_first() {
        let mut block = [0; BLOCK_BYTES];
        block[0] = 0x72;
        block[15] = 0x9f;
        let out = unpacked(&block, 127).unwrap();
        assert_eq!([out[0], out[1], out[30], out[31]].map(bf16::to_f32), [1.0, 6.0, -6.0, -0.5]);
    }

    #[test]
    fn every_code_under_every_scale_is_exact() {
        for scale in 0..=252u8 {
            let out = unpacked(&every_code(), scale).unwrap();
            for (code, pair) in out.chunks_exact(2).enumerate() {
                let expected = f64::from(element::VALUES[code]) * f64::from(i32::from(scale) - 127).exp2();
                for value in pair {
                    assert_eq!(value.to_f64(), expected, "code {code}, scale {scale}");
                    assert_eq!(value.is_sign_negative(), code >= 8, "code {code}, scale {scale}");
                }
            }
        }
    }

    #[test]
    fn what_exceeds_bf16_is_an_error_never_an_infinity() {
        for scale in [253, 254] {
            for code in 0..16u8 {
                let magnitude = f64::from(element::VALUES[usize::from(code)].abs());
                let exceeds = magnitude * f64::from(i32::from(scale) - 127).exp2() > bf16::MAX.to_f64();
                let block = [code * 0x11; BLOCK_BYTES];
                let expected = exceeds.then_some(Error::Overflow { index: 0, scale });
                assert_eq!(unpacked(&block, scale).err(), expected, "code {code}, scale {scale}");
            }
        }
    }

    #[test]
    fn the_reserved_scale_is_named_by_its_index() {
        let mut out = vec![bf16::ZERO; 3 * BLOCK_ELEMENTS];
        let error = unpack(&[0; 3 * BLOCK_BYTES], &[1, 2, 255], &mut out).unwrap_err();
        assert_eq!(error, Error::ReservedScale { index: 2 });
    }

    #[test]
    fn slices_that_do_not_fit_are_refused() {
        let mut out = vec![bf16::ZERO; BLOCK_ELEMENTS];
        let error = unpack(&[0; 15], &[0], &mut out).unwrap_err();
        assert_eq!(error, Error::Length { slice: "blocks", expected: 16, found: 15 });
        let error = unpack(&[0; 32], &[0, 0], &mut out).unwrap_err();
        assert_eq!(error, Error::Length { slice: "out", expected: 64, found: 32 });
        let error = pack(&out[..31], ScaleRule::Even, &mut [0; 16], &mut [0]).unwrap_err();
        assert_eq!(error, Error::PartialBlock { block: 32, found: 31 });
        let error = pack(&out, ScaleRule::Even, &mut [0; 16], &mut []).unwrap_err();
        assert_eq!(error, Error::Length { slice: "scales", expected: 1, found: 0 });
    }

    #[test]
    fn values_that_are_no_numbers_are_named_by_their_index() {
        for value in [bf16::NAN, bf16::INFINITY, bf16::NEG_INFINITY] {
            let mut values = vec![bf16::ONE; 2 * BLOCK_ELEMENTS];
            values[40] = value;
            let error = pack(&values, ScaleRule::Floor, &mut [0; 32], &mut [0; 2]).unwrap_err();
            assert_eq!(error, Error::NotFinite { index: 40 });
        }
    }

    #[test]
    fn zeros_keep_their_sign() {
        let mut values = [bf16::ZERO; BLOCK_ELEMENTS];
        values[1] = bf16::NEG_ZERO;
        for rule in [ScaleRule::Even, ScaleRule::Floor] {
            let (blocks, scales) = packed(&values, rule);
            assert_eq!((blocks[0], scales[0]), (0x80, 0));
        }
    }

    /// Each finite bf16 is once the largest of a block: what comes back is finite and within half a step, or clipped at 6 units.
    #[test]
    fn every_magnitude_packs_to_what_can_be_unpacked() {
        for rule in [ScaleRule::Even, ScaleRule::Floor] {
            for bits in 0..0x7f80 {
                let largest = bf16::from_bits(bits);
                let values = [largest; BLOCK_ELEMENTS];
                let (blocks, scales) = packed(&values, rule);
                let back = unpacked(&blocks, scales[0]).unwrap()[0].to_f64();
                let unit = f64::from(scale::value(scales[0]));
                let bound = if largest.to_f64() > 6.0 * unit { largest.to_f64() - 6.0 * unit } else { unit };
                assert!((back - largest.to_f64()).abs() <= bound, "{largest} came back as {back} under {rule:?}");
            }
        }
    }

    proptest! {
        /// Values of unpacked blocks come back as they are when the block uses its scale's range.
        #[test]
        fn blocks_with_a_large_code_survive_the_way_to_bf16_and_back(
            mut block in proptest::array::uniform16(any::<u8>()), scale in 0..=252u8, position in 0..BLOCK_BYTES
        ) {
            // Code 6 (4 units) as the largest is what both rules pick the same scale for.
            for byte in &mut block {
                for (code, clipped) in [(0x07, 0x06), (0x70, 0x60)] {
                    if *byte & code == code {
                        *byte = *byte & !code | clipped;
                    }
                }
            }
            block[position] = block[position] & 0xf0 | 6;
            let values = unpacked(&block, scale).unwrap();
            for rule in [ScaleRule::Even, ScaleRule::Floor] {
                prop_assert_eq!(packed(&values, rule), (block.to_vec(), vec![scale]));
            }
        }

        /// Whatever the block, packing what was unpacked changes no value.
        #[test]
        fn unpacked_values_are_fixed_points(block in proptest::array::uniform16(any::<u8>()), scale in 0..=252u8) {
            let values = unpacked(&block, scale).unwrap();
            for rule in [ScaleRule::Even, ScaleRule::Floor] {
                let (blocks, scales) = packed(&values, rule);
                let bits = |values: &[bf16]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&unpacked(&blocks, scales[0]).unwrap()), bits(&values));
            }
        }

        /// Elements are the nearest ones under the chosen scale, by the definition in f64.
        #[test]
        fn elements_are_nearest(bits in proptest::collection::vec(0..0x7f80u16, BLOCK_ELEMENTS)) {
            let values: Vec<bf16> = bits.into_iter().map(bf16::from_bits).collect();
            for rule in [ScaleRule::Even, ScaleRule::Floor] {
                let (blocks, scales) = packed(&values, rule);
                let unit = f64::from(scale::value(scales[0]));
                for (found, value) in unpacked(&blocks, scales[0]).unwrap().iter().zip(&values) {
                    let error = (found.to_f64() - value.to_f64()).abs();
                    let least = element::VALUES[..8]
                        .iter()
                        .map(|&code| (f64::from(code) * unit - value.to_f64()).abs())
                        .fold(f64::INFINITY, f64::min);
                    prop_assert_eq!(error, least);
                }
            }
        }
    }
}
