//! Numbers of a page. None of them is ever something that is no number, and none that is not zero reads as zero.

use crate::units;

/// What stands where there is nothing to say.
pub(crate) const NOTHING: &str = "n/a";

#[expect(clippy::cast_precision_loss, reason = "counts of elements are far below 2^53")]
pub(crate) fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A fraction in percent; only what is nothing or all reads as 0% or 100%.
pub(crate) fn percent(fraction: f64) -> String {
    match fraction {
        0.0 => "0%".to_owned(),
        1.0 => "100%".to_owned(),
        0.9995..1.0 => ">99.9%".to_owned(),
        0.0..100.0 => units::percent(fraction),
        _ => NOTHING.to_owned(),
    }
}

/// A ratio that is usually far below 1, in percent with three digits.
pub(crate) fn relative(ratio: f64) -> String {
    let percent = ratio * 100.0;
    match percent {
        0.0 => "0%".to_owned(),
        _ if percent.is_finite() => format!("{}%", digits(percent, 3)),
        _ => NOTHING.to_owned(),
    }
}

/// `0.0625`, `3.389e38`: four digits, less the zeros at their end.
pub(crate) fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return NOTHING.to_owned();
    }
    let text = digits(value, 4);
    if text.contains('.') && !text.contains('e') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `value`, which is finite and not zero, with this many significant digits.
pub(crate) fn digits(value: f64, count: i32) -> String {
    let decimals = |digits: i32| usize::try_from(digits).unwrap_or(0);
    let magnitude = value.abs();
    if !(1e-3..1e6).contains(&magnitude) {
        return format!("{value:.*e}", decimals(count - 1));
    }
    format!("{value:.*}", decimals(count - 1 - exponent(magnitude)))
}

/// The exponent of the first decimal digit of what is positive.
#[expect(clippy::cast_possible_truncation, reason = "exponents of f64 have three digits")]
pub(crate) fn exponent(value: f64) -> i32 {
    value.log10().floor() as i32
}

pub(crate) fn power_of_ten(exponent: i32) -> f64 {
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
}
