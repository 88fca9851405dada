//! Conversations held out for validation.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::Dataset;
use crate::data::statistics::Counts;

/// Takes a `fraction` of the conversations out of `dataset` for validation: (training, validation).
///
/// All samples of a conversation go the same way, or a turn would be trained whose later turns validate. The choice
/// depends on `seed` and on each conversation's tokens, not on its place. At least one conversation is taken, and at least
/// one is left, when there are two or more; counts about rows stay with the training part.
pub fn split_validation(dataset: Dataset, fraction: f64, seed: u64) -> (Dataset, Dataset) {
    let starts: Vec<usize> = dataset.conversations().collect();
    let count = starts.len();
    let end = |group: usize| starts.get(group + 1).copied().unwrap_or(dataset.len());
    let wanted = ((count as f64 * fraction).round() as usize).clamp(1, count.saturating_sub(1).max(1));
    let taken = if fraction <= 0.0 || count < 2 { 0 } else { wanted };
    if taken == 0 {
        let none = Dataset::choose(Arc::clone(&dataset.tokens), Some(Arc::new([])), Counts::default());
        return (dataset, none);
    }
    let draws: Vec<[u8; 32]> = (0..count).into_par_iter().map(|group| draw(&dataset, starts[group]..end(group), seed)).collect();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&group| (draws[group], group));
    let mut is_taken = vec![false; count];
    for &group in &order[..taken] {
        is_taken[group] = true;
    }
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for (group, is_taken) in is_taken.into_iter().enumerate() {
        let samples = (starts[group]..end(group)).map(|index| dataset.at(index));
        if is_taken { validation.extend(samples) } else { training.extend(samples) }
    }
    let all = dataset.statistics.counts();
    let counts = Counts { conversations: all.conversations - taken, ..all };
    let of_validation = Counts { conversations: taken, ..Counts::default() };
    (
        Dataset::choose(Arc::clone(&dataset.tokens), Some(training.into()), counts),
        Dataset::choose(dataset.tokens, Some(validation.into()), of_validation),
    )
}

fn draw(dataset: &Dataset, samples: Range<usize>, seed: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for index in samples {
        let bytes: Vec<u8> = dataset.tokens.ids(dataset.at(index)).iter().flat_map(|id| id.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    *hasher.finalize().as_bytes()
}
