//! What a run tells whoever watches it.

use std::path::Path;

use serde::Serialize;

use super::plan::PlanReport;
use crate::data::Reading;

/// Figures of one step, as a line of `metrics.jsonl` holds them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// Steps done, counted from 1.
    pub step: usize,
    /// Weighted mean cross entropy of the step's trained tokens, in nats, before the update.
    pub loss: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Norm of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// Tokens in the step.
    pub tokens: usize,
    /// Tokens in the step with a loss weight.
    pub trained_tokens: usize,
    /// Duration of the step.
    pub step_seconds: f64,
    /// Tokens over seconds.
    pub tokens_per_second: f64,
    /// Trained tokens over seconds.
    pub trained_tokens_per_second: f64,
    /// Floating-point operations of forward and backward pass over seconds; what is computed again to save memory is not counted.
    pub flops_per_second: f64,
    /// The same as a fraction of what the device could do in bf16, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_flops_utilization: Option<f64>,
    /// Passes over the dataset, as a fraction, after the step.
    pub epoch: f64,
    /// Most memory held so far: of tensors on a CUDA device, else of the whole process.
    pub peak_memory_bytes: u64,
    /// Most host memory of the process so far, where the other figure is of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_peak_memory_bytes: Option<u64>,
}

/// Figures of one evaluation, as a line of `metrics.jsonl` holds them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluationReport {
    /// Steps done.
    pub step: usize,
    /// Weighted mean cross entropy over the validation samples, in nats.
    pub validation_loss: f64,
    /// Tokens with a loss weight.
    pub validation_trained_tokens: usize,
    /// Duration.
    pub validation_seconds: f64,
}

/// What the routers did in one step, as a line of `metrics.jsonl` holds it. Some steps have one: see [`super::routing::is_due`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoutingReport {
    /// Steps done, counted from 1.
    pub step: usize,
    /// For each layer the mean over the step's tokens of the entropy of the router's distribution, the softmax over all experts, in nats.
    /// A router that prefers no expert has ln(experts).
    pub router_entropy: Vec<f64>,
    /// For each layer the share of the step's tokens that each expert got; 0..1, their sum is the number of experts of a token.
    pub expert_load: Vec<Vec<f64>>,
    /// Experts that got no token, over all layers.
    pub idle_experts: usize,
}

/// Receives a run's events, in order. The default of each does nothing.
#[expect(unused_variables, reason = "the names document the arguments")]
pub trait Observer {
    /// Reading the conversations.
    fn reading(&mut self, event: &Reading) {}
    /// Reading the model: `bytes` more of `total_bytes`.
    fn loading(&mut self, bytes: u64, total_bytes: u64) {}
    /// The run is about to begin, or to go on after `steps_done`.
    fn started(&mut self, plan: &PlanReport, steps_done: usize) {}
    /// A step is done.
    fn step(&mut self, report: &StepReport) {}
    /// The routers' choices of a step were counted.
    fn routing(&mut self, report: &RoutingReport) {}
    /// An evaluation is done.
    fn evaluation(&mut self, report: &EvaluationReport) {}
    /// A prompt was answered: `markdown` is what `samples.md` holds.
    fn sample(&mut self, step: usize, markdown: &str) {}
    /// A checkpoint is complete on disk.
    fn checkpoint(&mut self, step: usize, path: &Path) {}
    /// Something that the user should know, though the run goes on.
    fn warning(&mut self, message: &str) {}
}

/// An observer that does nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Two observers, told of everything in this order.
#[derive(Debug)]
pub struct Both<First, Second>(pub First, pub Second);

impl<First: Observer, Second: Observer> Observer for Both<First, Second> {
    fn reading(&mut self, event: &Reading) {
        self.0.reading(event);
        self.1.reading(event);
    }

    fn loading(&mut self, bytes: u64, total_bytes: u64) {
        self.0.loading(bytes, total_bytes);
        self.1.loading(bytes, total_bytes);
    }

    fn started(&mut self, plan: &PlanReport, steps_done: usize) {
        self.0.started(plan, steps_done);
        self.1.started(plan, steps_done);
    }

    fn step(&mut self, report: &StepReport) {
        self.0.step(report);
        self.1.step(report);
    }

    fn routing(&mut self, report: &RoutingReport) {
        self.0.routing(report);
        self.1.routing(report);
    }

    fn evaluation(&mut self, report: &EvaluationReport) {
        self.0.evaluation(report);
        self.1.evaluation(report);
    }

    fn sample(&mut self, step: usize, markdown: &str) {
        self.0.sample(step, markdown);
        self.1.sample(step, markdown);
    }

    fn checkpoint(&mut self, step: usize, path: &Path) {
        self.0.checkpoint(step, path);
        self.1.checkpoint(step, path);
    }

    fn warning(&mut self, message: &str) {
        self.0.warning(message);
        self.1.warning(message);
    }
}
