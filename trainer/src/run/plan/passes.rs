//! The sizes of samples, and of the largest forward pass that is made of them.

use serde::Serialize;

use super::super::session::Samples;
use crate::data::{Sample, pack};
use crate::recipe::Recipe;

/// Tokens of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pass {
    /// All of them.
    pub tokens: u64,
    /// Those with a loss weight.
    pub trained_tokens: u64,
}

/// (tokens, trained tokens) of a sample.
#[must_use]
pub fn size_of(sample: &Sample) -> (usize, usize) {
    (sample.ids.len(), sample.weights.iter().skip(1).filter(|&&weight| weight != 0.0).count())
}

/// The sizes of the samples of an epoch.
pub(super) fn sizes(samples: &Samples) -> Vec<(usize, usize)> {
    let mut taken: Vec<usize> = samples.batches.samples().collect();
    taken.sort_unstable();
    taken.into_iter().map(|sample| (samples.train.length(sample), samples.train.trained(sample).total())).collect()
}

/// The largest forward pass of any epoch: the longest sequences happen to come together.
pub(super) fn largest(sizes: &[(usize, usize)], recipe: &Recipe) -> Pass {
    let limit = recipe.dataset.max_tokens;
    // Longer ones are there only where the setting is tried smaller than it is: they would be cut.
    let lengths: Vec<usize> = sizes.iter().map(|(tokens, _)| (*tokens).min(limit)).collect();
    let sequences = if recipe.dataset.packing { pack(&lengths, limit) } else { (0..lengths.len()).map(|sample| vec![sample]).collect() };
    let sum_of_largest = |of: &dyn Fn(usize) -> usize| {
        let mut sums: Vec<u64> = sequences.iter().map(|sequence| sequence.iter().map(|&sample| of(sample) as u64).sum()).collect();
        sums.sort_unstable_by(|left, right| right.cmp(left));
        sums.iter().take(recipe.training.batch_sequences).sum()
    };
    Pass { tokens: sum_of_largest(&|sample| lengths[sample]), trained_tokens: sum_of_largest(&|sample| sizes[sample].1.min(limit)) }
}

/// A pass whose sequences are as long as the recipe allows, every token trained.
pub(super) fn full(recipe: &Recipe) -> Pass {
    let tokens = (recipe.training.batch_sequences as u64).saturating_mul(recipe.dataset.max_tokens as u64);
    Pass { tokens, trained_tokens: tokens }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_pass_holds_the_longest_sequences() {
        let mut recipe = Recipe::default();
        (recipe.dataset.max_tokens, recipe.training.batch_sequences, recipe.dataset.packing) = (10, 2, false);
        let sizes = [(3, 1), (9, 2), (4, 4), (7, 1)];
        assert_eq!(largest(&sizes, &recipe), Pass { tokens: 16, trained_tokens: 6 });
        recipe.dataset.packing = true;
        // Packs of 9 and of 7 + 3, and one of 4.
        assert_eq!(largest(&sizes, &recipe), Pass { tokens: 19, trained_tokens: 6 });
        recipe.dataset.max_tokens = 5;
        assert_eq!(largest(&sizes, &recipe), Pass { tokens: 10, trained_tokens: 6 });
        assert_eq!(full(&recipe), Pass { tokens: 10, trained_tokens: 10 });
    }
}
