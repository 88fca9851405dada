//! Floats to the types of GGUF, a stretch of whole rows at a time.

use ft_quant::Float;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::gguf::TensorType;

/// Values that are widened at a time: they stay in the fastest cache, and are whole blocks of every type.
const WIDENED: usize = 1024;

/// All ones in the exponent: an infinity or NaN.
const NOT_FINITE: u32 = 0x7f80_0000;

/// Bytes that `elements` values take, which are whole blocks.
pub(super) fn encoded_bytes(tensor_type: TensorType, elements: usize) -> usize {
    // Of a block there are a few hundred bytes at most.
    elements / tensor_type.block_elements() as usize * tensor_type.block_bytes() as usize
}

/// Writes `values`, which are whole blocks, to `bytes`.
///
/// The error is the index of a value that is no finite number, or that the type has no place for. Of several it is the first one, except
/// that a block whose scale leaves the range of its type is named by its largest value.
pub(super) fn encode<T: Float>(values: &[T], to: TensorType, bytes: &mut [u8]) -> Result<(), usize> {
    let mut buffer = [0.0; WIDENED];
    let chunk_bytes = encoded_bytes(to, WIDENED);
    for (chunk, (values, bytes)) in values.chunks(WIDENED).zip(bytes.chunks_mut(chunk_bytes)).enumerate() {
        let wide = &mut buffer[..values.len()];
        T::widen_into(values, wide);
        let encoded = match to {
            TensorType::F32 => encode_f32(wide, bytes),
            TensorType::F16 => encode_f16(wide, bytes),
            TensorType::Bf16 => encode_bf16(wide, bytes),
            _ => encode_blocks(wide, to, bytes),
        };
        encoded.map_err(|index| chunk * WIDENED + index)?;
    }
    Ok(())
}

/// True when any value is no finite number; without a branch for each, this goes at the speed of memory.
fn any_not_finite(values: &[f32]) -> bool {
    values.iter().fold(false, |any, value| any | (value.to_bits() & NOT_FINITE == NOT_FINITE))
}

fn first_not_finite(values: &[f32]) -> usize {
    values.iter().position(|value| !value.is_finite()).unwrap_or(0)
}

fn encode_f32(values: &[f32], bytes: &mut [u8]) -> Result<(), usize> {
    if any_not_finite(values) {
        return Err(first_not_finite(values));
    }
    bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
    Ok(())
}

fn encode_f16(values: &[f32], bytes: &mut [u8]) -> Result<(), usize> {
    let mut buffer = [f16::ZERO; WIDENED];
    let narrow = &mut buffer[..values.len()];
    narrow.convert_from_f32_slice(values);
    let is_not_finite = |value: &f16| value.to_bits() & 0x7c00 == 0x7c00;
    if narrow.iter().fold(false, |any, value| any | is_not_finite(value)) {
        return Err(narrow.iter().position(is_not_finite).unwrap_or(0));
    }
    bytes.as_chunks_mut().0.iter_mut().zip(narrow).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
    Ok(())
}

fn encode_bf16(values: &[f32], bytes: &mut [u8]) -> Result<(), usize> {
    // Half of the last place, less one where the number before it is even: ties go to even.
    let rounded = |value: f32| (value.to_bits() + 0x7fff + (value.to_bits() >> 16 & 1)) >> 16;
    let becomes_infinite = |value: f32| rounded(value) & 0x7f80 == 0x7f80;
    if any_not_finite(values) {
        return Err(values.iter().position(|&value| !value.is_finite() || becomes_infinite(value)).unwrap_or(0));
    }
    let mut any = false;
    for (bytes, &value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        any |= becomes_infinite(value);
        // The upper half was shifted out.
        *bytes = (rounded(value) as u16).to_le_bytes();
    }
    if any { Err(values.iter().position(|&value| becomes_infinite(value)).unwrap_or(0)) } else { Ok(()) }
}

fn encode_blocks(values: &[f32], to: TensorType, bytes: &mut [u8]) -> Result<(), usize> {
    // Every type that is no float has a codec.
    let Some(codec) = to.block_type() else { return Err(0) };
    match codec.quantize(values, bytes) {
        Ok(()) => Ok(()),
        Err(ft_quant::Error::NotFinite { index }) => Err(index),
        Err(ft_quant::Error::ScaleNotFinite { index }) => {
            let block = codec.block_elements();
            let magnitude = |index: usize| values[index].abs();
            let of_block = index * block..values.len().min((index + 1) * block);
            Err(of_block.max_by(|&left, &right| magnitude(left).total_cmp(&magnitude(right))).unwrap_or(0))
        }
        Err(_) => Err(0),
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use proptest::prelude::*;

    fn encoded<T: Float>(values: &[T], to: TensorType) -> Result<Vec<u8>, usize> {
        let mut bytes = vec![0; encoded_bytes(to, values.len())];
        encode(values, to, &mut bytes).map(|()| bytes)
    }

    #[test]
    fn every_bf16_and_f16_comes_through_or_is_named() {
        for bits in 0..=u16::MAX {
            let (brain, half) = (bf16::from_bits(bits), f16::from_bits(bits));
            let expected = if brain.is_finite() { Ok(()) } else { Err(0) };
            assert_eq!(encoded(&[brain], TensorType::Bf16), expected.map(|()| bits.to_le_bytes().to_vec()));
            assert_eq!(encoded(&[brain], TensorType::F32), expected.map(|()| brain.to_f32().to_le_bytes().to_vec()));
            let expected = if half.is_finite() { Ok(()) } else { Err(0) };
            assert_eq!(encoded(&[half], TensorType::F16), expected.map(|()| bits.to_le_bytes().to_vec()));
            assert_eq!(encoded(&[half], TensorType::Bf16), expected.map(|()| bf16::from_f32(half.to_f32()).to_le_bytes().to_vec()));
            let narrow = f16::from_f32(brain.to_f32());
            let expected = if narrow.is_finite() { Ok(narrow.to_le_bytes().to_vec()) } else { Err(0) };
            assert_eq!(encoded(&[brain], TensorType::F16), expected);
        }
    }

    proptest! {
        #[test]
        fn single_precision_is_rounded_to_the_nearest_or_named(bits: u32, before in 0..3000_usize) {
            let value = f32::from_bits(bits);
            let mut values = vec![1.0_f32; before];
            values.push(value);
            let last = |bytes: Vec<u8>| bytes[bytes.len() - 2..].to_vec();
            let (brain, half) = (bf16::from_f32(value), f16::from_f32(value));
            let brain = if brain.is_finite() { Ok(brain.to_le_bytes().to_vec()) } else { Err(before) };
            let half = if half.is_finite() { Ok(half.to_le_bytes().to_vec()) } else { Err(before) };
            prop_assert_eq!(encoded(&values, TensorType::Bf16).map(last), brain);
            prop_assert_eq!(encoded(&values, TensorType::F16).map(last), half);
        }
    }

    #[test]
    fn the_largest_value_of_a_block_without_a_scale_is_named() {
        let mut values = vec![1.0_f32; 4096];
        (values[3000], values[3001]) = (1e8, -2e8);
        assert_eq!(encoded(&values, TensorType::Q8_0), Err(3001));
        values[3500] = f32::NAN;
        assert_eq!(encoded(&values, TensorType::F32), Err(3500));
        values[3500] = 1.0;
        assert_eq!(encoded(&values, TensorType::F32).unwrap().len(), 4 * 4096);
        assert_eq!(encoded(&values, TensorType::Mxfp4).unwrap().len(), 4096 / 32 * 17);
    }

    #[test]
    fn blocks_are_those_of_the_codec() {
        let values: Vec<bf16> = (0..4096).map(|index| bf16::from_f32((index as f32).sin())).collect();
        let wide: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
        let mut expected = vec![0; 4096 / 32 * 34];
        ft_quant::ggml::Type::Q8_0.quantize(&wide, &mut expected).unwrap();
        assert_eq!(encoded(&values, TensorType::Q8_0).unwrap(), expected);
    }
}
