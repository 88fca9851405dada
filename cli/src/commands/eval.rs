//! `ft eval`: how well a model predicts, and how far it is from a reference.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use ft_trainer::evaluation::{Evaluation, EvaluationData, EvaluationRequest, Held, evaluate};

use crate::arguments::ComputeDtype;
use crate::error::{Error, Result};
use crate::evaluation::{Watcher, words};
use crate::json;
use crate::report;
use crate::report_file::ReportFile;
use crate::terminal::Terminal;

/// Measure how well a model predicts conversations, and how far it is from a reference
///
/// Counted is what the assistant writes, on every channel: loss in nats per token, perplexity, and how often the likeliest
/// token is the one that comes. With --reference, token by token: the KL divergence of the model's next-token distribution
/// from the reference's over the whole vocabulary, how often both have the same likeliest token, what happened to the
/// probability of the right one, and whether the routers still choose the same experts. Percentiles are interpolated
/// linearly, as numpy does.
///
/// The reference runs first; then one hidden state per counted token is kept of it, and its output head. Both models are
/// never in memory at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft eval models/20b --data data/heldout.jsonl
  ft eval models/20b --adapter runs/coding/adapter --data data/heldout.jsonl
  ft eval release/20b --reference models/20b --data data/heldout.jsonl --limit 200
  ft eval release/20b --reference models/20b --data data/ --fail-above-kl 0.01 --report report.json

Exit code 1 when the mean KL divergence is above the bound of --fail-above-kl: the figures are
printed all the same, but no report is written (one that was there stays as it is).

JSON: {\"version\": 1, \"loss\", \"perplexity\", \"token_accuracy\", \"counted_tokens\", \"channels\", ...,
\"comparison\": {\"kl_divergence\": {\"mean\", \"standard_error\", \"maximum\", \"p99_9\", ...}, ...}}")]
pub(crate) struct Arguments {
    /// The model: a directory, or a GGUF file
    model: PathBuf,
    /// Files, folders or patterns of conversations
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    data: Vec<String>,
    /// The model to compare with: usually the one that this one was made from
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// An adapter on top of the model; the reference has none
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Cut longer samples at this many tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<NonZeroUsize>,
    /// Conversations read, the first ones
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Type of weights and activations; bf16 takes half the memory, and adds its own rounding to both models
    #[arg(long, value_enum, default_value_t = ComputeDtype::F32)]
    dtype: ComputeDtype,
    /// Fail when the mean KL divergence is above this many nats
    #[arg(long, value_name = "NATS", requires = "reference", value_parser = bound, allow_negative_numbers = true)]
    fail_above_kl: Option<f64>,
    /// Write the figures as JSON to this file, too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn bound(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("a number of nats that is not negative".to_owned()),
    }
}

/// Evaluate, print, compare with the bound, publish.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let report = arguments.report.as_deref().map(ReportFile::prepare).transpose()?;
    let request = EvaluationRequest {
        model: &arguments.model,
        adapter: arguments.adapter.as_deref(),
        reference: arguments.reference.as_deref(),
        data: EvaluationData::Files(&arguments.data),
        max_tokens: arguments.max_tokens.map(NonZeroUsize::get),
        limit: arguments.limit.map(NonZeroUsize::get),
        dtype: arguments.dtype.into(),
        held: Held::Whole,
    };
    let mut watcher = Watcher::new(terminal);
    let evaluation = evaluate(&request, &mut |progress| watcher.advance(&progress))?;
    watcher.finish();
    for warning in report::evaluation_warnings(&evaluation.dataset) {
        terminal.warn(&warning);
    }
    if arguments.json {
        json::print(&evaluation, terminal)?;
    } else {
        terminal.print(&words(&evaluation, terminal.stdout.palette))?;
    }
    check_bound(&evaluation, arguments.fail_above_kl)?;
    report.map_or(Ok(()), |report| report.publish(&evaluation))
}

pub(crate) fn check_bound(evaluation: &Evaluation, bound: Option<f64>) -> Result<()> {
    let mean = evaluation.comparison.as_ref().map(|comparison| comparison.kl_divergence.mean.mean);
    match (mean, bound) {
        (Some(mean), Some(bound)) if mean > bound => Err(Error::KlAboveBound { model: evaluation.model.clone(), mean, bound }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_number_that_is_not_negative() {
        assert_eq!([bound("0"), bound("1e-3")], [Ok(0.0), Ok(1e-3)]);
        for text in ["-1", "nan", "inf", "-inf", "", "0,1", "--json"] {
            assert!(bound(text).is_err(), "{text}");
        }
    }
}
