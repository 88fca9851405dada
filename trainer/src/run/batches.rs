//! Which samples each step trains on: a function of the seed and the step's number alone, so that a resumed run needs no cursor.

use crate::data::{Dataset, pack};
use crate::random::Stream;

/// How samples become steps.
#[derive(Debug, Clone)]
pub struct Batching {
    /// Put several samples into one sequence.
    pub packing: bool,
    /// Tokens of a sequence at most.
    pub max_tokens: usize,
    /// A new order for each epoch.
    pub shuffle: bool,
    /// Seed of the orders.
    pub seed: u64,
    /// Sequences of one forward pass.
    pub batch_sequences: usize,
    /// Forward passes of one step.
    pub accumulation_steps: usize,
}

/// The sequences of a dataset, in steps.
#[derive(Debug)]
pub struct Schedule {
    batching: Batching,
    sequences: Vec<Vec<usize>>,
}

impl Schedule {
    /// The sequences of samples of these lengths, in tokens: packs, or one for each. Of the samples those of `taken` are in an epoch, each as
    /// often as its index is there.
    #[must_use]
    pub fn new(lengths: &[usize], taken: &[usize], batching: Batching) -> Self {
        let sequences = if batching.packing {
            let lengths: Vec<usize> = taken.iter().map(|&sample| lengths[sample]).collect();
            let packs = pack(&lengths, batching.max_tokens);
            packs.into_iter().map(|pack| pack.into_iter().map(|index| taken[index]).collect()).collect()
        } else {
            taken.iter().map(|&sample| vec![sample]).collect()
        };
        Self { batching, sequences }
    }

    /// Indices of the samples of an epoch, as often as they are in it.
    pub fn samples(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().flatten().copied()
    }

    /// Sequences of an epoch.
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Steps of an epoch; the last may be smaller.
    #[must_use]
    pub fn steps_per_epoch(&self) -> usize {
        self.sequences.len().div_ceil(self.batching.batch_sequences * self.batching.accumulation_steps)
    }

    /// Samples (by index) of the forward passes of the step after `done` steps.
    #[must_use]
    pub fn step(&self, done: usize) -> Vec<Vec<usize>> {
        let steps = self.steps_per_epoch().max(1);
        let order = self.order((done / steps) as u64);
        let per_step = self.batching.batch_sequences * self.batching.accumulation_steps;
        let first = done % steps * per_step;
        let sequences = &order[first..order.len().min(first + per_step)];
        sequences
            .chunks(self.batching.batch_sequences)
            .map(|batch| batch.iter().flat_map(|&sequence| self.sequences[sequence].iter().copied()).collect())
            .collect()
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        if self.batching.shuffle {
            Stream::new(self.batching.seed, "shuffle", epoch).permutation(self.sequences.len())
        } else {
            (0..self.sequences.len()).collect()
        }
    }
}

/// Indices of the samples of an epoch when each source counts as often as `weights` says: whole times for all of its samples, and the
/// rest of the weight for some, drawn by `seed`. No weights are once for each.
#[must_use]
pub fn taken(dataset: &Dataset, weights: &[f64], seed: u64) -> Vec<usize> {
    let mut of_sources: Vec<Vec<usize>> = vec![Vec::new(); weights.len()];
    let mut all = Vec::with_capacity(dataset.len());
    for index in 0..dataset.len() {
        match of_sources.get_mut(dataset.source(index)) {
            Some(samples) => samples.push(index),
            None => all.push(index),
        }
    }
    for (source, (samples, weight)) in (0u64..).zip(of_sources.iter().zip(weights)) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a count of samples")]
        let (whole, some) = (weight.floor() as usize, (weight.fract() * samples.len() as f64).round() as usize);
        (0..whole).for_each(|_| all.extend(samples));
        let order = Stream::new(seed, "source", source).permutation(samples.len());
        all.extend(order[..some.min(samples.len())].iter().map(|&drawn| samples[drawn]));
    }
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(lengths: &[usize], packing: bool, shuffle: bool) -> Schedule {
        let batching = Batching { packing, max_tokens: 10, shuffle, seed: 5, batch_sequences: 2, accumulation_steps: 2 };
        Schedule::new(lengths, &(0..lengths.len()).collect::<Vec<_>>(), batching)
    }

    #[test]
    fn every_epoch_sees_every_sample_once() {
        for (packing, shuffle) in [(false, false), (false, true), (true, false), (true, true)] {
            let schedule = schedule(&[3, 9, 4, 2, 7, 5, 1, 1, 8], packing, shuffle);
            for epoch in 0..3 {
                let steps = epoch * schedule.steps_per_epoch()..(epoch + 1) * schedule.steps_per_epoch();
                let mut seen: Vec<usize> = steps.flat_map(|step| schedule.step(step).concat()).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..9).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn unshuffled_samples_come_in_their_order() {
        let schedule = schedule(&[3, 9, 4, 2, 7], false, false);
        assert_eq!(schedule.step(0), [vec![0, 1], vec![2, 3]]);
        assert_eq!(schedule.step(1), [vec![4]]);
        assert_eq!(schedule.step(2), schedule.step(0));
    }

    #[test]
    fn epochs_are_shuffled_anew() {
        let schedule = schedule(&[1; 40], false, true);
        let epoch = |epoch: usize| (0..10usize).flat_map(|step| schedule.step(epoch * 10 + step).concat()).collect::<Vec<_>>();
        assert_ne!(epoch(0), epoch(1));
    }

    fn of_two_sources() -> (tempfile::TempDir, Dataset) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, count: usize| {
            let path = folder.path().join(name);
            let text: String = (0..count).map(|index| format!("{{\"text\": \"{name} {index}\"}}\n")).collect();
            std::fs::write(&path, text).unwrap();
            path.to_string_lossy().into_owned()
        };
        let sources = [write("a.jsonl", 10), write("b.jsonl", 20)];
        let mut recipe = crate::recipe::Recipe::default();
        recipe.dataset.cache = false;
        let options = crate::run::session::dataset_options(&recipe);
        let dataset = crate::data::load_dataset(&sources, &options, &mut |_| {}).unwrap();
        (folder, dataset)
    }

    #[test]
    fn sources_count_as_often_as_they_weigh() {
        let (_folder, dataset) = of_two_sources();
        assert_eq!(taken(&dataset, &[], 1), (0..30).collect::<Vec<_>>());
        assert_eq!(taken(&dataset, &[1.0, 1.0], 1), (0..30).collect::<Vec<_>>());
        let weighted = taken(&dataset, &[2.5, 0.25], 1);
        let times = |sample: usize| weighted.iter().filter(|&&index| index == sample).count();
        assert_eq!(weighted.iter().filter(|&&index| index < 10).count(), 25);
        assert_eq!(weighted.len(), 30);
        assert!((0..10).all(|sample| (2..=3).contains(&times(sample))));
        assert!((10..30).all(|sample| times(sample) <= 1));
        assert_eq!(weighted, taken(&dataset, &[2.5, 0.25], 1));
        assert_ne!(weighted, taken(&dataset, &[2.5, 0.25], 2));
        assert!(taken(&dataset, &[0.01, 0.01], 1).is_empty());
    }
}
