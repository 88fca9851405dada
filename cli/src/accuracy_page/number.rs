//! Measures of accuracy as the page shows them. None of them is ever something that is no number, and none that is not zero reads as zero.

use ft_quant::Accuracy;
use ft_quant::mxfp4::BLOCK_ELEMENTS;

use crate::page::number::{NOTHING, fraction, power_of_ten};

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

#[cfg(test)]
mod tests {
    use super::*;

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
