//! What the logits of each counted token say, in f64 from f32 logits over the whole vocabulary.
//!
//! The log-probability of a token is its logit less the logarithm of the sum of exponentials. Nothing is rounded to 16 bits: for gpt-oss'
//! 201,088 tokens that would hide small divergences under the rounding of the tail.
//!
//! Letters: n counted tokens of a chunk, v vocabulary.

use tch::{Kind, TchError, Tensor};

use crate::error::Result;
use crate::torch::host::{divergence_sums, finite_peak, floats, is_host, map_indices, sum_of_exponentials};
use crate::torch::ops::{Named, contiguous, dims2, to_f64_vec, to_i64_vec};

/// Figures of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TokenFigures {
    /// -log of the probability that the model gives to the token that comes, in nats.
    pub(super) loss: f64,
    /// Whether the model's likeliest token is the one that comes.
    pub(super) is_correct: bool,
    /// Against the reference, where there is one.
    pub(super) against: Option<AgainstReference>,
}

/// Figures of one token beside a reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AgainstReference {
    /// As `loss`, of the reference.
    pub(super) reference_loss: f64,
    /// As `is_correct`, of the reference.
    pub(super) reference_is_correct: bool,
    /// KL(reference || model): sum over tokens of p (log p - log q), p the reference's probability; in nats.
    pub(super) kl_divergence: f64,
    /// Whether both have the same likeliest token.
    pub(super) has_same_top: bool,
}

/// Whose logits are no numbers, and in which row of the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotFinite {
    pub(super) is_reference: bool,
    pub(super) row: usize,
}

/// The figures of each row.
///
/// # Shapes
/// `logits_nv` and `reference_nv` f32 [n, v], `targets_n` i64 [n] below v.
///
/// # Errors
/// [`crate::Error::Torch`] out of memory; inside, the first row that holds a NaN or an infinity.
pub(super) fn figures(
    logits_nv: &Tensor,
    reference_nv: Option<&Tensor>,
    targets_n: &Tensor,
) -> Result<Result<Vec<TokenFigures>, NotFinite>> {
    if is_host(logits_nv) {
        figures_on_host(logits_nv, reference_nv, targets_n)
    } else {
        figures_on_device(logits_nv, reference_nv, targets_n)
    }
}

fn figures_on_host(logits_nv: &Tensor, reference_nv: Option<&Tensor>, targets_n: &Tensor) -> Result<Result<Vec<TokenFigures>, NotFinite>> {
    let (rows, vocabulary) = dims2("evaluate", "logits", logits_nv)?;
    let vocabulary = usize::try_from(vocabulary).unwrap_or(0);
    let targets = to_i64_vec(targets_n)?;
    let reference_nv = reference_nv.map(contiguous).transpose()?;
    let logits = floats(logits_nv).named("evaluate", &[logits_nv])?;
    let reference = reference_nv.as_ref().map(floats).transpose().named("evaluate", &[logits_nv])?;
    let row_figures = |row: usize| {
        let range = row * vocabulary..(row + 1) * vocabulary;
        let target = usize::try_from(targets[row]).unwrap_or(0);
        let reference = reference.map(|reference| &reference[range.clone()]);
        one_row(&logits[range], reference, target).map_err(|is_reference| NotFinite { is_reference, row })
    };
    Ok(map_indices(usize::try_from(rows).unwrap_or(0), row_figures).into_iter().collect())
}

/// The figures of one row; the error says whether it is the reference that is not finite.
fn one_row(logits: &[f32], reference: Option<&[f32]>, target: usize) -> Result<TokenFigures, bool> {
    let peak = finite_peak(logits).ok_or(false)?;
    let place_of = |logits: &[f32], peak: f32| logits.iter().position(|&logit| logit == peak);
    let loss = |logits: &[f32], peak: f32, log_sum: f64| log_sum - (f64::from(logits[target]) - f64::from(peak));
    let top = place_of(logits, peak);
    let Some(reference) = reference else {
        let log_sum = sum_of_exponentials(logits, peak).ln();
        return Ok(TokenFigures { loss: loss(logits, peak, log_sum), is_correct: top == Some(target), against: None });
    };
    let reference_peak = finite_peak(reference).ok_or(true)?;
    let reference_top = place_of(reference, reference_peak);
    let sums = divergence_sums(logits, peak, reference, reference_peak);
    let (log_sum, reference_log_sum) = (sums.exponentials.ln(), sums.reference_exponentials.ln());
    // log p - log q is the difference of the shifted logits less that of the logarithms of their sums, and p sums to 1.
    let kl_divergence = sums.weighted_differences / sums.reference_exponentials - reference_log_sum + log_sum;
    let against = AgainstReference {
        reference_loss: loss(reference, reference_peak, reference_log_sum),
        reference_is_correct: reference_top == Some(target),
        // Rounding may leave equal distributions at -1e-17.
        kl_divergence: kl_divergence.max(0.0),
        has_same_top: top == reference_top,
    };
    Ok(TokenFigures { loss: loss(logits, peak, log_sum), is_correct: top == Some(target), against: Some(against) })
}

/// The same by tensor operations, for logits on a device.
fn figures_on_device(
    logits_nv: &Tensor,
    reference_nv: Option<&Tensor>,
    targets_n: &Tensor,
) -> Result<Result<Vec<TokenFigures>, NotFinite>> {
    for (logits_nv, is_reference) in std::iter::once((logits_nv, false)).chain(reference_nv.map(|reference_nv| (reference_nv, true))) {
        if let Some(row) = first_not_finite(logits_nv)? {
            return Ok(Err(NotFinite { is_reference, row }));
        }
    }
    let side = side(logits_nv, targets_n)?;
    let Some(reference_nv) = reference_nv else {
        let figures = side.losses.iter().zip(side.tops.iter().zip(&side.targets));
        return Ok(Ok(figures.map(|(&loss, (top, target))| TokenFigures { loss, is_correct: top == target, against: None }).collect()));
    };
    let reference = self::side(reference_nv, targets_n)?;
    let divergences = || -> Result<Tensor, TchError> {
        let difference_nv = reference.log_probabilities_nv.f_sub(&side.log_probabilities_nv)?;
        reference.log_probabilities_nv.f_exp()?.f_mul(&difference_nv)?.f_sum_dim_intlist(&[1i64][..], false, None::<Kind>)
    };
    let divergences = to_f64_vec(&divergences().named("evaluate", &[logits_nv])?)?;
    let figures = divergences.into_iter().enumerate().map(|(row, kl_divergence)| TokenFigures {
        loss: side.losses[row],
        is_correct: side.tops[row] == side.targets[row],
        against: Some(AgainstReference {
            reference_loss: reference.losses[row],
            reference_is_correct: reference.tops[row] == reference.targets[row],
            kl_divergence: kl_divergence.max(0.0),
            has_same_top: side.tops[row] == reference.tops[row],
        }),
    });
    Ok(Ok(figures.collect()))
}

/// What one model's logits say by themselves.
struct Side {
    log_probabilities_nv: Tensor,
    losses: Vec<f64>,
    tops: Vec<i64>,
    targets: Vec<i64>,
}

fn side(logits_nv: &Tensor, targets_n: &Tensor) -> Result<Side> {
    let compute = || -> Result<(Tensor, Tensor, Tensor), TchError> {
        let log_probabilities_nv = logits_nv.f_to_kind(Kind::Double)?.f_log_softmax(-1, None::<Kind>)?;
        let losses_n = log_probabilities_nv.f_gather(1, &targets_n.f_unsqueeze(1)?, false)?.f_neg()?.f_squeeze_dim(1)?;
        Ok((log_probabilities_nv, losses_n, logits_nv.f_argmax(1, false)?))
    };
    let (log_probabilities_nv, losses_n, tops_n) = compute().named("evaluate", &[logits_nv, targets_n])?;
    Ok(Side { log_probabilities_nv, losses: to_f64_vec(&losses_n)?, tops: to_i64_vec(&tops_n)?, targets: to_i64_vec(targets_n)? })
}

fn first_not_finite(logits_nv: &Tensor) -> Result<Option<usize>> {
    let finite_n = logits_nv.f_isfinite().and_then(|finite_nv| finite_nv.f_all_dim(1, false)).named("evaluate", &[logits_nv])?;
    Ok(to_i64_vec(&finite_n)?.iter().position(|&is_finite| is_finite == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const VOCABULARY: i64 = 1003;

    fn logits(seed: i64, spread: f64) -> Tensor {
        tch::manual_seed(seed);
        Tensor::randn([9, VOCABULARY], (Kind::Float, Device::Cpu)) * spread
    }

    fn targets() -> Tensor {
        Tensor::from_slice(&[0i64, 5, 1002, 7, 8, 9, 500, 11, 12])
    }

    #[test]
    fn figures_are_those_of_the_definition() {
        let logits = [0.5f32, 2.0, -1.0, 2.0];
        let reference = [1.0f32, 0.0, 3.0, -2.0];
        let probabilities = |logits: [f32; 4]| {
            let exponentials = logits.map(|logit| f64::from(logit).exp());
            exponentials.map(|each| each / exponentials.iter().sum::<f64>())
        };
        let (p, q) = (probabilities(reference), probabilities(logits));
        let expected: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        let found = one_row(&logits, Some(&reference), 1).unwrap();
        let against = found.against.unwrap();
        assert!((against.kl_divergence - expected).abs() < 1e-14 && expected > 1.0, "{} {expected}", against.kl_divergence);
        assert!((found.loss + q[1].ln()).abs() < 1e-14);
        assert!((against.reference_loss + p[1].ln()).abs() < 1e-14);
        // Of equal logits the first is the likeliest.
        assert_eq!((found.is_correct, against.reference_is_correct, against.has_same_top), (true, false, false));
        assert_eq!(one_row(&logits, None, 1).unwrap(), TokenFigures { against: None, ..found });
    }

    #[test]
    fn equal_logits_diverge_by_nothing() {
        let logits = logits(1, 8.0);
        for found in figures(&logits, Some(&logits), &targets()).unwrap().unwrap() {
            let against = found.against.unwrap();
            assert_eq!((against.kl_divergence, against.reference_loss), (0.0, found.loss));
            assert!(against.has_same_top);
        }
    }

    #[test]
    fn host_and_device_agree() {
        let (logits, reference, targets) = (logits(2, 6.0), logits(3, 6.0), targets());
        let host = figures_on_host(&logits, Some(&reference), &targets).unwrap().unwrap();
        let device = figures_on_device(&logits, Some(&reference), &targets).unwrap().unwrap();
        assert_eq!(host.len(), 9);
        for (host, device) in host.iter().zip(&device) {
            let (left, right) = (host.against.unwrap(), device.against.unwrap());
            for (left, right) in
                [(host.loss, device.loss), (left.reference_loss, right.reference_loss), (left.kl_divergence, right.kl_divergence)]
            {
                assert!((left - right).abs() < 1e-12 * right.abs().max(1.0), "{left} {right}");
            }
            assert_eq!(
                (host.is_correct, left.reference_is_correct, left.has_same_top),
                (device.is_correct, right.reference_is_correct, right.has_same_top)
            );
        }
        let alone = |figures: Vec<TokenFigures>| figures.into_iter().map(|each| each.loss).collect::<Vec<_>>();
        let host = alone(figures_on_host(&logits, None, &targets).unwrap().unwrap());
        for (host, device) in host.iter().zip(alone(figures_on_device(&logits, None, &targets).unwrap().unwrap())) {
            assert!((host - device).abs() < 1e-12 * device);
        }
    }

    #[test]
    fn what_is_no_number_is_found_on_either_side() {
        let good = logits(4, 1.0);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let spoiled = good.copy();
            let _ = spoiled.get(6).get(17).fill_(bad);
            for by in [figures_on_host, figures_on_device] {
                assert_eq!(by(&spoiled, Some(&good), &targets()).unwrap(), Err(NotFinite { is_reference: false, row: 6 }));
                assert_eq!(by(&good, Some(&spoiled), &targets()).unwrap(), Err(NotFinite { is_reference: true, row: 6 }));
                assert_eq!(by(&spoiled, None, &targets()).unwrap(), Err(NotFinite { is_reference: false, row: 6 }));
            }
        }
    }

    #[test]
    fn far_apart_logits_neither_overflow_nor_vanish() {
        let found = one_row(&[0.0, 3e38, -3e38], Some(&[3e4, 0.0, -3e4]), 0).unwrap();
        assert!((found.loss / f64::from(3e38f32) - 1.0).abs() < 1e-12, "{}", found.loss);
        assert!((found.against.unwrap().kl_divergence / f64::from(3e38f32) - 1.0).abs() < 1e-12);
    }
}
