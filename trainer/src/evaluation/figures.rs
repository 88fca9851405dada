//! What an evaluation finds, as reports hold it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::routing::{RouterAgreement, RouterMismatch};
use super::statistics::{Mean, Percentiles, correlation, float};
use super::tokens::TokenFigures;
use crate::data::Statistics;
use crate::recipe::TrainingDtype;

/// How well a model predicts what the assistant writes, and how far it is from a reference.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// The model directory.
    pub model: PathBuf,
    /// The adapter on top of it.
    pub adapter: Option<PathBuf>,
    /// Type of weights and activations; the head and everything after it are computed in f32 and f64.
    pub dtype: TrainingDtype,
    /// `cpu` or `cuda:0`.
    pub device: &'static str,
    /// What was read.
    pub dataset: Statistics,
    /// Tokens that the figures are over: those with a loss weight, each counted once.
    pub counted_tokens: usize,
    /// How well they are predicted.
    #[serde(flatten)]
    pub prediction: Prediction,
    /// The same by the channel of their message: `analysis`, `commentary`, `final`, or `text` for plain texts.
    pub channels: BTreeMap<&'static str, ChannelFigures>,
    /// Against the reference, where there is one.
    pub comparison: Option<Comparison>,
    /// Duration.
    pub seconds: f64,
}

/// How well tokens are predicted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Mean of -log of the probability of the token that comes, in nats.
    pub loss: f64,
    /// Its standard error; `None` for a single token.
    pub loss_standard_error: Option<f64>,
    /// exp of the loss.
    pub perplexity: f64,
    /// Its standard error, to first order.
    pub perplexity_standard_error: Option<f64>,
    /// Share of tokens that are the model's likeliest, 0..1.
    pub token_accuracy: f64,
    /// Its standard error.
    pub token_accuracy_standard_error: Option<f64>,
}

/// Figures of one channel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChannelFigures {
    /// Tokens of the channel.
    pub counted_tokens: usize,
    /// How well they are predicted.
    #[serde(flatten)]
    pub prediction: Prediction,
    /// Mean KL divergence from the reference, in nats, where there is one.
    pub kl_divergence: Option<f64>,
}

/// A model beside its reference, token by token.
///
/// Source of the choice of figures and of their errors: llama.cpp, `tools/perplexity`, `--kl-divergence`.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The reference's directory.
    pub reference: PathBuf,
    /// How well the reference predicts.
    pub reference_prediction: Prediction,
    /// KL(reference || model) of the next token's distribution, in nats.
    pub kl_divergence: Spread,
    /// Share of tokens at which both have the same likeliest token, 0..1.
    pub same_top_fraction: f64,
    /// Its standard error.
    pub same_top_fraction_standard_error: Option<f64>,
    /// The model's probability of the token that comes, less the reference's; -1..1.
    pub probability_change: ProbabilityChange,
    /// The model's perplexity over the reference's.
    pub perplexity_ratio: f64,
    /// Its standard error, to first order.
    pub perplexity_ratio_standard_error: Option<f64>,
    /// The logarithm of that ratio: the mean difference of the losses.
    pub ln_perplexity_ratio: f64,
    /// Its standard error, that of paired differences.
    pub ln_perplexity_ratio_standard_error: Option<f64>,
    /// Correlation of both log-probabilities of the token that comes; `None` where one does not vary.
    pub log_probability_correlation: Option<f64>,
    /// How far the routers agree, at the positions that predict counted tokens.
    pub router: Option<RouterAgreement>,
    /// Why there is no agreement of routers.
    pub router_mismatch: Option<RouterMismatch>,
}

/// Mean, extremes and percentiles of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The mean and its error.
    #[serde(flatten)]
    pub mean: Mean,
    /// The rest.
    #[serde(flatten)]
    pub percentiles: Percentiles,
}

/// [`Spread`] of a figure that may have either sign, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ProbabilityChange {
    /// Root of the mean square.
    pub rms: f64,
    /// Its standard error, to first order; `None` for a single token, and where nothing changed.
    pub rms_standard_error: Option<f64>,
    /// Mean, extremes and percentiles.
    #[serde(flatten)]
    pub spread: Spread,
}

impl Prediction {
    /// Of `losses` in nats, and of whether each token was the likeliest.
    fn of(losses: &[f64], is_correct: impl Iterator<Item = bool>) -> Self {
        let (loss, accuracy) = (Mean::of(losses), Mean::of_share(is_correct));
        let perplexity = loss.mean.exp();
        Self {
            loss: loss.mean,
            loss_standard_error: loss.standard_error,
            perplexity,
            perplexity_standard_error: loss.standard_error.map(|error| error * perplexity),
            token_accuracy: accuracy.mean,
            token_accuracy_standard_error: accuracy.standard_error,
        }
    }

    /// Of a model's own tokens.
    pub(super) fn of_model(tokens: &[TokenFigures]) -> Self {
        let losses: Vec<f64> = tokens.iter().map(|token| token.loss).collect();
        Self::of(&losses, tokens.iter().map(|token| token.is_correct))
    }
}

impl ChannelFigures {
    /// Of the tokens of one channel, at least one.
    pub(super) fn of(tokens: &[TokenFigures]) -> Self {
        let divergences: Vec<f64> = tokens.iter().filter_map(|token| token.against.map(|against| against.kl_divergence)).collect();
        Self {
            counted_tokens: tokens.len(),
            prediction: Prediction::of_model(tokens),
            kl_divergence: (!divergences.is_empty()).then(|| Mean::of(&divergences).mean),
        }
    }
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        Self { mean: Mean::of(values), percentiles: Percentiles::of(values) }
    }
}

impl ProbabilityChange {
    fn of(changes: &[f64]) -> Self {
        let squares = Mean::of(&changes.iter().map(|change| change * change).collect::<Vec<_>>());
        let rms = squares.mean.sqrt();
        let rms_standard_error = squares.standard_error.filter(|_| rms > 0.0).map(|error| error / (2.0 * rms));
        Self { rms, rms_standard_error, spread: Spread::of(changes) }
    }
}

impl Comparison {
    /// Of tokens that were all compared with the reference; `None` when one was not.
    pub(super) fn of(reference: PathBuf, tokens: &[TokenFigures], router: Result<RouterAgreement, RouterMismatch>) -> Option<Self> {
        let against = tokens.iter().map(|token| token.against).collect::<Option<Vec<_>>>()?;
        let column = |value: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..tokens.len()).map(value).collect() };
        let (losses, reference_losses) = (column(&|index| tokens[index].loss), column(&|index| against[index].reference_loss));
        let ratio = Mean::of(&column(&|index| losses[index] - reference_losses[index]));
        let same_top = Mean::of_share(against.iter().map(|each| each.has_same_top));
        let (router, router_mismatch) = match router {
            Ok(agreement) => (Some(agreement), None),
            Err(mismatch) => (None, Some(mismatch)),
        };
        Some(Self {
            reference,
            reference_prediction: Prediction::of(&reference_losses, against.iter().map(|each| each.reference_is_correct)),
            kl_divergence: Spread::of(&column(&|index| against[index].kl_divergence)),
            same_top_fraction: same_top.mean,
            same_top_fraction_standard_error: same_top.standard_error,
            probability_change: ProbabilityChange::of(&column(&|index| (-losses[index]).exp() - (-reference_losses[index]).exp())),
            perplexity_ratio: ratio.mean.exp(),
            perplexity_ratio_standard_error: ratio.standard_error.map(|error| error * ratio.mean.exp()),
            ln_perplexity_ratio: ratio.mean,
            ln_perplexity_ratio_standard_error: ratio.standard_error,
            log_probability_correlation: correlation(&losses, &reference_losses),
            router,
            router_mismatch,
        })
    }
}

/// A share of `whole`.
pub(super) fn fraction(part: usize, whole: usize) -> f64 {
    float(part) / float(whole.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::tokens::AgainstReference;

    fn token(loss: f64, reference_loss: f64) -> TokenFigures {
        let against = AgainstReference { reference_loss, reference_is_correct: true, kl_divergence: 0.25, has_same_top: loss < 1.0 };
        TokenFigures { loss, is_correct: loss < 1.0, against: Some(against) }
    }

    const MISMATCH: RouterMismatch = RouterMismatch { what: "layers", reference: 2, model: 3 };

    #[test]
    fn a_comparison_is_of_pairs() {
        let tokens = [token(2f64.ln(), 4f64.ln()), token(10f64.ln(), 5f64.ln())];
        let found = Comparison::of("r".into(), &tokens, Err(MISMATCH)).unwrap();
        // The losses differ by -ln 2 and ln 2, the probabilities by 0.25 and -0.1.
        assert!(found.ln_perplexity_ratio.abs() < 1e-15 && (found.perplexity_ratio - 1.0).abs() < 1e-15);
        assert!((found.ln_perplexity_ratio_standard_error.unwrap() - 2f64.ln()).abs() < 1e-15);
        assert!((found.probability_change.spread.mean.mean - 0.075).abs() < 1e-15);
        assert!((found.probability_change.rms - (0.0725f64 / 2.0).sqrt()).abs() < 1e-15);
        assert_eq!(found.same_top_fraction, 0.5);
        assert!((found.log_probability_correlation.unwrap() - 1.0).abs() < 1e-15);
        assert_eq!((found.router, found.router_mismatch), (None, Some(MISMATCH)));
    }

    #[test]
    fn without_a_reference_there_is_no_comparison() {
        let token = TokenFigures { against: None, ..token(0.5, 0.5) };
        assert!(Comparison::of("r".into(), &[token], Err(MISMATCH)).is_none());
        assert_eq!(ChannelFigures::of(&[token]).kl_divergence, None);
    }

    #[test]
    fn one_token_has_figures_but_no_errors() {
        let found = Comparison::of("r".into(), &[token(0.5, 0.5)], Err(MISMATCH)).unwrap();
        let text = serde_json::to_string(&found).unwrap();
        assert!(text.contains(r#""same_top_fraction_standard_error":null"#), "{text}");
        assert!(text.contains(r#""kl_divergence":{"mean":0.25,"standard_error":null,"maximum":0.25"#), "{text}");
        assert_eq!((found.probability_change.rms, found.probability_change.rms_standard_error), (0.0, None));
    }
}
