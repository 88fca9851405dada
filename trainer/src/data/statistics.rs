//! What a dataset holds, in numbers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::sample::{Sample, TrainedTokens};
use super::shape::Shape;

/// Counts over a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Statistics {
    /// Lines read.
    pub conversations: usize,
    /// Lines of each shape.
    pub shapes: BTreeMap<Shape, usize>,
    /// Samples to train on.
    pub samples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Their tokens with a loss weight, by channel.
    pub trained: TrainedTokens,
    /// Samples that were cut at `max_tokens`.
    pub truncated: usize,
    /// Samples that were left out for their length: by `overlong = "drop"`, or because nothing trained was left when cut.
    pub dropped: usize,
    /// Turns left out because all their messages have weight 0.
    pub untrained: usize,
    /// Keys that mean nothing in their line's shape, and how often they were met.
    pub ignored_keys: BTreeMap<String, usize>,
    /// Lengths of the samples.
    pub lengths: LengthHistogram,
}

impl Statistics {
    /// Counts `samples`; what is not seen in them stays 0.
    pub(super) fn of_samples(samples: &[Sample]) -> Statistics {
        let mut statistics = Statistics {
            samples: samples.len(),
            tokens: samples.iter().map(|sample| sample.ids.len()).sum(),
            lengths: LengthHistogram::new(samples.iter().map(|sample| sample.ids.len()).collect()),
            ..Statistics::default()
        };
        for sample in samples {
            statistics.trained += sample.trained;
        }
        statistics
    }
}

/// How long samples are, in tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LengthHistogram {
    /// The shortest.
    pub shortest: usize,
    /// The one in the middle.
    pub median: usize,
    /// The longest.
    pub longest: usize,
    /// (longest length counted here, number of samples): by powers of two, from the first to the last that has samples.
    pub buckets: Vec<(usize, usize)>,
}

impl LengthHistogram {
    fn new(mut lengths: Vec<usize>) -> LengthHistogram {
        lengths.sort_unstable();
        let (Some(&shortest), Some(&longest)) = (lengths.first(), lengths.last()) else {
            return LengthHistogram::default();
        };
        let mut buckets = Vec::new();
        let mut bound = shortest.next_power_of_two();
        let mut counted = 0;
        while counted < lengths.len() {
            let up_to = lengths.partition_point(|&length| length <= bound);
            buckets.push((bound, up_to - counted));
            counted = up_to;
            bound = bound.saturating_mul(2);
        }
        LengthHistogram { shortest, median: lengths[lengths.len() / 2], longest, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_and_count_all() {
        let histogram = LengthHistogram::new(vec![3, 4, 5, 20, 8]);
        assert_eq!(histogram.buckets, [(4, 2), (8, 2), (16, 0), (32, 1)]);
        assert_eq!((histogram.shortest, histogram.median, histogram.longest), (3, 5, 20));
        assert_eq!(LengthHistogram::new(Vec::new()), LengthHistogram::default());
    }
}
