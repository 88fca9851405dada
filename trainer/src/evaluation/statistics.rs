//! Means, their errors, and percentiles of figures that each token has one of.

use serde::Serialize;

/// A mean and how far it may be off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error, the tokens taken as independent; `None` for a single value.
    pub standard_error: Option<f64>,
}

impl Mean {
    /// The mean of `values`, with the sample's standard deviation over the root of its size as the error.
    ///
    /// # Panics
    /// When there is no value: the caller's mistake.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        assert!(!values.is_empty(), "a mean is of at least one value");
        let count = float(values.len());
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_error = (values.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt());
        Self { mean, standard_error }
    }

    /// The share of `values` that are true.
    ///
    /// # Panics
    /// As [`Mean::of`].
    #[must_use]
    pub fn of_share(values: impl Iterator<Item = bool>) -> Self {
        Self::of(&values.map(|value| f64::from(u8::from(value))).collect::<Vec<_>>())
    }
}

/// The extremes of some values and what lies between, by percentiles.
///
/// A percentile that falls between two values is interpolated linearly between them, as numpy does by default.
///
/// Source: R. Hyndman and Y. Fan, "Sample quantiles in statistical packages" (1996), definition 7.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "p99_9 is the 99.9th percentile, and so on")]
pub struct Percentiles {
    pub maximum: f64,
    pub p99_9: f64,
    pub p99: f64,
    pub p95: f64,
    pub p90: f64,
    pub p75: f64,
    pub median: f64,
    pub p25: f64,
    pub p10: f64,
    pub p5: f64,
    pub p1: f64,
    pub p0_1: f64,
    pub minimum: f64,
}

impl Percentiles {
    /// The percentiles of `values`.
    ///
    /// # Panics
    /// When there is no value: the caller's mistake.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |fraction| quantile(&sorted, fraction);
        Self {
            maximum: at(1.0),
            p99_9: at(0.999),
            p99: at(0.99),
            p95: at(0.95),
            p90: at(0.9),
            p75: at(0.75),
            median: at(0.5),
            p25: at(0.25),
            p10: at(0.1),
            p5: at(0.05),
            p1: at(0.01),
            p0_1: at(0.001),
            minimum: at(0.0),
        }
    }
}

/// The value below which `fraction` of `sorted` lies.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    assert!(!sorted.is_empty(), "a quantile is of at least one value");
    let last = sorted.len() - 1;
    let place = float(last) * fraction;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the last index")]
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - float(below))
}

/// Pearson's correlation of paired values; `None` where one side does not vary.
#[must_use]
pub fn correlation(left: &[f64], right: &[f64]) -> Option<f64> {
    assert_eq!(left.len(), right.len(), "values come in pairs");
    if left.is_empty() {
        return None;
    }
    let (left_mean, right_mean) = (Mean::of(left).mean, Mean::of(right).mean);
    let (mut product, mut left_square, mut right_square) = (0.0, 0.0, 0.0);
    for (left, right) in left.iter().zip(right) {
        let (left, right) = (left - left_mean, right - right_mean);
        product += left * right;
        left_square += left * left;
        right_square += right * right;
    }
    let norm = (left_square * right_square).sqrt();
    (norm > 0.0).then(|| (product / norm).clamp(-1.0, 1.0))
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
pub(super) fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found} instead of {expected}");
    }

    #[test]
    fn a_mean_knows_its_error() {
        let found = Mean::of(&[1.0, 2.0, 4.0, 9.0]);
        close(found.mean, 4.0);
        close(found.standard_error.unwrap(), (38.0f64 / 3.0 / 4.0).sqrt());
        assert_eq!(Mean::of(&[3.0]), Mean { mean: 3.0, standard_error: None });
    }

    #[test]
    fn the_error_of_a_share_is_the_binomial_one() {
        let found = Mean::of_share([true, true, true, false].into_iter());
        close(found.mean, 0.75);
        close(found.standard_error.unwrap(), (0.75f64 * 0.25 / 3.0).sqrt());
    }

    /// Expected values by numpy 2.4.6: `numpy.percentile([5, 1, 4, 2, 8, 16, 3], ...)`.
    #[test]
    fn percentiles_are_those_of_numpy() {
        let found = Percentiles::of(&[5.0, 1.0, 4.0, 2.0, 8.0, 16.0, 3.0]);
        close(found.maximum, 16.0);
        close(found.p99_9, 15.952);
        close(found.p90, 11.2);
        close(found.p75, 6.5);
        close(found.median, 4.0);
        close(found.p25, 2.5);
        close(found.p5, 1.3);
        close(found.p1, 1.06);
        close(found.minimum, 1.0);
        let alone = Percentiles::of(&[7.0]);
        assert_eq!((alone.maximum, alone.median, alone.p0_1), (7.0, 7.0, 7.0));
    }

    #[test]
    fn correlation_is_of_the_shape_not_of_the_scale() {
        let left = [1.0, 2.0, 4.0, 3.0];
        close(correlation(&left, &left.map(|value| 10.0 - 3.0 * value)).unwrap(), -1.0);
        close(correlation(&left, &[1.0, 3.0, 2.0, 4.0]).unwrap(), 0.4);
        assert_eq!(correlation(&left, &[2.0; 4]), None);
    }
}
