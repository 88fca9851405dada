//! What the routers of a model did over a step: counted where they compute, read once.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::torch::ops::{Named, add, cast, concatenate, dims2, stack, sum_all, to_f64_vec, without_graph, zeros};

/// Counts over the forward passes of a step. Handles that are cloned count together.
///
/// Nothing waits for the device before [`RoutingMeter::read`], and nothing that is counted takes part in a gradient.
#[derive(Debug, Clone, Default)]
pub struct RoutingMeter {
    /// For each layer f64 [e + 1]: tokens of each expert, then the sum of the entropies.
    layers: Arc<Mutex<Vec<Option<Tensor>>>>,
}

/// The place of one layer in a [`RoutingMeter`].
#[derive(Debug, Clone)]
pub struct LayerMeter {
    meter: RoutingMeter,
    layer: usize,
}

/// What the router of one layer did.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerRouting {
    /// Tokens that each expert got; their sum is tokens times experts of a token.
    pub expert_tokens: Vec<f64>,
    /// Sum over tokens of the entropy of the softmax over all experts' logits, in nats; at most ln(experts) for a token.
    pub entropy_sum: f64,
}

impl RoutingMeter {
    /// The place of layer number `layer`, counted from 0.
    #[must_use]
    pub fn layer(&self, layer: usize) -> LayerMeter {
        LayerMeter { meter: self.clone(), layer }
    }

    /// What was counted, layer by layer: one copy from the device. A layer that saw no token has no experts.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when the copy fails.
    pub fn read(&self) -> Result<Vec<LayerRouting>> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let seen: Vec<&Tensor> = layers.iter().flatten().collect();
        if seen.is_empty() {
            return Ok(Vec::new());
        }
        let width = usize::try_from(seen[0].size()[0]).unwrap_or(0);
        let values = to_f64_vec(&stack(&seen, 0)?)?;
        let mut read = values.chunks_exact(width);
        let layer_of = |counted: &Option<Tensor>| match counted.as_ref().and_then(|_| read.next()).and_then(<[f64]>::split_last) {
            Some((&entropy_sum, expert_tokens)) => LayerRouting { expert_tokens: expert_tokens.to_vec(), entropy_sum },
            None => LayerRouting { expert_tokens: Vec::new(), entropy_sum: 0.0 },
        };
        Ok(layers.iter().map(layer_of).collect())
    }
}

impl LayerMeter {
    /// Counts the tokens of a forward pass.
    ///
    /// # Shapes
    /// `logits_te` [t, e] of any float type, `experts_ta` i64 [t, a].
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit, or out of memory.
    pub fn count(&self, logits_te: &Tensor, experts_ta: &Tensor) -> Result<()> {
        let counted = without_graph(|| count(&logits_te.detach(), experts_ta))?;
        let mut layers = self.meter.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if layers.len() <= self.layer {
            layers.resize_with(self.layer + 1, || None);
        }
        let sum = &mut layers[self.layer];
        *sum = Some(match sum.take() {
            Some(before) => add(&before, &counted)?,
            None => counted,
        });
        Ok(())
    }
}

/// f64 [e + 1]: tokens of each expert, and the sum of -sum p ln p over the tokens.
fn count(logits_te: &Tensor, experts_ta: &Tensor) -> Result<Tensor> {
    let (_, num_experts) = dims2("routing_meter", "logits", logits_te)?;
    let slots = experts_ta.f_reshape([-1]).named("routing_meter", &[experts_ta])?;
    let ones = slots.f_ones_like().named("routing_meter", &[&slots])?;
    let counts_e = zeros(&[num_experts], Kind::Int64, logits_te.device())?
        .f_index_add(0, &slots, &ones)
        .named("routing_meter", &[logits_te, experts_ta])?;
    let log_shares_te = logits_te.f_log_softmax(-1, Kind::Float).named("routing_meter", &[logits_te])?;
    let entropies_te = log_shares_te.f_exp().and_then(|shares_te| shares_te.f_mul(&log_shares_te)).named("routing_meter", &[logits_te])?;
    let entropy = sum_all(&cast(&entropies_te, Kind::Double)?)?;
    let entropy_1 = entropy.f_neg().and_then(|entropy| entropy.f_reshape([1])).named("routing_meter", &[logits_te])?;
    concatenate(&[&cast(&counts_e, Kind::Double)?, &entropy_1], 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::ops::top_k;
    use tch::Device;

    /// Entropy in nats of the softmax over `logits`, in f64.
    fn entropy(logits: &[f64]) -> f64 {
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - most).exp()).sum();
        logits.iter().map(|logit| (logit - most).exp() / sum).filter(|share| *share > 0.0).map(|share| -share * share.ln()).sum()
    }

    #[test]
    fn counts_and_entropy_are_those_of_plain_arithmetic() {
        tch::manual_seed(4);
        let meter = RoutingMeter::default();
        let (mut tokens, mut entropies) = (vec![0.0; 7], 0.0);
        for rows in [5, 1, 12] {
            let logits_te = Tensor::randn([rows, 7], (Kind::Float, Device::Cpu)) * 3.0;
            let (_, experts_ta) = top_k(&logits_te, 3).unwrap();
            meter.layer(2).count(&logits_te, &experts_ta).unwrap();
            for row in 0..rows {
                entropies += entropy(&to_f64_vec(&logits_te.get(row)).unwrap());
                to_f64_vec(&experts_ta.get(row)).unwrap().iter().for_each(|expert| tokens[*expert as usize] += 1.0);
            }
        }
        let read = meter.read().unwrap();
        assert_eq!(read.len(), 3);
        assert!(read[..2].iter().all(|layer| layer.expert_tokens.is_empty()));
        assert_eq!(read[2].expert_tokens, tokens);
        assert_eq!(read[2].expert_tokens.iter().sum::<f64>(), 18.0 * 3.0);
        assert!((read[2].entropy_sum - entropies).abs() < 1e-5 * entropies, "{} {entropies}", read[2].entropy_sum);
    }

    #[test]
    fn a_router_that_knows_nothing_has_the_entropy_of_all_experts_and_one_that_is_sure_none() {
        for (logits, expected) in [([0.0; 5], 5f64.ln()), ([1000.0, 0.0, 0.0, 0.0, -1000.0], 0.0)] {
            let logits_te = Tensor::from_slice(&logits).reshape([1, 5]);
            let meter = RoutingMeter::default();
            meter.layer(0).count(&logits_te, &Tensor::from_slice(&[0i64, 1]).reshape([1, 2])).unwrap();
            let read = &meter.read().unwrap()[0];
            assert!((read.entropy_sum - expected).abs() < 1e-6, "{} {expected}", read.entropy_sum);
            assert_eq!(read.expert_tokens, [1.0, 1.0, 0.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn a_meter_that_saw_nothing_reads_nothing() {
        assert_eq!(RoutingMeter::default().read().unwrap(), []);
    }
}
