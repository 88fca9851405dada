//! A training run as a person sees it: a header, then a bar on a terminal, lines elsewhere.

use std::path::Path;
use std::time::{Duration, Instant};

use ft_trainer::data::Reading;
use ft_trainer::recipe::Recipe;
use ft_trainer::run::observer::EvaluationReport;
use ft_trainer::run::{Observer, PlanReport, StepReport};
use indicatif::{ProgressBar, ProgressStyle};

use crate::progress::ByteProgress;
use crate::reading::ReadingWatcher;
use crate::report;
use crate::terminal::Terminal;
use crate::units::{bytes, duration, percent, whole};

/// Least time between two lines where stderr is no terminal; the first and the last step always have one.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Steps of a run below which it will hardly change the model.
const FEW_STEPS: usize = 10;

/// Shows a run on stderr.
pub(crate) struct Watcher<'a> {
    terminal: &'a Terminal,
    recipe: &'a Recipe,
    reading: ReadingWatcher<'a>,
    loading: Option<ByteProgress>,
    bar: Option<ProgressBar>,
    steps: usize,
    pace: Pace,
    last_line: Option<Instant>,
}

impl<'a> Watcher<'a> {
    pub(crate) fn new(recipe: &'a Recipe, terminal: &'a Terminal) -> Self {
        Self {
            terminal,
            recipe,
            reading: ReadingWatcher::new(terminal),
            loading: None,
            bar: None,
            steps: 0,
            pace: Pace::default(),
            last_line: None,
        }
    }

    /// Takes the bar away, so that what follows stands on a clean line.
    pub(crate) fn finish(&mut self) {
        self.loading = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// A line above the bar.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.terminal.note(line)),
            None => self.terminal.note(line),
        }
    }
}

impl Observer for Watcher<'_> {
    fn reading(&mut self, event: &Reading) {
        self.reading.tell(event);
    }

    fn loading(&mut self, bytes: u64, total_bytes: u64) {
        let (recipe, terminal) = (self.recipe, self.terminal);
        let label = || ByteProgress::new(format!("reading {}", recipe.model.path), terminal);
        self.loading.get_or_insert_with(label).advance(bytes, total_bytes);
    }

    fn started(&mut self, plan: &PlanReport, steps_done: usize) {
        self.loading = None;
        self.steps = plan.steps;
        self.terminal.note(&report::header(plan, self.recipe, self.terminal.stderr.palette));
        if steps_done > 0 {
            self.terminal.note(&format!("going on after step {} of {}", whole(steps_done as u64), whole(plan.steps as u64)));
        }
        if plan.steps < FEW_STEPS {
            self.terminal.warn(&format!("{} steps are few: the model will hardly change", plan.steps));
        }
        for warning in report::data_warnings(&plan.dataset) {
            self.terminal.warn(&warning);
        }
        self.pace = Pace::default();
        if self.terminal.stderr.is_terminal {
            let bar = ProgressBar::new(plan.steps as u64).with_position(steps_done as u64);
            let style = ProgressStyle::with_template("step {pos}/{len} [{bar:16}] {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.tick();
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, report: &StepReport) {
        self.pace.add(report.step_seconds);
        let left = self.pace.seconds_left(self.steps.saturating_sub(report.step));
        let figures = figures(report, left);
        if let Some(bar) = &self.bar {
            bar.set_message(figures);
            bar.set_position(report.step as u64);
            return;
        }
        let is_due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if is_due || report.step == self.steps {
            self.last_line = Some(Instant::now());
            self.terminal.note(&format!("step {}/{}  {figures}", report.step, self.steps));
        }
    }

    fn evaluation(&mut self, report: &EvaluationReport) {
        let took = duration(report.validation_seconds);
        self.say(&format!("step {}  validation loss {:.4}  ({took})", report.step, report.validation_loss));
    }

    fn sample(&mut self, step: usize, markdown: &str) {
        let text = format!("answers after step {step}:\n{}", markdown.trim_end());
        self.say(&self.terminal.stderr.palette.dim(&text));
    }

    fn checkpoint(&mut self, _step: usize, path: &Path) {
        self.say(&self.terminal.stderr.palette.dim(&format!("checkpoint {}", path.display())));
    }

    fn warning(&mut self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.terminal.warn(message)),
            None => self.terminal.warn(message),
        }
    }
}

/// The figures of a step on one line.
fn figures(report: &StepReport, seconds_left: f64) -> String {
    let utilization = report.model_flops_utilization.map_or(String::new(), |fraction| format!("  {} MFU", percent(fraction)));
    let mut text = format!(
        "loss {:.4}  lr {:.2e}  gradient {:.2}  {:.0} tokens/s ({:.0} trained){utilization}  {}",
        report.loss,
        report.learning_rate,
        report.gradient_norm,
        report.tokens_per_second,
        report.trained_tokens_per_second,
        bytes(report.peak_memory_bytes),
    );
    if seconds_left > 0.0 {
        text.push_str(&format!("  {} left", duration(seconds_left)));
    }
    text
}

/// How long a step takes, the latest counting most. The first step, which warms up caches, counts only until there is another.
#[derive(Debug, Default)]
struct Pace {
    steps: usize,
    seconds: f64,
}

impl Pace {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn add(&mut self, step_seconds: f64) {
        // Least weight of the newest step: about ten steps decide.
        const NEWEST: f64 = 0.1;
        let weight = (1.0 / self.steps.max(1) as f64).max(NEWEST);
        self.seconds += weight * (step_seconds - self.seconds);
        self.steps += 1;
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn seconds_left(&self, steps: usize) -> f64 {
        self.seconds * steps as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line_with_all_its_figures() {
        let report = StepReport {
            step: 3,
            loss: 11.876_54,
            learning_rate: 1.5e-4,
            gradient_norm: 2.345,
            tokens: 2000,
            trained_tokens: 500,
            step_seconds: 2.0,
            tokens_per_second: 1000.0,
            trained_tokens_per_second: 250.0,
            flops_per_second: 3e14,
            model_flops_utilization: None,
            epoch: 0.1,
            peak_memory_bytes: 2_100_000_000,
            host_peak_memory_bytes: None,
        };
        assert_eq!(
            figures(&report, 130.0),
            "loss 11.8765  lr 1.50e-4  gradient 2.35  1000 tokens/s (250 trained)  2.1 GB  2 min 10 s left"
        );
        assert!(figures(&report, 0.0).ends_with("2.1 GB"));
        let report = StepReport { model_flops_utilization: Some(0.314), ..report };
        assert!(figures(&report, 0.0).ends_with("(250 trained)  31.4% MFU  2.1 GB"));
    }

    #[test]
    fn the_pace_follows_the_latest_steps() {
        let mut pace = Pace::default();
        pace.add(10.0);
        assert!((pace.seconds_left(2) - 20.0).abs() < 1e-9);
        pace.add(1.0);
        assert!((pace.seconds_left(2) - 2.0).abs() < 1e-9);
        (0..100).for_each(|_| pace.add(1.0));
        assert!((pace.seconds_left(10) - 10.0).abs() < 0.1);
    }
}
