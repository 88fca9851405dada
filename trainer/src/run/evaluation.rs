//! The loss on samples that are not trained on.

use std::time::Instant;

use super::observer::EvaluationReport;
use crate::data::Sample;
use crate::error::Result;
use crate::loss::{Batch, loss, total_weight};
use crate::model::{Activations, Transformer};
use crate::torch::ops::{scalar, without_graph};

/// Weighted mean loss over `samples`, a few sequences at a time.
///
/// # Errors
/// Those of the forward pass.
pub fn evaluate(model: &Transformer, samples: &[Sample], batch_sequences: usize, step: usize) -> Result<EvaluationReport> {
    let start = Instant::now();
    let whole = total_weight(samples);
    let mut validation_loss = 0.0;
    let mut validation_trained_tokens = 0;
    for samples in samples.chunks(batch_sequences.max(1)) {
        let batch = Batch::new(samples, model)?;
        validation_trained_tokens += batch.targets_n.numel();
        validation_loss += without_graph(|| scalar(&loss(model, &batch, whole, Activations::Kept)?))?;
    }
    Ok(EvaluationReport { step, validation_loss, validation_trained_tokens, validation_seconds: start.elapsed().as_secs_f64() })
}
