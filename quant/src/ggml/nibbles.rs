//! Bytes of two codes each: of n elements, element i in the low half of byte i, element i + n / 2 in the high half.
//!
//! Source: ggml `ggml-quants.c`, `dequantize_row_q4_0` and its like.

use super::block::BLOCK_ELEMENTS;

/// Bytes of the codes of a block of 32, two elements a byte.
pub(super) const BYTES: usize = BLOCK_ELEMENTS / 2;

/// Writes the low halves of `codes`.
#[inline(always)]
pub(super) fn pack<const ELEMENTS: usize>(codes: &[u8; ELEMENTS], bytes: &mut [u8]) {
    let (low, high) = codes.split_at(ELEMENTS / 2);
    for (byte, (low, high)) in bytes.iter_mut().zip(low.iter().zip(high)) {
        *byte = low & 0xf | high << 4;
    }
}

/// The code of each element, 0..16.
#[inline(always)]
pub(super) fn unpack<const ELEMENTS: usize>(bytes: &[u8]) -> [u8; ELEMENTS] {
    let mut codes = [0; ELEMENTS];
    let (low, high) = codes.split_at_mut(ELEMENTS / 2);
    for (byte, (low, high)) in bytes.iter().zip(low.iter_mut().zip(high)) {
        *low = byte & 0xf;
        *high = byte >> 4;
    }
    codes
}

/// Bit i is bit 4 of code i.
#[inline(always)]
pub(super) fn fifth_bits(codes: &[u8; BLOCK_ELEMENTS]) -> u32 {
    let mut gathered = [0; 4];
    for (bits, codes) in gathered.iter_mut().zip(codes.as_chunks().0) {
        let ones = u64::from_le_bytes(*codes) >> 4 & 0x0101_0101_0101_0101;
        // The factor moves the bit of each byte to a place of its own in the highest byte, and no two meet on the way.
        *bits = (ones.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
    u32::from_le_bytes(gathered)
}

/// The codes of [`unpack`] with bit i of `fifth_bits` as bit 4 of code i.
#[inline(always)]
pub(super) fn unpack_with_fifth_bits(bytes: &[u8], fifth_bits: u32) -> [u8; BLOCK_ELEMENTS] {
    let mut codes: [u8; BLOCK_ELEMENTS] = unpack(bytes);
    for (index, code) in (0..).zip(&mut codes) {
        *code |= ((fifth_bits >> index & 1) as u8) << 4;
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_half_of_the_elements_is_low() {
        let codes: [u8; BLOCK_ELEMENTS] = std::array::from_fn(|index| index as u8);
        let mut bytes = [0; BYTES];
        pack(&codes, &mut bytes);
        assert_eq!(bytes[..3], [0x00, 0x11, 0x22]);
        assert_eq!(fifth_bits(&codes), 0xffff_0000);
        assert_eq!(unpack_with_fifth_bits(&bytes, 0xffff_0000), codes);
    }
}
