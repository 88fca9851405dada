//! E8M0: the power of two that a block shares, stored as its exponent plus 127.

use half::bf16;

/// Difference between a scale byte and its exponent. Source: OCP MX 1.0, section 5.4.1.
const BIAS: i32 = 127;

/// The byte that stands for NaN. Source: OCP MX 1.0, section 5.4.1.
pub(super) const RESERVED: u8 = 255;

/// Largest byte under which every element fits bf16: 6 * 2^(252 - 127) does, 6 * 2^(253 - 127) does not.
const LARGEST: i32 = 252;

/// Exponent of the largest element, 6 = 1.5 * 2^2. Source: OCP MX 1.0, section 6.3.
const LARGEST_ELEMENT_EXPONENT: i32 = 2;

/// How a block's scale follows from its largest magnitude `a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScaleRule {
    /// `floor(log2 a) - 2` with the mantissa of `a` rounded to one bit first: `a` lands in 3.5..7 units, so that little is clipped.
    ///
    /// Source: AMD Quark and torchao `EVEN`.
    Even,
    /// `floor(log2 a) - 2`: `a` lands in 4..8 units, and what exceeds 6 is clipped. Source: OCP MX 1.0, section 6.3.
    Floor,
}

impl ScaleRule {
    /// The scale byte for a block whose largest magnitude is `largest`; 0 for a block of zeros.
    ///
    /// Never above 252, so that what is packed can be unpacked: in the top quarter of the last binade `Even` clips as `Floor` does.
    pub(super) fn scale(self, largest: bf16) -> u8 {
        let magnitude = i32::from(largest.to_bits() & 0x7fff);
        let rounded = match self {
            // A quarter of the mantissa's range carries 1.75 and above into the exponent.
            Self::Even => magnitude + 0x20,
            Self::Floor => magnitude,
        };
        let byte = (rounded >> 7) - LARGEST_ELEMENT_EXPONENT;
        u8::try_from(byte.clamp(0, LARGEST)).unwrap_or(0)
    }
}

/// 2 to the power of `exponent`, which lies in -149..128.
fn power_of_two(exponent: i32) -> f32 {
    // Both factors are normal numbers, and the product of two powers of two is exact where it is representable.
    let normal = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    normal(exponent / 2) * normal(exponent - exponent / 2)
}

/// The factor that a scale byte stands for. The byte is not 255.
pub(super) fn value(scale: u8) -> f32 {
    power_of_two(i32::from(scale) - BIAS)
}

/// The inverse of [`value`].
pub(super) fn inverse(scale: u8) -> f32 {
    power_of_two(BIAS - i32::from(scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every finite bf16 that is not negative.
    fn magnitudes() -> impl Iterator<Item = bf16> {
        (0..0x7f80).map(bf16::from_bits)
    }

    fn clamped(exponent: f64) -> u8 {
        (exponent + 127.0).clamp(0.0, 252.0) as u8
    }

    #[test]
    fn floor_is_the_definition_of_the_specification() {
        for largest in magnitudes().skip(1) {
            let exponent = largest.to_f64().log2().floor() - 2.0;
            assert_eq!(ScaleRule::Floor.scale(largest), clamped(exponent), "{largest}");
        }
        assert_eq!(ScaleRule::Floor.scale(bf16::ZERO), 0);
    }

    #[test]
    fn even_steps_up_at_seven_eighths_of_a_binade() {
        for largest in magnitudes().skip(1) {
            let value = largest.to_f64();
            let binade = value.log2().floor();
            let exponent = binade - 2.0 + f64::from(u8::from(value / binade.exp2() >= 1.75));
            assert_eq!(ScaleRule::Even.scale(largest), clamped(exponent), "{largest}");
        }
        assert_eq!(ScaleRule::Even.scale(bf16::ZERO), 0);
    }

    #[test]
    fn factors_are_powers_of_two() {
        for scale in 0..=254u8 {
            let exponent = f64::from(i32::from(scale) - 127);
            assert_eq!(f64::from(value(scale)), exponent.exp2(), "{scale}");
            assert_eq!(f64::from(inverse(scale)), (-exponent).exp2(), "{scale}");
        }
    }
}
