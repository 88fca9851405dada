//! E8M0: the power of two that a block shares, stored as its exponent plus 127.

/// Difference between a scale byte and its exponent. Source: OCP MX 1.0, section 5.4.1.
pub(super) const BIAS: i32 = 127;

/// The byte that stands for NaN. Source: OCP MX 1.0, section 5.4.1.
pub(super) const RESERVED: u8 = 255;

/// Largest byte under which every element fits bf16: 6 * 2^(252 - 127) does, 6 * 2^(253 - 127) does not.
pub(super) const LARGEST: u8 = 252;

/// Exponent of the largest element, 6 = 1.5 * 2^2. Source: OCP MX 1.0, section 6.3.
const LARGEST_ELEMENT_EXPONENT: i32 = 2;

/// How a block's scale is chosen. `a` is the block's largest magnitude.
///
/// Every rule stays within 0..=252, so that what is packed can be unpacked: near the largest bf16 `Even` and `Rceil` clip as `Floor` does.
/// A block of zeros gets scale 0, or the hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScaleRule {
    /// Of a given scale, that of `Floor` and the next larger one, the one with the smallest squared error; of equals the given one, then
    /// `Floor`'s. It returns unpacked blocks byte for byte, and stays on their grid after a small update.
    ///
    /// Without scales to start from it is `Even`.
    Hint,
    /// `floor(log2 a) - 2` with the mantissa of `a` rounded to one bit first: `a` lands in 3.5..7 units, so that little is clipped.
    ///
    /// Source: AMD Quark and torchao `EVEN`.
    Even,
    /// Of `Floor`'s scale and the next larger one, the one with the smaller squared error; of equals `Floor`'s.
    Mse,
    /// `floor(log2 a) - 2`: `a` lands in 4..8 units, and what exceeds 6 is clipped. Source: OCP MX 1.0, section 6.3.
    Floor,
    /// `ceil(log2(a / 6))`: `a` lands above 3 and up to 6 units, so that nothing is clipped. Source: Triton `ROUND_UP`, torchao `RCEIL`.
    Rceil,
}

impl ScaleRule {
    /// The scale byte that follows from the largest magnitude of a block alone; for `Hint` and `Mse` the smaller of their candidates.
    pub(super) fn scale(self, largest: f32) -> u8 {
        let bits = largest.to_bits();
        // Of subnormal numbers only the exponent is off, and their scale is 0 anyway.
        let rounded = match self {
            // A quarter of the mantissa's range carries 1.75 and above into the exponent.
            Self::Even => bits + 0x20_0000,
            Self::Hint | Self::Mse | Self::Floor => bits,
            // All above 1.5 is carried.
            Self::Rceil => bits + 0x3f_ffff,
        };
        let byte = (rounded >> 23).cast_signed() - LARGEST_ELEMENT_EXPONENT;
        u8::try_from(byte.clamp(0, i32::from(LARGEST))).unwrap_or(0)
    }
}

/// 2 to the power of `exponent`, which lies in -149..128.
fn power_of_two(exponent: i32) -> f32 {
    // Both factors are normal numbers, and the product of two powers of two is exact where it is representable.
    let normal = |exponent: i32| f32::from_bits(((exponent + 127).cast_unsigned()) << 23);
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
    use half::bf16;

    /// Every positive finite bf16, and the f32 on both sides of it.
    fn magnitudes() -> impl Iterator<Item = f32> {
        (1..0x7f80).map(|bits| bf16::from_bits(bits).to_f32()).flat_map(|value| [value.next_down(), value, value.next_up()])
    }

    /// floor(log2 value), exactly: log2 of f64 rounds up to the next integer for some f32 below a power of two.
    fn binade(value: f32) -> i32 {
        let mut exponent = f64::from(value).log2().round() as i32;
        while f64::from(exponent).exp2() > f64::from(value) {
            exponent -= 1;
        }
        exponent
    }

    fn clamped(exponent: i32) -> u8 {
        (exponent + 127).clamp(0, 252) as u8
    }

    #[test]
    fn floor_is_the_definition_of_the_specification() {
        for largest in magnitudes() {
            assert_eq!(ScaleRule::Floor.scale(largest), clamped(binade(largest) - 2), "{largest}");
        }
        assert_eq!(ScaleRule::Floor.scale(0.0), 0);
    }

    #[test]
    fn even_steps_up_at_seven_eighths_of_a_binade() {
        for largest in magnitudes() {
            let up = i32::from(f64::from(largest) / f64::from(binade(largest)).exp2() >= 1.75);
            assert_eq!(ScaleRule::Even.scale(largest), clamped(binade(largest) - 2 + up), "{largest}");
        }
        assert_eq!(ScaleRule::Even.scale(0.0), 0);
    }

    #[test]
    fn rceil_never_clips_and_is_no_larger_than_that_takes() {
        for largest in magnitudes() {
            let up = i32::from(f64::from(largest) / f64::from(binade(largest)).exp2() > 1.5);
            assert_eq!(ScaleRule::Rceil.scale(largest), clamped(binade(largest) - 2 + up), "{largest}");
        }
        assert_eq!(ScaleRule::Rceil.scale(0.0), 0);
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
