//! Arithmetic on the bits of bf16, one element to a lane: what the compiler turns into the vector instructions that it is allowed.
//!
//! Dividing a normal bf16 by a power of two subtracts from its exponent field. With the offset of a scale taken from its magnitude an
//! element is compared with the codes' midpoints as an integer, and a code becomes a value by adding the offset. Both are exact, so that
//! every processor and every device gives the same bytes.
//!
//! Subnormal elements are off, but below a quarter of the unit for every scale from [`SMALLEST_SCALE`] on, where they are rounded to zero
//! all the same.

use super::{ScaleRule, scale};

/// Lanes that are worked on together: two vectors of 256 bits, or one of 512.
pub(super) const LANES: usize = 32;

/// Bits of a bf16 without its sign.
pub(super) const MAGNITUDE: u16 = 0x7fff;

/// The least bits of a magnitude that is infinite or NaN.
pub(super) const NOT_FINITE: u16 = 0x7f80;

/// The smallest scale under which subnormal elements are certain to be rounded to zero.
pub(super) const SMALLEST_SCALE: u8 = 3;

/// Scales under which every code is a normal bf16.
pub(super) const NORMAL_SCALES: std::ops::RangeInclusive<u8> = 2..=scale::LARGEST;

/// The magnitude 1 in bf16.
const ONE: i16 = 0x3f80;

/// The largest one, 6.
const SIX: i16 = 0x40c0;

/// What a scale adds to the bits of a magnitude.
#[inline(always)]
pub(super) fn offset(scale: u8) -> i16 {
    (i16::from(scale) - 127) << 7
}

/// Bits of an element's magnitude in units of the scale with `offset`; below those of 2^-126 negative.
#[inline(always)]
pub(super) fn in_units(bits: u16, offset: i16) -> i16 {
    (bits & MAGNITUDE).cast_signed().wrapping_sub(offset)
}

/// Rounding as a constant, so that no lane asks for it.
pub(super) trait Rule: Copy {
    const IS_EVEN: bool;
}

#[derive(Clone, Copy)]
pub(super) struct Even;

#[derive(Clone, Copy)]
pub(super) struct TowardZero;

impl Rule for Even {
    const IS_EVEN: bool = true;
}

impl Rule for TowardZero {
    const IS_EVEN: bool = false;
}

/// Calls `$work` with the type that stands for a [`Rounding`].
macro_rules! with_rule {
    ($rounding:expr, $rule:ident => $work:expr) => {
        match $rounding {
            Rounding::Even => {
                type $rule = crate::mxfp4::lanes::Even;
                $work
            }
            Rounding::TowardZero => {
                type $rule = crate::mxfp4::lanes::TowardZero;
                $work
            }
        }
    };
}
pub(super) use with_rule;

/// The code, 0 to 7, of a magnitude in units.
///
/// From 1 on codes are a bit of mantissa below an exponent, as in bf16: the lower six bits are rounded off. Code 1 has a midpoint of its own
/// on each side.
#[inline(always)]
pub(super) fn magnitude_code<R: Rule>(units: i16) -> u16 {
    let half_less = 0x1f - (ONE - (2 << 6));
    let tie = if R::IS_EVEN { (units >> 6) & 1 } else { 0 };
    let rounded = (units.wrapping_add(half_less).wrapping_add(tie) >> 6).clamp(2, 7);
    let from_one = if R::IS_EVEN { units >= 0x3f40 } else { units > 0x3f40 };
    let below_one = i16::from(units > 0x3e80);
    (if from_one { rounded } else { below_one }).cast_unsigned()
}

/// The code, 0 to 15, of an element.
#[inline(always)]
pub(super) fn code<R: Rule>(bits: u16, offset: i16) -> u16 {
    let magnitude = magnitude_code::<R>(in_units(bits, offset));
    let sign = bits >> 12 & 8;
    if R::IS_EVEN || magnitude != 0 { magnitude | sign } else { 0 }
}

/// Bits of the value of a code, 0 to 15, under the scale with `offset`; exact for [`NORMAL_SCALES`].
#[inline(always)]
pub(super) fn value_bits(code: u16, offset: i16) -> u16 {
    let magnitude = code & 7;
    // 1.5 is 0x40 above 1 and so on; a half, the only one without a neighbour at 0x40 below, is at 0x80 below 1.
    let from_one = (ONE - (2 << 6)).wrapping_add(offset).cast_unsigned().wrapping_add(magnitude << 6);
    let bits = from_one.wrapping_sub(if magnitude == 1 { 0x40 } else { 0 });
    (if magnitude == 0 { 0 } else { bits }) | (code & 8) << 12
}

/// Bits of the value, 0 to 6, that a magnitude in units is rounded to.
#[inline(always)]
fn rounded_bits<R: Rule>(units: i16) -> u16 {
    let tie = if R::IS_EVEN { (units >> 6) & 1 } else { 0 };
    let rounded = (units.wrapping_add(0x1f).wrapping_add(tie) & !0x3f).clamp(ONE, SIX);
    let from_one = if R::IS_EVEN { units >= 0x3f40 } else { units > 0x3f40 };
    let below_one = if units > 0x3e80 { ONE - 0x80 } else { 0 };
    (if from_one { rounded } else { below_one }).cast_unsigned()
}

/// Adds to `sums` the squared errors of elements, in units, less those of packing zeros: q (q - 2 t) each.
///
/// The terms are multiples of 2^-9, so that in f32 a sum over a block whose largest magnitude is below 16 units is exact.
#[inline(always)]
pub(super) fn add_errors_above_zero<R: Rule, const N: usize>(sums: &mut [f32; N], values: &[u16; N], offsets: &[i16; N]) {
    let (mut packed, mut doubled) = ([0; N], [0; N]);
    for lane in 0..N {
        let units = in_units(values[lane], offsets[lane]);
        packed[lane] = rounded_bits::<R>(units);
        // Twice a number has an exponent of one more; what is far below the unit is packed as zero anyway.
        doubled[lane] = (units.max(0) + 0x80).cast_unsigned();
    }
    for lane in 0..N {
        let packed = float(packed[lane]);
        sums[lane] += packed * (packed - float(doubled[lane]));
    }
}

/// Copies as many lanes as there are; all of them as one vector.
#[inline(always)]
pub(super) fn copy_lanes(from: &[u16], to: &mut [u16; LANES]) {
    match from.first_chunk() {
        Some(whole) => *to = *whole,
        None => to[..from.len()].copy_from_slice(from),
    }
}

/// The bf16 of these bits.
#[inline(always)]
pub(super) fn float(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The factor from units of `scale` squared to those of `start`, which are at most a factor 2^4 apart.
#[inline(always)]
pub(super) fn in_squared_units(scale: u8, start: u8) -> f32 {
    let exponent = 127 + 2 * (i32::from(scale) - i32::from(start));
    f32::from_bits(exponent.cast_unsigned() << 23)
}

/// Whether `hint` can have the smallest error where `start` puts the largest magnitude between 4 and 8 units.
///
/// Two steps below it the largest element alone loses (4 - 1.5)^2 of `start`'s units squared, more than the 31 others can gain, (1/4)^2
/// each; five above everything is rounded to zero.
#[inline(always)]
pub(super) fn can_win(hint: u8, start: u8) -> bool {
    (-1..=4).contains(&(i16::from(hint) - i16::from(start)))
}

/// The scale by `rule` of the largest magnitude's bits: `ScaleRule::scale`, in 16 bits.
#[inline(always)]
pub(super) fn start_scale(rule: ScaleRule, largest: u16) -> u8 {
    let carry = match rule {
        ScaleRule::Even => 0x20,
        ScaleRule::Rceil => 0x3f,
        _ => 0,
    };
    // Saturating, because the largest may be no number.
    let scale = (largest.saturating_add(carry) >> 7).saturating_sub(2).min(u16::from(scale::LARGEST));
    scale as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mxfp4::Rounding;
    use crate::mxfp4::element::VALUES;
    use half::bf16;

    fn codes_are_those_of_the_definition<R: Rule>(rounding: Rounding) {
        for scale in SMALLEST_SCALE..=scale::LARGEST {
            for bits in 0..=u16::MAX {
                let value = bf16::from_bits(bits);
                let units = value.to_f32() * scale::inverse(scale);
                // Beyond 2^127 units the difference of the exponents leaves 16 bits; no rule picks such a scale.
                if value.is_finite() && units.abs() < 1e38 {
                    let expected = u16::from(rounding.nearest_code(units));
                    assert_eq!(code::<R>(bits, offset(scale)), expected, "{value} under {scale}");
                }
            }
        }
    }

    #[test]
    fn every_bf16_under_every_scale_gets_the_code_of_the_definition() {
        codes_are_those_of_the_definition::<Even>(Rounding::Even);
        codes_are_those_of_the_definition::<TowardZero>(Rounding::TowardZero);
    }

    #[test]
    fn every_code_under_every_normal_scale_has_the_value_of_the_definition() {
        for scale in NORMAL_SCALES {
            for code in 0..16u16 {
                let expected = bf16::from_f32(VALUES[usize::from(code)] * scale::value(scale));
                assert_eq!(value_bits(code, offset(scale)), expected.to_bits(), "{code} under {scale}");
            }
        }
    }

    #[test]
    fn errors_are_those_of_the_definition() {
        let all: Vec<u16> = (0..0x4180).collect();
        for bits in all.as_chunks::<LANES>().0 {
            for scale in [120, 127, 128] {
                let mut errors = [0.0; LANES];
                add_errors_above_zero::<Even, LANES>(&mut errors, bits, &[offset(scale); LANES]);
                for (&bits, found) in bits.iter().zip(errors) {
                    let value = f64::from(float(bits) * scale::inverse(scale));
                    let packed = f64::from(VALUES[usize::from(Rounding::Even.nearest_code(value as f32))]);
                    let expected = packed * (packed - 2.0 * value);
                    assert_eq!(f64::from(found), expected, "{value}");
                    assert_eq!((found * 512.0).fract(), 0.0, "{value}");
                }
            }
        }
    }

    #[test]
    fn scales_are_those_of_the_definition() {
        for rule in [ScaleRule::Hint, ScaleRule::Even, ScaleRule::Mse, ScaleRule::Floor, ScaleRule::Rceil] {
            for bits in 0..NOT_FINITE {
                assert_eq!(start_scale(rule, bits), rule.scale(float(bits)), "{bits:#x} by {rule:?}");
            }
        }
    }
}
