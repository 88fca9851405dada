//! Cross entropy over a large vocabulary, chunk by chunk: the logits of all tokens never exist at once.
//!
//! Letters: n trained tokens, i width of a term, v vocabulary.

use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::torch::autograd::{Function, attach, records_graph};
use crate::torch::host::{Row, cross_entropy_rows, elements_mut, is_host};
use crate::torch::kernels;
use crate::torch::ops::{Named, cast, dims2, empty, from_slice, narrow, sum_all, to_f32_vec, to_i64_vec, without_graph, zeros};

/// One summand of the logits: `input_ni` times `weight_vi` transposed.
#[derive(Debug)]
pub struct LogitTerm {
    /// [n, i].
    pub input_ni: Tensor,
    /// [v, i]; computed with in the type of the input, its gradient summed in its own type.
    pub weight_vi: Tensor,
}

/// Elements of one chunk of logits at most. Large, because each chunk also costs a pass over the head and over the gradient of a trained one.
const CHUNK_ELEMENTS: i64 = 96 << 20;

/// Rows of logits that exist at once for `tokens` trained tokens: chunks of one size, as few as there can be.
#[must_use]
pub fn chunk_rows(tokens: i64, vocabulary: i64) -> i64 {
    rows_of_chunks(tokens, vocabulary, CHUNK_ELEMENTS)
}

fn rows_of_chunks(tokens: i64, vocabulary: i64, chunk_elements: i64) -> i64 {
    let largest = (chunk_elements / vocabulary.max(1)).max(1);
    let chunks = tokens.max(1).unsigned_abs().div_ceil(largest.unsigned_abs());
    i64::try_from(tokens.max(1).unsigned_abs().div_ceil(chunks)).unwrap_or(largest)
}

/// Sum over tokens of `weight * (logsumexp(logits) - logits[target])`, in f32; logits are the sum of `terms`.
///
/// Gradients are formed with the logits at hand, so a chunk is computed once; nothing of vocabulary width is kept.
///
/// # Shapes
/// Every term [n, i] x [v, i]; `targets_n` i64 [n]; `weights_n` f32 [n]; gives a scalar.
///
/// # Errors
/// [`crate::Error::Torch`] or [`crate::Error::Shape`] on shapes or types that do not fit, or out of memory.
pub fn cross_entropy(terms: &[LogitTerm], targets_n: &Tensor, weights_n: &Tensor) -> Result<Tensor> {
    let (vocabulary, _) = dims2("cross_entropy", "weight", &terms[0].weight_vi)?;
    let (tokens, _) = dims2("cross_entropy", "input", &terms[0].input_ni)?;
    cross_entropy_in_chunks(terms, targets_n, weights_n, chunk_rows(tokens, vocabulary))
}

fn cross_entropy_in_chunks(terms: &[LogitTerm], targets_n: &Tensor, weights_n: &Tensor, chunk: i64) -> Result<Tensor> {
    let inputs: Vec<&Tensor> = terms.iter().flat_map(|term| [&term.input_ni, &term.weight_vi]).collect();
    let wanted: Vec<bool> = inputs.iter().map(|tensor| records_graph(&[tensor])).collect();
    let (loss, gradients) = without_graph(|| loss_and_gradients(terms, targets_n, weights_n, &wanted, chunk))?;
    Ok(attach(CrossEntropy { gradients }, &inputs, vec![loss])?.remove(0))
}

fn loss_and_gradients(
    terms: &[LogitTerm],
    targets_n: &Tensor,
    weights_n: &Tensor,
    wanted: &[bool],
    chunk: i64,
) -> Result<(Tensor, Vec<Option<Tensor>>)> {
    let (vocabulary, _) = dims2("cross_entropy", "weight", &terms[0].weight_vi)?;
    let (tokens, _) = dims2("cross_entropy", "input", &terms[0].input_ni)?;
    let device = targets_n.device();
    let weights: Vec<Tensor> = terms.iter().map(|term| cast(&term.weight_vi, term.input_ni.kind())).collect::<Result<_>>()?;
    let mut gradients: Vec<Option<Tensor>> = Vec::with_capacity(wanted.len());
    for (term, wanted) in terms.iter().zip(wanted.chunks(2)) {
        // Every row of the input's gradient is written; the weight's is a sum over chunks.
        gradients.push(if wanted[0] { Some(empty(&term.input_ni.size(), term.input_ni.kind(), device)?) } else { None });
        gradients.push(if wanted[1] { Some(zeros(&term.weight_vi.size(), term.weight_vi.kind(), device)?) } else { None });
    }
    let mut losses = Vec::new();
    // One buffer for all chunks: fresh pages for each would cost as much as the arithmetic.
    let buffer_nv = empty(&[chunk, vocabulary], terms[0].input_ni.kind(), device)?;
    let mut first = 0;
    while first < tokens {
        let count = chunk.min(tokens - first);
        let mut logits_nv = chunk_logits(terms, &weights, first, count, &buffer_nv)?;
        let targets_n = narrow(targets_n, 0, first, count)?;
        let weights_n = narrow(weights_n, 0, first, count)?;
        let wants_gradient = wanted.contains(&true);
        losses.push(softmax(&mut logits_nv, &targets_n, &weights_n, wants_gradient)?);
        accumulate(terms, &weights, first, count, &logits_nv, &mut gradients)?;
        first += count;
    }
    let loss = match losses.is_empty() {
        true => zeros(&[], Kind::Float, device)?,
        false => sum_all(&Tensor::f_cat(&losses, 0).named("cross_entropy", &[])?)?,
    };
    Ok((loss, gradients))
}

/// Losses of a chunk; with `wants_gradient` the logits become weight (softmax - onehot).
fn softmax(logits_nv: &mut Tensor, targets_n: &Tensor, weights_n: &Tensor, wants_gradient: bool) -> Result<Tensor> {
    if is_host(logits_nv) {
        softmax_on_host(logits_nv, targets_n, weights_n, wants_gradient)
    } else if kernels::can_take(&[logits_nv, weights_n]) {
        kernels::cross_entropy(logits_nv, targets_n, weights_n, wants_gradient)
    } else {
        softmax_by_operators(logits_nv, targets_n, weights_n, wants_gradient)
    }
}

/// The same with libtorch's operators, several passes over an f32 copy.
fn softmax_by_operators(logits_nv: &mut Tensor, targets_n: &Tensor, weights_n: &Tensor, wants_gradient: bool) -> Result<Tensor> {
    let kind = logits_nv.kind();
    let step = || -> Result<(Tensor, Tensor), tch::TchError> {
        let (targets_n1, weights_n1) = (targets_n.f_unsqueeze(1)?, weights_n.f_unsqueeze(1)?);
        let mut logits = logits_nv.f_to_kind(Kind::Float)?;
        let log_sum_n1 = logits.f_logsumexp(1, true)?;
        let target_n1 = logits.f_gather(1, &targets_n1, false)?;
        let losses = log_sum_n1.f_sub(&target_n1)?.f_mul(&weights_n1)?.f_squeeze_dim(1)?;
        if wants_gradient {
            let _ = logits.f_sub_(&log_sum_n1)?.f_exp_()?.f_mul_(&weights_n1)?;
            let _ = logits.f_scatter_add_(1, &targets_n1, &weights_n1.f_neg()?)?;
        }
        Ok((losses, logits.f_to_kind(kind)?))
    };
    let (losses, gradient) = step().named("cross_entropy", &[logits_nv])?;
    *logits_nv = gradient;
    Ok(losses)
}

/// The same on the CPU, in two passes over each row.
fn softmax_on_host(logits_nv: &mut Tensor, targets_n: &Tensor, weights_n: &Tensor, wants_gradient: bool) -> Result<Tensor> {
    let (_, vocabulary) = dims2("cross_entropy", "logits", logits_nv)?;
    let vocabulary = usize::try_from(vocabulary).unwrap_or(0);
    let targets = to_i64_vec(targets_n)?;
    let mut rows: Vec<Row> = targets
        .iter()
        .zip(to_f32_vec(weights_n)?)
        .map(|(&target, weight)| Row { target: usize::try_from(target).unwrap_or(usize::MAX), weight, loss: 0.0 })
        .collect();
    if let Some(row) = rows.iter().find(|row| row.target >= vocabulary) {
        return Err(Error::TokenOutsideVocabulary { token: i64::try_from(row.target).unwrap_or(-1), vocabulary });
    }
    match logits_nv.kind() {
        Kind::BFloat16 => elements_mut::<bf16>(logits_nv).map(|logits| cross_entropy_rows(logits, vocabulary, &mut rows, wants_gradient)),
        _ => elements_mut::<f32>(logits_nv).map(|logits| cross_entropy_rows(logits, vocabulary, &mut rows, wants_gradient)),
    }
    .named("cross_entropy", &[targets_n])?;
    let losses: Vec<f32> = rows.iter().map(|row| row.loss).collect();
    from_slice(&losses, targets_n.device())
}

fn chunk_logits(terms: &[LogitTerm], weights: &[Tensor], first: i64, count: i64, buffer_nv: &Tensor) -> Result<Tensor> {
    let logits_nv = narrow(buffer_nv, 0, 0, count)?;
    for (index, (term, weight)) in terms.iter().zip(weights).enumerate() {
        let input = narrow(&term.input_ni, 0, first, count)?;
        let product = weight.f_transpose(0, 1).and_then(|weight| match index {
            0 => input.f_mm_out(&logits_nv, &weight),
            _ => logits_nv.shallow_clone().f_addmm_(&input, &weight),
        });
        let _ = product.named("cross_entropy", &[&input, weight])?;
    }
    // The kernels know bf16 and f32; anything else (f64 in tests) is computed as f32.
    if logits_nv.kind() == Kind::BFloat16 { Ok(logits_nv) } else { cast(&logits_nv, Kind::Float) }
}

fn accumulate(
    terms: &[LogitTerm],
    weights: &[Tensor],
    first: i64,
    count: i64,
    dlogits_nv: &Tensor,
    gradients: &mut [Option<Tensor>],
) -> Result<()> {
    if gradients.iter().all(Option::is_none) {
        return Ok(());
    }
    let dlogits_nv = cast(dlogits_nv, terms[0].input_ni.kind())?;
    for ((term, weight), slots) in terms.iter().zip(weights).zip(gradients.chunks_mut(2)) {
        if let Some(input_gradient) = &slots[0] {
            let rows = narrow(input_gradient, 0, first, count)?;
            let _ = dlogits_nv.f_mm_out(&rows, weight).named("cross_entropy", &[&dlogits_nv, weight])?;
        }
        if let Some(weight_gradient) = &mut slots[1] {
            let input = narrow(&term.input_ni, 0, first, count)?;
            let transposed = dlogits_nv.f_transpose(0, 1).named("cross_entropy", &[&dlogits_nv])?;
            let _ = if weight_gradient.kind() == input.kind() {
                weight_gradient.f_addmm_(&transposed, &input)
            } else {
                transposed.f_mm(&input).and_then(|part| weight_gradient.f_add_(&part))
            }
            .named("cross_entropy", &[&dlogits_nv, &input])?;
        }
    }
    Ok(())
}

struct CrossEntropy {
    gradients: Vec<Option<Tensor>>,
}

impl Function for CrossEntropy {
    fn backward(&mut self, output_gradients: &[Option<Tensor>], needs_gradient: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient) = &output_gradients[0] else { return Ok(needs_gradient.iter().map(|_| None).collect()) };
        // On the CPU a look at the factor is cheaper than a product; a device is not waited for.
        let is_one = gradient.device() == Device::Cpu && crate::torch::ops::scalar(gradient)? == 1.0;
        let scaled = |mut slot: Tensor| if is_one { Ok(slot) } else { slot.f_mul_(gradient).named("cross_entropy backward", &[&slot]) };
        self.gradients.iter_mut().map(|slot| slot.take().map(scaled).transpose()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::functions::testing::{assert_losses_of_the_definition, assert_same_gradients, random};

    #[test]
    fn gradients_are_those_of_the_definition() {
        let targets = Tensor::from_slice(&[1i64, 0, 10, 3]);
        let weights = Tensor::from_slice(&[0.5f32, 1.0, 0.25, 2.0]);
        assert_same_gradients(
            &[random(&[4, 5]), random(&[11, 5]), random(&[4, 2]), random(&[11, 2])],
            |inputs| {
                let term =
                    |first: usize| LogitTerm { input_ni: inputs[first].shallow_clone(), weight_vi: inputs[first + 1].shallow_clone() };
                cross_entropy(&[term(0), term(2)], &targets, &weights).unwrap()
            },
            |inputs| {
                let logits = inputs[0].matmul(&inputs[1].tr()) + inputs[2].matmul(&inputs[3].tr());
                let chosen = logits.log_softmax(-1, None::<Kind>).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
                -(chosen * &weights).sum(None::<Kind>)
            },
        );
    }

    #[test]
    fn on_the_host_and_by_operators_losses_are_those_of_the_definition() {
        assert_losses_of_the_definition(Device::Cpu, &softmax_on_host);
        assert_losses_of_the_definition(Device::Cpu, &softmax_by_operators);
    }

    #[test]
    fn chunks_are_of_one_size_and_as_few_as_there_can_be() {
        assert_eq!([0, 1, 7, 10, 11, 20, 21].map(|tokens| rows_of_chunks(tokens, 100, 1000)), [1, 1, 7, 10, 6, 10, 7]);
        assert_eq!(rows_of_chunks(5, 100, 99), 1);
    }

    #[test]
    fn chunks_change_neither_loss_nor_gradients() {
        tch::manual_seed(8);
        let [input, weight] = [[37, 24], [501, 24]].map(|shape| Tensor::randn(shape, (Kind::Float, Device::Cpu)));
        let targets = Tensor::arange(37, (Kind::Int64, Device::Cpu)) * 13;
        let weights = Tensor::rand([37], (Kind::Float, Device::Cpu));
        let run = |chunk| {
            let (input, weight) = (input.copy().set_requires_grad(true), weight.copy().set_requires_grad(true));
            let term = LogitTerm { input_ni: input.shallow_clone(), weight_vi: weight.shallow_clone() };
            let loss = cross_entropy_in_chunks(&[term], &targets, &weights, chunk).unwrap();
            loss.backward();
            (loss.double_value(&[]), input.grad(), weight.grad())
        };
        let whole = run(37);
        for rows in [1, 5, 36] {
            let chunked = run(rows);
            assert!((chunked.0 - whole.0).abs() < 1e-6 * whole.0, "{rows} rows: {} {}", chunked.0, whole.0);
            for (found, expected) in [(&chunked.1, &whole.1), (&chunked.2, &whole.2)] {
                let difference = (found - expected).abs().max().double_value(&[]);
                assert!(difference < 1e-5 * expected.abs().max().double_value(&[]), "{rows} rows: {difference}");
            }
        }
    }

    #[test]
    fn a_large_logit_does_not_overflow() {
        let term =
            LogitTerm { input_ni: Tensor::from_slice(&[1e4f32]).view([1, 1]), weight_vi: Tensor::from_slice(&[1f32, -1.0]).view([2, 1]) };
        let loss = cross_entropy(&[term], &Tensor::from_slice(&[1i64]), &Tensor::from_slice(&[1f32])).unwrap();
        assert!((loss.double_value(&[]) - 2e4).abs() < 1.0);
    }
}
