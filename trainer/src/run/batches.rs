//! Which samples each step trains on: a function of the seed and the step's number alone, so that a resumed run needs no cursor.

use crate::data::{Sample, pack};
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
    /// The sequences of `samples`: packs, or one for each sample.
    #[must_use]
    pub fn new(samples: &[Sample], batching: Batching) -> Self {
        let sequences = if batching.packing {
            let lengths: Vec<usize> = samples.iter().map(|sample| sample.ids.len()).collect();
            pack(&lengths, batching.max_tokens)
        } else {
            (0..samples.len()).map(|sample| vec![sample]).collect()
        };
        Self { batching, sequences }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{SampleOrigin, TrainedTokens};

    fn schedule(lengths: &[usize], packing: bool, shuffle: bool) -> Schedule {
        let samples: Vec<Sample> = lengths
            .iter()
            .map(|&length| Sample {
                ids: vec![0; length],
                weights: vec![1.0; length],
                origin: SampleOrigin { file: "x".into(), line: 1, turn: None },
                trained: TrainedTokens::default(),
                spans: Vec::new(),
            })
            .collect();
        let batching = Batching { packing, max_tokens: 10, shuffle, seed: 5, batch_sequences: 2, accumulation_steps: 2 };
        Schedule::new(&samples, batching)
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
}
