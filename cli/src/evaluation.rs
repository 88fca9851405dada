//! An evaluation, in words: its progress on stderr, its figures as tables.

use std::path::Path;

use ft_trainer::evaluation::{
    Comparison, Evaluation, EvaluationProgress, EvaluationStage, Prediction, RouterAgreement, RouterMismatch, Spread,
};

use crate::progress::{ByteProgress, TokenProgress};
use crate::report;
use crate::terminal::{Palette, Terminal};
use crate::units::{counted, duration, whole};

/// Width of the first column.
const LABEL: usize = 16;

/// Width of a column of figures.
const FIGURE: usize = 14;

/// Shows how far an evaluation is, a bar for each stage.
pub(crate) struct Watcher<'a> {
    terminal: &'a Terminal,
    stage: Option<EvaluationStage>,
    bytes: Option<ByteProgress>,
    tokens: Option<TokenProgress>,
}

impl<'a> Watcher<'a> {
    pub(crate) fn new(terminal: &'a Terminal) -> Self {
        Self { terminal, stage: None, bytes: None, tokens: None }
    }

    pub(crate) fn advance(&mut self, progress: &EvaluationProgress<'_>) {
        // A model is read, then run: no two stages of a kind follow each other.
        if self.stage.replace(progress.stage) != Some(progress.stage) {
            self.finish();
        }
        let label = |word: &str| format!("{word} {}", progress.model.display());
        match progress.stage {
            EvaluationStage::Reading => {
                let bar = self.bytes.get_or_insert_with(|| ByteProgress::new(label("reading"), self.terminal));
                bar.set(progress.done, progress.total);
            }
            EvaluationStage::Running => {
                let bar = self.tokens.get_or_insert_with(|| TokenProgress::new(label("running"), self.terminal));
                bar.set(progress.done, progress.total);
            }
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        self.bytes = None;
        self.tokens = None;
    }
}

/// All figures.
pub(crate) fn words(evaluation: &Evaluation, palette: Palette) -> String {
    let mut parts = vec![header(evaluation, palette), predictions(evaluation, palette)];
    if let Some(comparison) = &evaluation.comparison {
        parts.push(divergence(comparison, palette));
        parts.push(agreement(comparison));
        parts.extend(comparison.router.as_ref().map(|router| routers(router, palette)));
        parts.extend(comparison.router_mismatch.map(mismatch));
    }
    parts.join("\n\n")
}

fn header(evaluation: &Evaluation, palette: Palette) -> String {
    let line = |label: &str, text: String| format!("{}{text}", palette.heading(&format!("{label:LABEL$}")));
    let adapter = evaluation.adapter.as_deref().map_or(String::new(), |path| format!(" with {}", path.display()));
    let dtype = match evaluation.dtype {
        ft_trainer::recipe::TrainingDtype::Bf16 => "bf16",
        ft_trainer::recipe::TrainingDtype::F32 => "f32",
    };
    let device = if evaluation.device == "cpu" { "the CPU" } else { evaluation.device };
    let mut lines = vec![line("model", format!("{}{adapter}, {dtype} on {device}", evaluation.model.display()))];
    lines.extend(evaluation.comparison.as_ref().map(|comparison| line("reference", show(&comparison.reference))));
    lines.push(line("data", report::data(&evaluation.dataset)));
    let total = evaluation.dataset.tokens;
    lines.push(line(
        "",
        format!("{}, {} counted; {}", counted(total, "token"), whole(evaluation.counted_tokens as u64), duration(evaluation.seconds)),
    ));
    lines.join("\n")
}

/// Loss, perplexity and accuracy by channel, of all, and of the reference.
fn predictions(evaluation: &Evaluation, palette: Palette) -> String {
    let has_reference = evaluation.comparison.is_some();
    let row = |label: &str, tokens: usize, prediction: &Prediction, divergence: Option<f64>| {
        let mut text = format!(
            "{label:LABEL$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}",
            whole(tokens as u64),
            format!("{:.5}", prediction.loss),
            error(prediction.loss_standard_error),
            figure(prediction.perplexity),
            percent(prediction.token_accuracy),
        );
        if let Some(divergence) = divergence {
            text += &format!("{:>FIGURE$}", figure(divergence));
        }
        text
    };
    let mut heading =
        format!("{:LABEL$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}", "", "tokens", "loss", "+-", "perplexity", "accuracy");
    if has_reference {
        heading += &format!("{:>FIGURE$}", "mean KL");
    }
    let mut lines = vec![palette.heading(&heading)];
    for (name, channel) in &evaluation.channels {
        lines.push(row(name, channel.counted_tokens, &channel.prediction, channel.kl_divergence));
    }
    let comparison = evaluation.comparison.as_ref();
    let divergence = comparison.map(|comparison| comparison.kl_divergence.mean.mean);
    lines.push(row("all", evaluation.counted_tokens, &evaluation.prediction, divergence));
    lines.extend(comparison.map(|comparison| row("reference", evaluation.counted_tokens, &comparison.reference_prediction, None)));
    lines.join("\n")
}

/// KL divergence and change of the right token's probability, percentile by percentile.
fn divergence(comparison: &Comparison, palette: Palette) -> String {
    let change = &comparison.probability_change;
    let (left, right) = (&comparison.kl_divergence, &change.spread);
    let row = |label: &str, left: String, right: String| format!("{label:LABEL$}{left:>FIGURE$}{right:>FIGURE$}").trim_end().to_owned();
    let heading = format!("{:LABEL$}{:>FIGURE$}{:>FIGURE$}", "each token", "KL, nats", "change of p");
    let mut lines = vec![palette.heading(&heading)];
    lines.push(row("mean", figure(left.mean.mean), signed_percent(right.mean.mean)));
    lines.push(row("+-", error(left.mean.standard_error), right.mean.standard_error.map_or("?".to_owned(), percent)));
    lines.push(row("root mean square", String::new(), percent(change.rms)));
    for ((label, left), (_, right)) in percentiles(left).into_iter().zip(percentiles(right)) {
        lines.push(row(label, figure(left), signed_percent(right)));
    }
    lines.join("\n")
}

fn percentiles(spread: &Spread) -> [(&'static str, f64); 13] {
    let found = &spread.percentiles;
    [
        ("maximum", found.maximum),
        ("99.9%", found.p99_9),
        ("99%", found.p99),
        ("95%", found.p95),
        ("90%", found.p90),
        ("75%", found.p75),
        ("median", found.median),
        ("25%", found.p25),
        ("10%", found.p10),
        ("5%", found.p5),
        ("1%", found.p1),
        ("0.1%", found.p0_1),
        ("minimum", found.minimum),
    ]
}

fn agreement(comparison: &Comparison) -> String {
    let line = |label: &str, text: String| format!("{label:34}{text}");
    let correlation = comparison.log_probability_correlation.map_or("?".to_owned(), |value| format!("{value:.6}"));
    [
        line(
            "same likeliest token",
            format!(
                "{} +- {}",
                percent(comparison.same_top_fraction),
                comparison.same_top_fraction_standard_error.map_or("?".to_owned(), percent)
            ),
        ),
        line(
            "perplexity over the reference's",
            format!("{:.6} +- {}", comparison.perplexity_ratio, error(comparison.perplexity_ratio_standard_error)),
        ),
        line(
            "  its logarithm",
            format!("{:+.6} +- {}", comparison.ln_perplexity_ratio, error(comparison.ln_perplexity_ratio_standard_error)),
        ),
        line("correlation of log-probabilities", correlation),
    ]
    .join("\n")
}

fn routers(router: &RouterAgreement, palette: Palette) -> String {
    let row = |label: &str, share: f64, same: f64| format!("{label:LABEL$}{:>FIGURE$}{:>FIGURE$}", percent(share), percent(same));
    let heading = format!(
        "{:LABEL$}{:>FIGURE$}{:>FIGURE$}   of the reference's {} experts of a token",
        "router", "also picked", "all the same", router.experts_per_token
    );
    let mut lines = vec![palette.heading(&heading), row("all layers", router.agreement_fraction, router.same_set_fraction)];
    for layer in &router.layers {
        lines.push(row(&format!("layer {}", layer.layer), layer.agreement_fraction, layer.same_set_fraction));
    }
    lines.join("\n")
}

fn mismatch(found: RouterMismatch) -> String {
    let RouterMismatch { what, reference, model } = found;
    format!("the routers are not compared: the reference has {reference} {what}, the model {model}")
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// Four digits, in powers of ten where it is small or large.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (1e-3..1e5).contains(&size) => format!("{value:.*}", if size < 1.0 { 6 } else { 4 }),
        _ => format!("{value:.3e}"),
    }
}

fn error(standard_error: Option<f64>) -> String {
    standard_error.map_or("?".to_owned(), figure)
}

fn percent(fraction: f64) -> String {
    format!("{:.3}%", fraction * 100.0)
}

fn signed_percent(fraction: f64) -> String {
    format!("{:+.3}%", fraction * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_four_digits() {
        assert_eq!(
            [figure(0.0), figure(0.001_234_4), figure(12.345_67), figure(1.234_4e-9), figure(1e6)],
            ["0", "0.001234", "12.3457", "1.234e-9", "1.000e6"]
        );
        assert_eq!([signed_percent(0.012_344), signed_percent(-0.5), error(None)], ["+1.234%", "-50.000%", "?"]);
    }

    #[test]
    fn what_keeps_routers_from_being_compared_is_said() {
        let found = RouterMismatch { what: "experts of a layer", reference: 32, model: 24 };
        assert_eq!(mismatch(found), "the routers are not compared: the reference has 32 experts of a layer, the model 24");
    }
}
