//! Floating-point operations of training: products and sums of matrix products, two for each weight and token.
//!
//! Norms, activations, the softmax and the optimizer are not counted: they are below a hundredth, and what they cost is memory traffic.
//!
//! Letters: d model width, h query heads, k head width, a active experts, v vocabulary, s tokens of a sample.

use std::ops::{Add, AddAssign, Mul};

use ft_formats::checkpoint::{Config, LayerType, Projection};
use ft_formats::peft::{AdapterTarget, AttentionProjection};
use serde::Serialize;

/// Operations, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Work {
    /// Forward pass.
    pub forward_flops: f64,
    /// Gradients.
    pub backward_flops: f64,
    /// What is computed again to save memory: layers under `training.checkpoint_activations`, and the scores of attention always.
    pub recomputation_flops: f64,
}

impl Work {
    /// What the training is for, however it is done: forward and backward.
    ///
    /// Source: Chowdhery et al., "PaLM" (2022), appendix B: model FLOPs utilization leaves recomputation out.
    #[must_use]
    pub fn model_flops(&self) -> f64 {
        self.forward_flops + self.backward_flops
    }

    /// All that the device computes.
    #[must_use]
    pub fn total_flops(&self) -> f64 {
        self.model_flops() + self.recomputation_flops
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            forward_flops: self.forward_flops + other.forward_flops,
            backward_flops: self.backward_flops + other.backward_flops,
            recomputation_flops: self.recomputation_flops + other.recomputation_flops,
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<f64> for Work {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self {
            forward_flops: self.forward_flops * factor,
            backward_flops: self.backward_flops * factor,
            recomputation_flops: self.recomputation_flops * factor,
        }
    }
}

/// What one token costs, so that the work of any step follows from the lengths of its samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkModel {
    /// Of every token: projections, router and active experts of all layers.
    per_token: Work,
    /// Of a token whose loss is taken: the head.
    per_trained_token: Work,
    /// Of a query and a key that it sees, in all layers without a window.
    per_pair: Work,
    /// The same in all layers with one.
    per_windowed_pair: Work,
    /// Keys that a query sees in those.
    window: usize,
}

/// What is trained.
#[derive(Debug, Clone, Copy)]
pub enum TrainedPart<'a> {
    /// Every weight.
    Everything,
    /// Updates of `rank` on these weights.
    Updates {
        /// Rank of every update.
        rank: usize,
        /// The weights.
        targets: &'a [AdapterTarget],
    },
}

impl WorkModel {
    /// The costs of training `part` of a model of `config`.
    ///
    /// A matrix of n weights takes 2 n operations forward, 2 n for the gradient of its input and 2 n for its own. A frozen matrix needs the
    /// first of the two only, and nothing below the lowest update needs any; the layer of that update is counted whole. An update of rank r
    /// adds matrices of r (in + out) weights. A query and a key take 4 h k forward (scores, and the sum of values), twice that backward,
    /// and the scores are computed once more there.
    ///
    /// Source: Kaplan et al., "Scaling laws for neural language models" (2020), section 2.1; Dao et al., "FlashAttention" (2022), algorithm 4.
    #[must_use]
    pub fn new(config: &Config, part: TrainedPart<'_>, checkpoints_activations: bool) -> Self {
        let lowest = match part {
            TrainedPart::Everything => 0,
            TrainedPart::Updates { targets, .. } => {
                targets.iter().filter_map(|target| target.layer()).min().unwrap_or(config.num_hidden_layers)
            }
        };
        let mut model = Self {
            per_token: Work::default(),
            per_trained_token: matrix(head_weights(config), part, true, false),
            per_pair: Work::default(),
            per_windowed_pair: Work::default(),
            window: config.sliding_window,
        };
        let pair = 4.0 * wide(config.query_size());
        for (layer, kind) in config.layer_types.iter().enumerate() {
            let has_gradient = layer >= lowest;
            let again = has_gradient && checkpoints_activations;
            model.per_token += matrix(layer_weights(config), part, has_gradient, again);
            let pairs = Work {
                forward_flops: pair,
                backward_flops: if has_gradient { 2.0 * pair } else { 0.0 },
                recomputation_flops: if has_gradient { 0.5 * pair } else { 0.0 } + if again { pair } else { 0.0 },
            };
            match kind {
                LayerType::FullAttention => model.per_pair += pairs,
                LayerType::SlidingAttention => model.per_windowed_pair += pairs,
            }
        }
        if let TrainedPart::Updates { rank, targets } = part {
            for &target in targets {
                let [_, input, output] = target.dims(config);
                let uses = if matches!(target, AdapterTarget::Experts { .. }) { config.num_experts_per_token } else { 1 };
                let weights = wide(rank) * wide(input + output) * wide(uses);
                let is_head = matches!(target, AdapterTarget::LmHead);
                let update = matrix(weights, TrainedPart::Everything, true, checkpoints_activations && !is_head);
                if is_head {
                    model.per_trained_token += update;
                } else {
                    model.per_token += update;
                }
            }
        }
        model
    }

    /// The work of a step on samples of these (tokens, trained tokens).
    #[must_use]
    pub fn of(&self, samples: impl IntoIterator<Item = (usize, usize)>) -> Work {
        samples.into_iter().fold(Work::default(), |sum, (tokens, trained)| {
            sum + self.per_token * wide(tokens)
                + self.per_trained_token * wide(trained)
                + self.per_pair * pairs(tokens, tokens)
                + self.per_windowed_pair * pairs(tokens, self.window)
        })
    }
}

/// Queries and keys that see each other among `tokens`, each query the newest `window` keys at most: itself, and those before it.
fn pairs(tokens: usize, window: usize) -> f64 {
    let inner = wide(tokens.min(window));
    inner * (inner + 1.0) / 2.0 + wide(tokens - tokens.min(window)) * inner
}

/// The work of matrices of `weights` for one token.
fn matrix(weights: f64, part: TrainedPart<'_>, has_gradient: bool, again: bool) -> Work {
    let forward_flops = 2.0 * weights;
    let gradients = match part {
        TrainedPart::Everything => 2.0,
        TrainedPart::Updates { .. } => 1.0,
    };
    Work {
        forward_flops,
        backward_flops: if has_gradient { gradients * forward_flops } else { 0.0 },
        recomputation_flops: if again { forward_flops } else { 0.0 },
    }
}

/// Weights of the matrices that one token meets in a layer: attention, router, and its active experts.
fn layer_weights(config: &Config) -> f64 {
    let dims = |target: AdapterTarget| {
        let [_, input, output] = target.dims(config);
        wide(input) * wide(output)
    };
    let attention: f64 = AttentionProjection::ALL.iter().map(|&projection| dims(AdapterTarget::Attention { layer: 0, projection })).sum();
    let expert: f64 = Projection::ALL.iter().map(|&projection| dims(AdapterTarget::Experts { layer: 0, projection })).sum();
    attention + dims(AdapterTarget::Router { layer: 0 }) + wide(config.num_experts_per_token) * expert
}

fn head_weights(config: &Config) -> f64 {
    wide(config.vocab_size) * wide(config.hidden_size)
}

/// Weights of the matrices that one token meets in the whole model, the head included, the embedding, which is looked up, not.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of weights, far below 2^53")]
pub fn active_parameters(config: &Config) -> u64 {
    (wide(config.num_hidden_layers) * layer_weights(config) + head_weights(config)) as u64
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn wide(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 layers (sliding, full, sliding), d 12, h 4, g 2, k 8, e 5, a 2, f 10, v 50, window 3.
    fn tiny() -> Config {
        Config {
            vocab_size: 50,
            hidden_size: 12,
            intermediate_size: 10,
            num_hidden_layers: 3,
            num_local_experts: 5,
            num_experts_per_token: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            layer_types: vec![LayerType::SlidingAttention, LayerType::FullAttention, LayerType::SlidingAttention],
            sliding_window: 3,
            ..Config::nano()
        }
    }

    fn close(found: Work, forward: f64, backward: f64, recomputation: f64) {
        let expected = Work { forward_flops: forward, backward_flops: backward, recomputation_flops: recomputation };
        assert_eq!(found, expected);
    }

    /// By hand: q 12x32, k and v 12x16, o 32x12: 1,152. Router 12x5: 60. An expert 12x20 + 10x12: 360, two of them 720. A layer 1,932.
    /// Head 600. Samples of 5 and 2 tokens, 3 and 1 trained: pairs 15 + 3 = 18, in a window of 3: 12 + 3 = 15. A pair 4 x 32 = 128.
    const LAYER: f64 = 2.0 * 1932.0 * 7.0;
    const HEAD: f64 = 2.0 * 600.0 * 4.0;
    const FULL: f64 = 128.0 * 18.0;
    const WINDOWED: f64 = 128.0 * 15.0;
    const SAMPLES: [(usize, usize); 2] = [(5, 3), (2, 1)];

    #[test]
    fn full_training_takes_twice_the_forward_pass_backward() {
        let forward = 3.0 * LAYER + HEAD + FULL + 2.0 * WINDOWED;
        let scores = (FULL + 2.0 * WINDOWED) / 2.0;
        close(WorkModel::new(&tiny(), TrainedPart::Everything, false).of(SAMPLES), forward, 2.0 * forward, scores);
        close(WorkModel::new(&tiny(), TrainedPart::Everything, true).of(SAMPLES), forward, 2.0 * forward, scores + forward - HEAD);
    }

    #[test]
    fn frozen_weights_take_the_gradient_of_their_inputs_only_and_none_below_the_lowest_update() {
        let targets = [
            AdapterTarget::Attention { layer: 1, projection: AttentionProjection::Q },
            AdapterTarget::Experts { layer: 2, projection: Projection::GateUp },
            AdapterTarget::LmHead,
        ];
        // Rank 3. Query: 3 x (12 + 32). Experts: 2 x 3 x (12 + 20). Head: 3 x (12 + 50), for 4 trained tokens.
        let (layers, head) = (2.0 * (132.0 + 192.0) * 7.0, 2.0 * 186.0 * 4.0);
        let forward = 3.0 * LAYER + HEAD + FULL + 2.0 * WINDOWED + layers + head;
        let backward = 2.0 * LAYER + HEAD + 2.0 * (FULL + WINDOWED) + 2.0 * (layers + head);
        let scores = (FULL + WINDOWED) / 2.0;
        let part = TrainedPart::Updates { rank: 3, targets: &targets };
        close(WorkModel::new(&tiny(), part, false).of(SAMPLES), forward, backward, scores);
        let again = 2.0 * LAYER + layers + FULL + WINDOWED;
        close(WorkModel::new(&tiny(), part, true).of(SAMPLES), forward, backward, scores + again);
    }

    #[test]
    fn a_head_alone_needs_no_gradient_of_the_layers() {
        let part = TrainedPart::Updates { rank: 1, targets: &[AdapterTarget::LmHead] };
        let work = WorkModel::new(&tiny(), part, true).of([(1, 1)]);
        close(work, 2.0 * (3.0 * 1932.0 + 600.0 + 62.0) + 3.0 * 128.0, 2.0 * 600.0 + 4.0 * 62.0, 0.0);
    }

    /// Source: OpenAI, "gpt-oss-120b & gpt-oss-20b model card" (arXiv 2508.10925), table 1: 3.61 and 5.13 billion.
    #[test]
    fn active_parameters_are_the_published_ones() {
        for (config, published) in [(Config::gpt_oss_20b(), 3_610_000_000u64), (Config::gpt_oss_120b(), 5_130_000_000)] {
            assert!(active_parameters(&config).abs_diff(published) < 5_000_000, "{}", active_parameters(&config));
        }
    }
}
