//! What a finished run amounts to.

use std::path::PathBuf;

use serde::Serialize;

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainOutcome {
    /// The run directory.
    pub run_directory: PathBuf,
    /// The adapter or model directory.
    pub result: PathBuf,
    /// `adapter` or `model`.
    pub kind: &'static str,
    /// Steps of the whole run.
    pub steps: usize,
    /// Loss of the first step; `None` when it was done by an earlier process and its line is gone.
    pub first_loss: Option<f64>,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
    /// Loss of the last evaluation.
    pub validation_loss: Option<f64>,
    /// Seconds of this process.
    pub seconds: f64,
}
