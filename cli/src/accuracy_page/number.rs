//! Numbers of the page. None of them is ever something that is no number, and none that is not zero reads as zero.

use ft_quant::Accuracy;
use ft_quant::mxfp4::BLOCK_ELEMENTS;

use crate::units;

/// What stands where there is nothing to say.
const NOTHING: &str = "n/a";

/// Signal to quantization noise, as far as there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Level {
    /// No element differs.
    Exact,
    /// In dB.
    Decibels(f64),
    /// Elements differ, but by what is too small, or against too little, to be summed up.
    Unmeasured,
}

impl Level {
    pub(super) fn of(accuracy: &Accuracy) -> Self {
        match accuracy.sqnr_db() {
            Some(decibels) if decibels.is_finite() => Self::Decibels(decibels),
            None if accuracy.flushed == 0 && accuracy.clipped == 0 => Self::Exact,
            _ => Self::Unmeasured,
        }
    }

    /// `18.92`, without the unit.
    pub(super) fn text(self) -> String {
        match self {
            Self::Exact => "exact".to_owned(),
            Self::Decibels(decibels) => format!("{decibels:.2}"),
            Self::Unmeasured => NOTHING.to_owned(),
        }
    }

    /// A number that sorts the levels, worst first.
    pub(super) fn order(self) -> f64 {
        match self {
            Self::Exact => 1e9,
            Self::Decibels(decibels) => decibels,
            Self::Unmeasured => -1e9,
        }
    }
}

/// Elements beyond the largest that their scale can hold, of all.
pub(super) fn clipped_fraction(accuracy: &Accuracy) -> f64 {
    fraction(accuracy.clipped, accuracy.elements)
}

/// Elements that became zero, of all.
pub(super) fn flushed_fraction(accuracy: &Accuracy) -> f64 {
    fraction(accuracy.flushed, accuracy.elements)
}

/// Codes that changed, of those compared.
pub(super) fn changed_codes_fraction(accuracy: &Accuracy) -> f64 {
    fraction(accuracy.changed_codes, accuracy.compared_blocks.saturating_mul(BLOCK_ELEMENTS as u64))
}

/// Scales that changed, of those compared.
pub(super) fn changed_scales_fraction(accuracy: &Accuracy) -> f64 {
    fraction(accuracy.changed_scales, accuracy.compared_blocks)
}

/// Blocks whose largest element has this code, of all.
pub(super) fn largest_code_fraction(accuracy: &Accuracy, code: usize) -> f64 {
    fraction(accuracy.largest_codes[code], accuracy.blocks())
}

#[expect(clippy::cast_precision_loss, reason = "counts of elements are far below 2^53")]
pub(super) fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A fraction in percent; only what is nothing or all reads as 0% or 100%.
pub(super) fn percent(fraction: f64) -> String {
    match fraction {
        0.0 => "0%".to_owned(),
        1.0 => "100%".to_owned(),
        0.9995..1.0 => ">99.9%".to_owned(),
        0.0..100.0 => units::percent(fraction),
        _ => NOTHING.to_owned(),
    }
}

/// A ratio that is usually far below 1, in percent with three digits.
pub(super) fn relative(ratio: f64) -> String {
    let percent = ratio * 100.0;
    match percent {
        0.0 => "0%".to_owned(),
        _ if percent.is_finite() => format!("{}%", digits(percent, 3)),
        _ => NOTHING.to_owned(),
    }
}

/// `0.0625`, `3.389e38`: four digits, less the zeros at their end.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return NOTHING.to_owned();
    }
    let text = digits(value, 4);
    if text.contains('.') && !text.contains('e') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A cosine, with digits beyond the nines.
pub(super) fn cosine(accuracy: &Accuracy) -> String {
    let cosine = accuracy.cosine();
    if accuracy.noise == 0.0 || cosine == 1.0 {
        return "1".to_owned();
    }
    if !cosine.is_finite() {
        return NOTHING.to_owned();
    }
    // Rounding to a digit less could carry all nines into a 1.
    let decimals = (5..=15).find(|&decimals| 1.0 - cosine > 5.0 * power_of_ten(-decimals)).unwrap_or(15);
    format!("{cosine:.*}", usize::try_from(decimals).unwrap_or(0))
}

/// `value`, which is finite and not zero, with this many significant digits.
fn digits(value: f64, count: i32) -> String {
    let decimals = |digits: i32| usize::try_from(digits).unwrap_or(0);
    let magnitude = value.abs();
    if !(1e-3..1e6).contains(&magnitude) {
        return format!("{value:.*e}", decimals(count - 1));
    }
    format!("{value:.*}", decimals(count - 1 - exponent(magnitude)))
}

/// The exponent of the first decimal digit of what is positive.
#[expect(clippy::cast_possible_truncation, reason = "exponents of f64 have three digits")]
pub(super) fn exponent(value: f64) -> i32 {
    value.log10().floor() as i32
}

pub(super) fn power_of_ten(exponent: i32) -> f64 {
    10f64.powi(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_shares_and_large_ones_are_not_rounded_to_none_and_all() {
        let shares = [0.0, 1.0 / 19e9, 0.0123, 0.314, 0.9999, 1.0, f64::NAN, f64::INFINITY, -1.0];
        assert_eq!(shares.map(percent), ["0%", "5e-9%", "1.23%", "31.4%", ">99.9%", "100%", "n/a", "n/a", "n/a"]);
        assert_eq!(fraction(3, 0), 0.0);
    }

    #[test]
    fn numbers_keep_their_first_digits() {
        let numbers = [0.0, 0.0625, 1.0, 0.001_234_56, 123_456.7, 3.3896e38, 9.1834e-41, -2.5, f64::NAN, f64::INFINITY];
        let texts = ["0", "0.0625", "1", "0.001235", "123457", "3.390e38", "9.183e-41", "-2.5", "n/a", "n/a"];
        assert_eq!(numbers.map(number), texts);
        assert_eq!([0.0, 0.113_21, 0.01, 1e-9, f64::INFINITY].map(relative), ["0%", "11.3%", "1.00%", "1.00e-7%", "n/a"]);
    }

    #[test]
    fn a_cosine_reads_as_one_only_when_it_is() {
        let of = |product: f64| cosine(&Accuracy { signal: 1.0, packed_signal: 1.0, noise: 1e-9, product, ..Accuracy::default() });
        assert_eq!([1.0, 0.993_62, 0.999_999_95, 0.5, -1.0].map(of), ["1", "0.99362", "0.99999995", "0.50000", "-1.00000"]);
        assert_eq!(cosine(&Accuracy::default()), "1");
    }

    #[test]
    fn a_level_is_exact_only_where_nothing_differs() {
        let of = |signal, noise, flushed| Level::of(&Accuracy { signal, noise, flushed, ..Accuracy::default() });
        assert_eq!([of(1.0, 0.0, 0), of(0.0, 0.0, 0)], [Level::Exact; 2]);
        assert_eq!([of(0.0, 1.0, 0), of(1.0, 0.0, 1)], [Level::Unmeasured; 2]);
        assert_eq!(of(100.0, 1.0, 0), Level::Decibels(20.0));
    }
}
