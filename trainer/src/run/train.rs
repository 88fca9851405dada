//! The training loop.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ft_formats::checkpoint::Checkpoint;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::checkpoint::{self, RunState};
use super::directory::{Log, RunDirectory, write_atomically};
use super::evaluation::evaluate;
use super::machine_dtype::for_machine;
use super::observer::{Observer, StepReport};
use super::outcome::TrainOutcome;
use super::plan::{self, Machine, PlanReport, size_of};
use super::result::write_model;
use super::routing::{self, RoutingWatch};
use super::samples;
use super::session::{self, Samples, Session, Trained};
use super::signals::StopRequest;
use crate::data::{Reading, Sample};
use crate::error::{Error, Result};
use crate::loss::{Batch, metered_loss, total_weight};
use crate::model::{Activations, RoutingMeter};
use crate::optimizer::{Schedule, clip, gradient_norm, read_together};
use crate::recipe::{Recipe, Training};
use crate::torch::device::{self, host_peak_memory_bytes, peak_memory_bytes};
use crate::torch::functions::InputKept;
use crate::torch::ops::{self, Named, zeros};
use crate::tracking::{self, Trackers};

/// How to run a recipe.
#[derive(Debug, Clone, Default)]
pub struct TrainOptions {
    /// Go on from the newest valid checkpoint, or begin where there is none.
    pub resume: bool,
}

/// Trains what `recipe` says, and writes the run directory.
///
/// # Errors
/// Anything wrong with recipe, model, data or machine, before the first step where it can be known;
/// [`Error::NotFinite`] and [`Error::Interrupted`] in the midst of it.
pub fn train(recipe: &Recipe, options: &TrainOptions, observer: &mut dyn Observer) -> Result<TrainOutcome> {
    let started = Instant::now();
    if let Device::Cuda(_) = device::best() {
        device::set_deterministic(recipe.training.deterministic);
    }
    let machine = Machine::here();
    let asked = Kind::from(recipe.training.dtype);
    let (recipe, dtype_warning) = for_machine(recipe, &machine);
    let recipe = &recipe;
    let checkpoint = Checkpoint::open(Path::new(&recipe.model.path))?;
    checkpoint.check_vocabulary()?;
    tracking::check(recipe)?;
    let samples = session::read_samples(recipe, &mut |reading| observer.reading(&reading))?;
    let mut plan = plan::report(recipe, &checkpoint, &samples, machine)?;
    plan.warnings.extend(dtype_warning);
    plan.check_fits()?;
    let directory = RunDirectory::open(&plan.run_directory, options.resume)?;
    let stop =
        StopRequest::listen().map_err(|source| Error::Io { action: "listen for signals in", path: directory.path().into(), source })?;
    let mut run = Run::open(recipe, &checkpoint, samples, &plan, directory, observer)?;
    write_atomically(&run.directory.path().join("recipe.toml"), recipe.to_toml().as_bytes())?;
    observer.started(&plan, run.state.step);
    plan.warnings.iter().for_each(|warning| observer.warning(warning));
    let result = run.finish_steps(&checkpoint, asked, &stop, observer);
    let exit_code = match &result {
        Ok(_) => 0,
        Err(Error::Interrupted { .. }) => 4,
        Err(_) => 1,
    };
    std::mem::take(&mut run.trackers).finish(exit_code).iter().for_each(|warning| observer.warning(warning));
    let (kind, result) = result?;
    Ok(TrainOutcome {
        run_directory: run.directory.path().to_path_buf(),
        result,
        kind,
        steps: run.state.step,
        first_loss: run.state.first_loss,
        last_loss: run.state.last_loss,
        validation_loss: run.state.validation_loss,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// A run under way.
struct Run<'a> {
    recipe: &'a Recipe,
    samples: Samples,
    plan: &'a PlanReport,
    schedule: Schedule,
    session: Session,
    directory: RunDirectory,
    metrics: Log,
    trackers: Trackers,
    answers: Log,
    state: RunState,
    /// The step and place of the newest checkpoint of this process.
    saved: Option<(usize, PathBuf)>,
    routing: RoutingWatch,
}

impl<'a> Run<'a> {
    /// Loads the model, and the newest checkpoint where the run directory has one.
    fn open(
        recipe: &'a Recipe,
        checkpoint: &Checkpoint,
        samples: Samples,
        plan: &'a PlanReport,
        directory: RunDirectory,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let identity = session::identity(recipe, checkpoint, &samples)?;
        let schedule = session::schedule(recipe, &samples.batches);
        let mut session = Session::open(recipe, checkpoint, observer)?;
        let checkpoint::Newest { found, passed_over } = checkpoint::newest(&directory.checkpoints())?;
        for message in passed_over {
            observer.warning(&message);
        }
        let state = match found {
            Some((path, state)) => {
                checkpoint::restore(&path, &state, &identity, &session.trainables, &mut session.optimizer)?;
                state
            }
            None => RunState {
                version: 1,
                step: 0,
                identity,
                metrics_bytes: 0,
                samples_bytes: 0,
                first_loss: None,
                last_loss: None,
                validation_loss: None,
            },
        };
        let metrics = Log::open(directory.path().join("metrics.jsonl"), state.metrics_bytes)?;
        let answers = Log::open(directory.path().join("samples.md"), state.samples_bytes)?;
        let trackers = Trackers::open(recipe, directory.path(), state.step)?;
        Ok(Self {
            recipe,
            samples,
            plan,
            schedule,
            session,
            directory,
            metrics,
            trackers,
            answers,
            state,
            saved: None,
            routing: RoutingWatch::default(),
        })
    }

    /// All steps, or those until someone asks to stop; then the result, with its kind. A model is written in `dtype`.
    fn finish_steps(
        &mut self,
        checkpoint: &Checkpoint,
        dtype: Kind,
        stop: &StopRequest,
        observer: &mut dyn Observer,
    ) -> Result<(&'static str, PathBuf)> {
        while self.state.step < self.schedule.total_steps {
            self.step(observer)?;
            if stop.is_asked() {
                let path = match self.saved.take() {
                    Some((step, path)) if step == self.state.step => path,
                    _ => self.save(observer)?,
                };
                return Err(Error::Interrupted { step: self.state.step, checkpoint: path });
            }
        }
        self.write_result(checkpoint, dtype)
    }

    /// A line of `metrics.jsonl`, for the trackers, too.
    fn record(&mut self, report: &impl Serialize, observer: &mut dyn Observer) -> Result<()> {
        self.metrics.append_json(report)?;
        self.trackers.record(report);
        self.trackers.warnings().iter().for_each(|warning| observer.warning(warning));
        Ok(())
    }

    /// One step, and what falls due after it.
    fn step(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let meter = routing::is_due(self.state.step + 1, self.schedule.total_steps).then(RoutingMeter::default);
        let report = self.update(meter.as_ref())?;
        self.record(&report, observer)?;
        observer.step(&report);
        if let Some(meter) = meter {
            let routing = routing::report(report.step, report.tokens, &meter.read()?);
            self.record(&routing, observer)?;
            observer.routing(&routing);
            self.routing.warnings(&routing, report.tokens).iter().for_each(|warning| observer.warning(warning));
        }
        self.state.step = report.step;
        self.state.first_loss.get_or_insert(report.loss);
        self.state.last_loss = Some(report.loss);
        let is_last = report.step == self.schedule.total_steps;
        let is_due = |every: usize| is_last || (every > 0 && report.step % every == 0);
        if is_due(self.recipe.evaluation.every_steps) && !self.samples.validation.is_empty() {
            let batch = self.recipe.training.batch_sequences;
            let evaluation = evaluate(&self.session.model, &self.samples.validation, batch, report.step)?;
            self.record(&evaluation, observer)?;
            self.state.validation_loss = Some(evaluation.validation_loss);
            observer.evaluation(&evaluation);
        }
        if is_due(self.recipe.sampling.every_steps) && !self.recipe.sampling.prompts.is_empty() {
            let markdown = samples::answers(&self.session.model, &self.recipe.sampling.prompts, report.step)?;
            self.answers.append(&markdown)?;
            observer.sample(report.step, &markdown);
        }
        if is_due(self.recipe.checkpoint.every_steps) {
            self.save(observer)?;
        }
        Ok(())
    }

    /// Forward, backward, clip, optimizer step.
    fn update(&mut self, meter: Option<&RoutingMeter>) -> Result<StepReport> {
        let start = Instant::now();
        let done = self.state.step;
        let batches: Vec<Vec<Sample>> = self
            .samples
            .batches
            .step(done)
            .iter()
            .map(|batch| batch.iter().map(|&sample| self.samples.train.sample(sample)).collect())
            .collect();
        let step_samples = || batches.iter().flatten();
        let activations = activations(&self.recipe.training);
        let whole = total_weight(step_samples());
        // Kept where it is computed, so that the host waits once a step, for loss and norm together.
        let mut step_loss = zeros(&[], Kind::Double, self.device())?;
        let mut trained_tokens = 0;
        for samples in &batches {
            let batch = Batch::new(samples, &self.session.model)?;
            trained_tokens += batch.targets_n.numel();
            let loss = metered_loss(&self.session.model, &batch, whole, activations, meter)?;
            step_loss = ops::add(&step_loss, &ops::cast(&loss.detach(), Kind::Double)?)?;
            if loss.requires_grad() {
                loss.f_backward().named("backward", &[])?;
            }
        }
        let not_finite = |what: &str| Error::NotFinite { what: what.to_owned(), step: done + 1, samples: origins(step_samples()) };
        let mut gradients = self.take_gradients()?;
        let norm = gradient_norm(&gradients)?;
        clip(&mut gradients, &norm, self.recipe.optimizer.max_gradient_norm)?;
        let [step_loss, gradient_norm] = read_together([&step_loss, &norm])?;
        if !step_loss.is_finite() {
            return Err(not_finite("the loss"));
        }
        if !gradient_norm.is_finite() {
            return Err(not_finite("the gradient"));
        }
        let learning_rate = self.schedule.learning_rate(done);
        let mut leaves: Vec<Tensor> = self.session.trainables.iter().map(|trainable| trainable.tensor.detach()).collect();
        self.session.optimizer.step(&mut leaves, gradients, learning_rate)?;

        let tokens = step_samples().map(|sample| sample.ids.len()).sum();
        let step_seconds = start.elapsed().as_secs_f64();
        let flops = self.plan.work_model.of(step_samples().map(size_of)).model_flops();
        let flops_per_second = if step_seconds > 0.0 { flops / step_seconds } else { 0.0 };
        let device = self.session.model.device;
        Ok(StepReport {
            step: done + 1,
            loss: step_loss,
            learning_rate,
            gradient_norm,
            tokens,
            trained_tokens,
            step_seconds,
            tokens_per_second: per_second(tokens, step_seconds),
            trained_tokens_per_second: per_second(trained_tokens, step_seconds),
            flops_per_second,
            model_flops_utilization: self.plan.peak().map(|peak| flops_per_second / peak.flops_per_second),
            epoch: per_second(done + 1, per_second(self.samples.batches.steps_per_epoch(), 1.0)),
            peak_memory_bytes: peak_memory_bytes(device),
            host_peak_memory_bytes: (device != Device::Cpu).then(host_peak_memory_bytes),
        })
    }

    /// Where the leaves lie.
    fn device(&self) -> Device {
        self.session.trainables.first().map_or(Device::Cpu, |trainable| trainable.tensor.device())
    }

    /// The gradient of every leaf, zeros where none arrived (an expert that no token chose), and none left behind.
    fn take_gradients(&self) -> Result<Vec<Tensor>> {
        self.session
            .trainables
            .iter()
            .map(|trainable| {
                let gradient = trainable.tensor.f_grad().named("gradient", &[])?;
                if !gradient.defined() {
                    return zeros(&trainable.tensor.size(), trainable.tensor.kind(), trainable.tensor.device());
                }
                let taken = gradient.f_contiguous().and_then(|gradient| gradient.f_detach()).named("gradient", &[])?;
                crate::torch::autograd::clear_gradient(&trainable.tensor)?;
                Ok(taken)
            })
            .collect()
    }

    fn save(&mut self, observer: &mut dyn Observer) -> Result<PathBuf> {
        self.state.metrics_bytes = self.metrics.length();
        self.state.samples_bytes = self.answers.length();
        let path = checkpoint::write(
            &self.directory.checkpoints(),
            &self.state,
            &self.session.trainables,
            &self.session.optimizer,
            self.recipe.checkpoint.keep,
        )?;
        observer.checkpoint(self.state.step, &path);
        self.saved = Some((self.state.step, path.clone()));
        Ok(path)
    }

    /// The adapter or the model, in the format that others read.
    fn write_result(&mut self, checkpoint: &Checkpoint, dtype: Kind) -> Result<(&'static str, PathBuf)> {
        match &self.session.trained {
            Trained::Adapter(adapter) => {
                let path = self.directory.path().join("adapter");
                adapter.write(&path, &self.recipe.model.path)?;
                Ok(("adapter", path))
            }
            Trained::Everything => {
                let path = self.directory.path().join("model");
                write_model(&path, checkpoint, &self.session.trainables, dtype)?;
                Ok(("model", path))
            }
        }
    }
}

/// What the layers keep for the backward pass.
fn activations(training: &Training) -> Activations {
    match (training.checkpoint_activations, training.offload_activations) {
        (false, _) => Activations::Kept,
        (true, false) => Activations::Recomputed(InputKept::OnDevice),
        (true, true) => Activations::Recomputed(InputKept::OnHost),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per_second(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// `, in FILE:LINE, ...`: where the samples of a step come from.
fn origins<'a>(samples: impl Iterator<Item = &'a Sample>) -> String {
    let mut names: Vec<String> = samples.map(|sample| sample.origin.to_string()).collect();
    names.dedup();
    let more = names.len().saturating_sub(8);
    names.truncate(8);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(", in a step of {}{more}", names.join(", "))
}

/// What a run of `recipe` would do and need on `machine`, without doing it and without reading a weight.
///
/// # Errors
/// Anything wrong with recipe, model or data.
pub fn plan_of(recipe: &Recipe, machine: Machine, watch: &mut dyn FnMut(Reading)) -> Result<PlanReport> {
    let (recipe, dtype_warning) = for_machine(recipe, &machine);
    let recipe = &recipe;
    let checkpoint = Checkpoint::open(Path::new(&recipe.model.path))?;
    checkpoint.check_vocabulary()?;
    let samples = session::read_samples(recipe, watch)?;
    let mut plan = plan::report(recipe, &checkpoint, &samples, machine)?;
    plan.warnings.extend(dtype_warning);
    Ok(plan)
}
