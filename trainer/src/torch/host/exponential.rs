//! exp and sigmoid that the compiler can vectorise.

/// Below this, exp is taken as exp of this (1.2e-38, the smallest normal number).
const SMALLEST: f32 = -87.0;
/// Above this, exp is taken as exp of this (1.7e38).
const LARGEST: f32 = 88.0;
/// Adding and subtracting it rounds to an integer: 1.5 * 2^23.
const ROUNDING: f32 = 12_582_912.0;

/// exp(x) within 2 units in the last place for -87..88, held at the ends beyond; a NaN gives a NaN.
///
/// Source: Cody and Waite's reduction with the polynomial of Cephes `expf` (S. Moshier).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = if x < SMALLEST { SMALLEST } else { x };
    let x = if x > LARGEST { LARGEST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDING;
    let exponent = shifted - ROUNDING;
    let rest = x - exponent * 0.693_359_4;
    let rest = rest - exponent * -2.121_944_4e-4;
    let mut sum = 1.987_569_2e-4;
    sum = sum * rest + 1.398_2e-3;
    sum = sum * rest + 8.333_452e-3;
    sum = sum * rest + 4.166_579_6e-2;
    sum = sum * rest + 1.666_666_5e-1;
    sum = sum * rest + 0.5;
    sum = sum * rest * rest + rest + 1.0;
    // The integer stands in the low bits of `shifted`; shifted up, it is a power of two's exponent.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127).wrapping_shl(23));
    sum * power
}

/// 1 / (1 + exp(-x)).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut worst = 0f64;
        for step in 0..174_800 {
            #[expect(clippy::cast_precision_loss, reason = "a test point")]
            let x = -86.9 + step as f32 * 1e-3;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / expected - 1.0).abs());
        }
        assert!(worst < 2.5e-7, "relative error {worst}");
    }

    #[test]
    fn ends_and_nan() {
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert!((sigmoid(-100.0)) < 1e-37 && sigmoid(100.0) == 1.0 && sigmoid(0.0) == 0.5);
    }
}
