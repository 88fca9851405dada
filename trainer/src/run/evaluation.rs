//! The loss on samples that are not trained on.

use std::time::Instant;

use super::observer::EvaluationReport;
use crate::data::{Dataset, Sample};
use crate::error::Result;
use crate::loss::{Batch, loss, total_weight};
use crate::model::{Activations, Transformer};
use crate::torch::ops::{scalar, without_graph};

/// Weighted mean loss over `samples`, a few sequences at a time.
///
/// # Errors
/// Those of the forward pass.
pub fn evaluate(model: &Transformer, samples: &Dataset, batch_sequences: usize, step: usize) -> Result<EvaluationReport> {
    let start = Instant::now();
    let whole = total_weight(samples.iter());
    let mut validation_loss = 0.0;
    let mut validation_trained_tokens = 0;
    let indices: Vec<usize> = (0..samples.len()).collect();
    for indices in indices.chunks(batch_sequences.max(1)) {
        let together: Vec<Sample> = indices.iter().map(|&index| samples.sample(index)).collect();
        let batch = Batch::new(&together, model)?;
        validation_trained_tokens += batch.targets_n.numel();
        validation_loss += without_graph(|| scalar(&loss(model, &batch, whole, Activations::Kept)?))?;
    }
    Ok(EvaluationReport { step, validation_loss, validation_trained_tokens, validation_seconds: start.elapsed().as_secs_f64() })
}
