//! Conversions from f32 without branches, so that loops over them become vector instructions. Rust's `as` is defined for every
//! number and stays scalar.

use half::f16;

/// 2^23: from here on f32 has no fractions, and the lower bits of a sum with it are the integer.
const NO_FRACTIONS: f32 = 8_388_608.0;

/// 1.5 * 2^23: the lower bits of a sum with it are the nearest integer beside 2^22, ties to even.
const NO_FRACTIONS_OF_EITHER_SIGN: f32 = 12_582_912.0;

/// The integer part of a number from 0 to 255 that is not negative; some byte for any other.
#[inline(always)]
pub(super) fn floor(value: f32) -> u8 {
    let sum = value + NO_FRACTIONS;
    let rounded_up = sum - NO_FRACTIONS > value;
    (sum.to_bits() - u32::from(rounded_up)) as u8
}

/// The nearest integer to a number of magnitude below 2^22, ties to even; for any other some integer of that magnitude, and 0 for NaN.
///
/// Which integer that is shows in what ggml stores. Source: ggml `ggml-quants.c`, `nearest_int`.
#[inline(always)]
pub(super) fn nearest(value: f32) -> i32 {
    ((value + NO_FRACTIONS_OF_EITHER_SIGN).to_bits() & 0x7f_ffff).cast_signed() - 0x40_0000
}

/// The nearest f16, ties to even: an infinity for what is too large.
#[inline(always)]
pub(super) fn to_f16(value: f32) -> f16 {
    let sign = value.to_bits() >> 16 & 0x8000;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    // The exponent's bias goes from 127 to 15, and 13 bits of the mantissa go, with a carry where they are more than a half.
    let normal = (magnitude.wrapping_sub(112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // One half has the spacing of subnormal f16.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let finite = if magnitude < 113 << 23 { subnormal } else { normal.min(0x7c00) };
    let bits = if magnitude > 0x7f80_0000 { 0x7e00 } else { finite };
    f16::from_bits((sign | bits) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_is_that_of_the_standard_library() {
        for eighth in 0..=2040_u16 {
            let value = f32::from(eighth) / 8.0;
            for value in [value, value.next_up(), if eighth == 0 { 0.0 } else { value.next_down() }] {
                assert_eq!(floor(value), value as u8, "{value}");
            }
        }
    }

    #[test]
    fn nearest_is_that_of_the_standard_library_and_wraps_like_ggml() {
        for quarter in -1000..=1000_i16 {
            let value = f32::from(quarter) / 4.0;
            for value in [value.next_down(), value, value.next_up()] {
                assert_eq!(nearest(value), value.round_ties_even() as i32, "{value}");
            }
        }
        assert_eq!([4_194_303.0, -4_194_304.0].map(nearest), [4_194_303, -4_194_304]);
        let outside = [4_194_304.0, f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY - f32::INFINITY];
        assert_eq!(outside.map(nearest), [-4_194_304, -4_194_304, -4_194_304, 0]);
    }

    /// Every f16, what lies half-way to the next, and the neighbours of both.
    #[test]
    fn f16_is_that_of_the_half_crate() {
        for bits in 0..=0x7c00 {
            let low = f16::from_bits(bits).to_f32();
            let high = if bits >= 0x7bff { 65536.0 } else { f16::from_bits(bits + 1).to_f32() };
            let middle = if low.is_finite() { f32::midpoint(low, high) } else { low };
            for value in [low, low.next_up(), low.next_down(), middle, middle.next_up(), middle.next_down()] {
                for value in [value, -value] {
                    assert_eq!(to_f16(value).to_bits(), f16::from_f32_const(value).to_bits(), "{value}");
                }
            }
        }
        for value in [f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), 1e-8, 2.9e-8, 3.0e-8] {
            assert_eq!(to_f16(value).to_bits(), f16::from_f32_const(value).to_bits(), "{value}");
        }
        assert!(to_f16(f32::NAN).is_nan());
    }
}
