//! What a dataset holds, in numbers.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Duplicates};
use super::sample::TrainedTokens;
use super::shape::Shape;
use super::speakers::SpokenTokens;

/// What is counted while rows are read, and cannot be seen in the samples.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) conversations: usize,
    pub(super) shapes: BTreeMap<Shape, usize>,
    pub(super) truncated: usize,
    pub(super) dropped: usize,
    pub(super) untrained: usize,
    pub(super) ignored_keys: BTreeMap<String, usize>,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.conversations += other.conversations;
        self.truncated += other.truncated;
        self.dropped += other.dropped;
        self.untrained += other.untrained;
        for (shape, count) in other.shapes {
            *self.shapes.entry(shape).or_default() += count;
        }
        for (key, count) in other.ignored_keys {
            *self.ignored_keys.entry(key).or_default() += count;
        }
    }
}

/// Counts over a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Statistics {
    /// Rows read.
    pub conversations: usize,
    /// Rows of each shape.
    pub shapes: BTreeMap<Shape, usize>,
    /// Samples to train on.
    pub samples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Their tokens with a loss weight, by channel.
    pub trained: TrainedTokens,
    /// All their tokens, by who says them.
    pub spoken: SpokenTokens,
    /// Samples that were cut at `max_tokens`.
    pub truncated: usize,
    /// Samples that were left out for their length: by `overlong = "drop"`, or because nothing trained was left when cut.
    pub dropped: usize,
    /// Turns left out because all their messages have weight 0.
    pub untrained: usize,
    /// Conversations that stand in the dataset before, token by token.
    pub duplicates: Duplicates,
    /// Keys that mean nothing in their row's shape, and how often they were met.
    pub ignored_keys: BTreeMap<String, usize>,
    /// Lengths of the samples.
    pub lengths: LengthHistogram,
}

impl Statistics {
    /// Counts the samples of `dataset`; what is not seen in them is taken from `counts`.
    pub(super) fn of(dataset: &Dataset, counts: Counts) -> Statistics {
        let lengths = dataset.lengths();
        let mut statistics = Statistics {
            conversations: counts.conversations,
            shapes: counts.shapes,
            samples: dataset.len(),
            tokens: lengths.iter().sum(),
            truncated: counts.truncated,
            dropped: counts.dropped,
            untrained: counts.untrained,
            ignored_keys: counts.ignored_keys,
            duplicates: dataset.duplicates(),
            lengths: LengthHistogram::new(lengths),
            ..Statistics::default()
        };
        for index in 0..dataset.len() {
            statistics.trained += dataset.trained(index);
            statistics.spoken += dataset.spoken(index);
        }
        statistics
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            conversations: self.conversations,
            shapes: self.shapes.clone(),
            truncated: self.truncated,
            dropped: self.dropped,
            untrained: self.untrained,
            ignored_keys: self.ignored_keys.clone(),
        }
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
