//! One token after another: sampling from a model, with its keys and values kept.

use std::ops::ControlFlow;
use std::path::Path;

use ft_formats::checkpoint::Checkpoint;
use tch::{Device, Kind, Tensor};

use crate::adapters::lora::Adapter;
use crate::error::Result;
use crate::model::Transformer;
use crate::model::weights::{Placement, load};
use crate::random::Stream;
use crate::recipe::TrainingDtype;
use crate::torch::device::{best, has_fast_bf16};
use crate::torch::ops::{to_f32_vec, without_graph};

/// How tokens are chosen, and when to stop.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// New tokens at most.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; 1 samples from the model's own distribution.
    pub temperature: f64,
    /// Seed of the sampling.
    pub seed: u64,
    /// Tokens that end the answer; the one that came is part of the result.
    pub stop_tokens: Vec<u32>,
}

/// A model ready to answer.
#[derive(Debug)]
pub struct Generator {
    model: Transformer,
}

impl Generator {
    /// Loads a model, and an adapter on top of it.
    ///
    /// # Errors
    /// Those of the checkpoint's and the adapter's readers, or out of memory.
    pub fn open(model: &Path, adapter: Option<&Path>, dtype: TrainingDtype, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let checkpoint = Checkpoint::open(model)?;
        checkpoint.check_vocabulary()?;
        let total = checkpoint.total_bytes();
        let device = best();
        // Without instructions for bf16 a CPU takes minutes for a token; f32 is the same model, and more exact.
        let kind = if device == Device::Cpu && !has_fast_bf16() { Kind::Float } else { dtype.into() };
        let mut model = load(&checkpoint, Placement::frozen(kind, device), &mut |bytes| progress(bytes, total))?;
        if let Some(path) = adapter {
            Adapter::from_peft(&mut model, checkpoint.config(), path)?;
        }
        Ok(Self { model })
    }

    /// Continues `prompt`; `on_token` sees each new token and may stop.
    ///
    /// # Errors
    /// Those of the forward pass.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        generate(&self.model, prompt, options, on_token)
    }
}

/// Continues `prompt` with `model`; see [`Generator::generate`].
///
/// # Errors
/// Those of the forward pass.
pub fn generate(
    model: &Transformer,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    without_graph(|| {
        let mut stream = Stream::new(options.seed, "generate", 0);
        let mut cache = model.new_cache();
        let mut generated = Vec::new();
        let room = model.num_positions.saturating_sub(prompt.len());
        let mut unread = prompt.to_vec();
        while generated.len() < options.max_tokens.min(room) && !unread.is_empty() {
            let logits = model.next_logits(&unread, &mut cache)?;
            let token = choose(&logits, options.temperature, &mut stream)?;
            generated.push(token);
            if on_token(token).is_break() || options.stop_tokens.contains(&token) {
                break;
            }
            unread = vec![token];
        }
        Ok(generated)
    })
}

/// The likeliest token, or one drawn by its probability at `temperature`.
fn choose(logits_1v: &Tensor, temperature: f64, stream: &mut Stream) -> Result<u32> {
    let logits = to_f32_vec(logits_1v)?;
    let (likeliest, peak) =
        logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (token, &logit)| if logit > best.1 { (token, logit) } else { best });
    if temperature <= 0.0 {
        return Ok(u32::try_from(likeliest).unwrap_or(0));
    }
    let weight = |logit: f32| (f64::from(logit - peak) / temperature).exp();
    let mut left = stream.uniform() * logits.iter().map(|&logit| weight(logit)).sum::<f64>();
    for (token, &logit) in logits.iter().enumerate() {
        left -= weight(logit);
        if left < 0.0 {
            return Ok(u32::try_from(token).unwrap_or(0));
        }
    }
    Ok(u32::try_from(likeliest).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_temperature_takes_the_likeliest() {
        let logits = Tensor::from_slice(&[0.1f32, 3.0, -1.0]).view([1, 3]);
        assert_eq!(choose(&logits, 0.0, &mut Stream::new(1, "t", 0)).unwrap(), 1);
    }

    #[test]
    fn sampling_follows_the_distribution() {
        let logits = Tensor::from_slice(&[0f32, 1f32.exp().ln(), f32::NEG_INFINITY]).view([1, 3]);
        let mut stream = Stream::new(1, "t", 0);
        let mut counts = [0; 3];
        for _ in 0..4000 {
            counts[choose(&logits, 1.0, &mut stream).unwrap() as usize] += 1;
        }
        let share = f64::from(counts[1]) / 4000.0;
        assert!((share - 0.731).abs() < 0.03, "{counts:?}");
        assert_eq!(counts[2], 0);
    }
}
