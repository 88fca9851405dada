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

/// Below this, exp in f64 is taken as exp of this (3e-308, near the smallest normal number).
const SMALLEST_F64: f64 = -708.0;
/// Above this, exp in f64 is taken as exp of this (8e307).
const LARGEST_F64: f64 = 709.0;
/// Adding and subtracting it rounds to an integer: 1.5 * 2^52.
const ROUNDING_F64: f64 = 6_755_399_441_055_744.0;

/// exp(x) in f64 within 3 units in the last place for -708..709, held at the ends beyond; a NaN gives a NaN.
///
/// Source: Cody and Waite's reduction, then the Taylor series, which up to the 13th power is off by less than 1e-17 where |x| <= ln(2) / 2.
#[inline(always)]
pub(super) fn exp_f64(x: f64) -> f64 {
    let x = if x < SMALLEST_F64 { SMALLEST_F64 } else { x };
    let x = if x > LARGEST_F64 { LARGEST_F64 } else { x };
    let shifted = x * std::f64::consts::LOG2_E + ROUNDING_F64;
    let exponent = shifted - ROUNDING_F64;
    // ln(2) in two parts, the first with so few bits that its product with an exponent is exact.
    let rest = x - exponent * 6.931_471_803_691_238e-1;
    let rest = rest - exponent * 1.908_214_929_270_587_7e-10;
    let mut sum = 1.0 / 6_227_020_800.0;
    for factorial in [479_001_600.0, 39_916_800.0, 3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0] {
        sum = sum * rest + 1.0 / factorial;
    }
    sum = sum * rest * rest + rest + 1.0;
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023).wrapping_shl(52));
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
    fn exp_in_f64_is_accurate_over_its_range() {
        let mut worst = 0f64;
        for step in 0..1_416_800 {
            let x = f64::from(step) * 1e-3 - 707.9;
            let expected = x.exp();
            worst = worst.max((exp_f64(x) / expected - 1.0).abs());
        }
        assert!(worst < 7e-16, "relative error {worst}");
        assert_eq!(exp_f64(0.0), 1.0);
        assert!(exp_f64(f64::NEG_INFINITY) < 1e-300 && exp_f64(-1e38) < 1e-300);
        assert!(exp_f64(f64::NAN).is_nan());
    }

    #[test]
    fn ends_and_nan() {
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert!((sigmoid(-100.0)) < 1e-37 && sigmoid(100.0) == 1.0 && sigmoid(0.0) == 0.5);
    }
}
