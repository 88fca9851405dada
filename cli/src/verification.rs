//! A verification, in words and for scripts, and the bounds within which it passes.

use std::path::Path;

use clap::Args;
use ft_formats::comparison::{Fidelity, TensorComparison};
use ft_trainer::evaluation::{Comparison, Spread};
use ft_trainer::verification::{Prompts, Verification, VerificationProgress, VerificationRequest, verify};
use serde::Serialize;

use crate::commands::eval::bound;
use crate::commands::quantize::decibels;
use crate::error::{Error, Result};
use crate::evaluation::Watcher;
use crate::progress::ElementProgress;
use crate::terminal::{Palette, Terminal};
use crate::units::{counted, percent, whole};

/// Least signal to noise of a tensor or of an expert that was quantized, in dB: below what four bits leave of weights, and far above what a
/// mistake does.
const QUANTIZED_LEAST_DB: f64 = 10.0;

/// The same of one that was rounded to another float, where f16 may hold some numbers with fewer bits than others.
const ROUNDED_LEAST_DB: f64 = 30.0;

/// From here on a tensor has lost no more than rounding to 16 bits does, in dB: bf16 leaves about 55, f16 about 70, eight bits about 45.
const ROUNDED_SQNR_DB: f64 = 40.0;

/// Most mean KL divergence of a model whose tensors lost no more than that, or of one whose rotary periods GGUF cannot express, in nats.
const ROUNDED_KL: f64 = 0.05;

/// Most mean KL divergence of a model that lost nothing, in nats: of what is left, GGUF's settings in single precision.
const EXACT_KL: f64 = 1e-6;

/// What a verification has to keep to.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Bounds {
    /// Fail when the signal of a tensor or expert is less than this many dB above the error [default: 10 where it was quantized, 30
    /// where it was rounded to another float; all else has to be exact]
    #[arg(long, value_name = "DB", value_parser = decibels, allow_negative_numbers = true)]
    fail_below: Option<f64>,
    /// Fail when the mean KL divergence is above this many nats [default: 0.000001 where nothing was lost, 0.05 where weights were rounded]
    #[arg(long, value_name = "NATS", value_parser = bound, allow_negative_numbers = true)]
    fail_above_kl: Option<f64>,
}

impl Bounds {
    /// True when one was asked for.
    pub(crate) fn are_given(&self) -> bool {
        self.fail_below.is_some() || self.fail_above_kl.is_some()
    }

    /// Fails when the verification does.
    pub(crate) fn judge(&self, model: &Path, verification: &Verification) -> Result<()> {
        let worst_of = |fidelity| {
            let differing = verification.tensors.iter().filter(|tensor| tensor.deviation.is_some() && tensor.fidelity == fidelity);
            differing.min_by(|left, right| left.sqnr_db().total_cmp(&right.sqnr_db()))
        };
        // What had to be exact comes first: it tells most.
        for (fidelity, least_db) in
            [(Fidelity::Exact, f64::INFINITY), (Fidelity::Rounded, ROUNDED_LEAST_DB), (Fidelity::Quantized, QUANTIZED_LEAST_DB)]
        {
            let Some(worst) = worst_of(fidelity) else { continue };
            let (tensor, found_db, bound_db) = (worst.place(), worst.sqnr_db(), self.fail_below.unwrap_or(least_db));
            if bound_db.is_infinite() {
                return Err(Error::TensorChanged { tensor, found_db });
            } else if found_db < bound_db {
                return Err(Error::TensorBelowBound { tensor, found_db, bound_db });
            }
        }
        let worst_db = verification.worst().map_or(f64::INFINITY, TensorComparison::sqnr_db);
        // How far a model strays when its weights are quantized is for those who release it to judge.
        let usual = match worst_db {
            f64::INFINITY if verification.has_same_ramp => Some(EXACT_KL),
            worst_db => (worst_db >= ROUNDED_SQNR_DB).then_some(ROUNDED_KL),
        };
        let mean = verification.evaluation.comparison.as_ref().map(|comparison| comparison.kl_divergence.mean.mean);
        match (mean, self.fail_above_kl.or(usual)) {
            (Some(mean), Some(bound)) if mean > bound => Err(Error::KlAboveBound { model: model.to_owned(), mean, bound }),
            _ => Ok(()),
        }
    }
}

/// Verifies, and shows how far it is.
pub(crate) fn verified(model: &Path, source: &Path, data: Option<&[String]>, terminal: &Terminal) -> Result<Verification> {
    let mut tensors = Some(ElementProgress::new(format!("comparing with {}", source.display()), terminal));
    let mut watcher = Watcher::new(terminal);
    let verification = verify(&VerificationRequest { model, source, data }, &mut |progress| match progress {
        VerificationProgress::Tensors { done, total } => tensors.iter_mut().for_each(|bar| bar.set(done, total)),
        VerificationProgress::Answers(answers) => {
            tensors = None;
            watcher.advance(&answers);
        }
    })?;
    watcher.finish();
    Ok(verification)
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome<'a> {
    model: &'a Path,
    source: &'a Path,
    #[serde(flatten)]
    figures: Figures<'a>,
}

/// The figures.
#[derive(Debug, Serialize)]
pub(crate) struct Figures<'a> {
    tensors: Tensors<'a>,
    prompts: Prompts,
    counted_tokens: usize,
    kl_divergence: Option<&'a Spread>,
    same_top_fraction: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Tensors<'a> {
    count: usize,
    exact: usize,
    worst: Option<Worst<'a>>,
}

#[derive(Debug, Serialize)]
struct Worst<'a> {
    name: &'a str,
    expert: Option<usize>,
    sqnr_db: f64,
}

impl<'a> Outcome<'a> {
    pub(crate) fn new(model: &'a Path, source: &'a Path, verification: &'a Verification) -> Self {
        Self { model, source, figures: Figures::of(verification) }
    }
}

impl<'a> Figures<'a> {
    pub(crate) fn of(verification: &'a Verification) -> Self {
        let comparison = verification.evaluation.comparison.as_ref();
        Self {
            tensors: Tensors {
                count: verification.tensors.len(),
                exact: num_exact(verification),
                worst: verification.worst().map(|worst| Worst {
                    name: &worst.name,
                    expert: worst.worst_expert.as_ref().map(|(expert, _)| *expert),
                    sqnr_db: worst.sqnr_db(),
                }),
            },
            prompts: verification.prompts,
            counted_tokens: verification.evaluation.counted_tokens,
            kl_divergence: comparison.map(|comparison| &comparison.kl_divergence),
            same_top_fraction: comparison.map(|comparison| comparison.same_top_fraction),
        }
    }
}

fn num_exact(verification: &Verification) -> usize {
    verification.tensors.iter().filter(|tensor| tensor.deviation.is_none()).count()
}

/// What was compared with what, and the figures.
pub(crate) fn words(model: &Path, source: &Path, verification: &Verification, palette: Palette) -> String {
    let heading = palette.heading(&format!("{} against {}", model.display(), source.display()));
    format!("{heading}\n{}", figures(verification))
}

/// The figures, a line for the tensors and one for the answers.
pub(crate) fn figures(verification: &Verification) -> String {
    let (count, exact) = (verification.tensors.len(), num_exact(verification));
    let tensors = match verification.worst() {
        None => format!("tensors    all {} are exact", whole(count as u64)),
        Some(worst) => format!(
            "tensors    {} of {} are exact; the furthest off is {}, {:.2} dB above its error",
            whole(exact as u64),
            whole(count as u64),
            worst.place(),
            worst.sqnr_db()
        ),
    };
    let answers = verification.evaluation.comparison.as_ref().map_or(String::new(), |comparison| answers(comparison, verification));
    format!("{tensors}\n{answers}")
}

fn answers(comparison: &Comparison, verification: &Verification) -> String {
    let prompts = match verification.prompts {
        Prompts::Conversations => "conversations in harmony",
        Prompts::Tokens => "arbitrary tokens (the vocabulary is too small for harmony)",
    };
    let nats = |divergence: f64| if divergence == 0.0 { "0".to_owned() } else { format!("{divergence:.2e}") };
    format!(
        "answers    KL divergence {} nats on average and {} at most, the same likeliest token in {}, over {} of {prompts}",
        nats(comparison.kl_divergence.mean.mean),
        nats(comparison.kl_divergence.percentiles.maximum),
        percent(comparison.same_top_fraction),
        counted(verification.evaluation.counted_tokens, "token"),
    )
}
