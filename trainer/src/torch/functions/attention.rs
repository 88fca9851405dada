//! Causal attention with sinks, over packed samples: exactly, on kernels that know nothing of sinks.
//!
//! Let (O, l) be plain attention and the logarithms of its softmax's sums. With a sink, a logit s of each head's own, the sum is
//! l' = log(exp(l) + exp(s)) and the output O' = O exp(l - l'). Handed O' and l', the plain backward pass forms P = exp(score - l') and
//! D = rowsum(dO' O'), which is the gradient of the softmax with the sink; the sink's is ds = -sum over tokens of exp(s - l') D.
//!
//! D is formed in f32 from O' in the inputs' type, by the kernel and here alike, so that both halves of the gradient agree.
//!
//! Letters: t queries, n keys, h query heads, g key/value heads, k head width.

mod blocks;
mod flash;
mod kernel;
mod spans;
#[cfg(test)]
mod tests;
mod tiles;

use tch::{Kind, TchError, Tensor};

use crate::error::{Error, Result};
use crate::torch::autograd::{Function, attach};
use crate::torch::ops::{Named, cast, without_graph};
use kernel::{Inputs, Kernel};
pub use spans::AttentionSpan;

/// Rows that are worked on at once where f32 copies of them are made.
const ROWS_AT_ONCE: i64 = 2048;

/// `softmax([q k^T / sqrt(width), sink]) [v, 0]` for each span: each query sees the keys up to its own position, and with a `window` only
/// the newest `window` of them, itself included. The sink, a logit of its own for each head, takes probability and gives no value.
///
/// On a GPU in bf16 or f16 this is libtorch's flash attention; on the CPU in f32 or bf16, and elsewhere, blocks of which none takes more than
/// 256 MB, whatever the length.
///
/// # Shapes
/// `query_thk` [t, h, k], `key_ngk` and `value_ngk` [n, g, k] of one type, `sinks_h` [h]; query head j reads key head j / (h / g).
/// Spans lie end to end, over all rows. Gives [t, h, k].
///
/// # Errors
/// [`Error::Shape`], [`Error::AttentionSpan`], [`Error::AttentionRows`] and [`Error::AttentionWindow`] for what does not fit;
/// [`Error::Torch`] for what libtorch refuses, or out of memory.
///
/// Source: openai/gpt-oss `gpt_oss/torch/model.py`, function `sdpa`. The softmax is taken in f32, for f64 in f64.
pub fn sink_attention(
    query_thk: &Tensor,
    key_ngk: &Tensor,
    value_ngk: &Tensor,
    sinks_h: &Tensor,
    spans: &[AttentionSpan],
    window: Option<i64>,
) -> Result<Tensor> {
    let (output, saved) = without_graph(|| {
        let inputs = Inputs::new(query_thk, key_ngk, value_ngk, spans, window)?;
        let kernel = inputs.kernel();
        SinkAttention::forward(kernel, inputs, sinks_h)
    })?;
    Ok(attach(saved, &[query_thk, key_ngk, value_ngk, sinks_h], vec![output])?.remove(0))
}

struct SinkAttention {
    kernel: &'static dyn Kernel,
    inputs: Inputs,
    /// [h, 1], in the type of the log sums.
    sinks_h1: Tensor,
    sinks_kind: Kind,
    output_thk: Tensor,
    /// With the sink, [h, t].
    log_sums_ht: Tensor,
}

impl SinkAttention {
    fn forward(kernel: &'static dyn Kernel, inputs: Inputs, sinks_h: &Tensor) -> Result<(Tensor, Self)> {
        if sinks_h.size() != [inputs.heads] {
            return Err(Error::Shape { operation: "sink_attention", tensor: "sinks", expected: "[h]", found: sinks_h.size() });
        }
        let (output_thk, plain_ht) = kernel.forward(&inputs)?;
        let sinks_h1 = cast(sinks_h, plain_ht.kind())?.f_view([-1, 1]).named("sink_attention", &[sinks_h])?;
        let log_sums_ht = plain_ht.f_logaddexp(&sinks_h1).named("sink_attention", &[&plain_ht, sinks_h])?;
        give_to_sinks(&output_thk, &plain_ht, &log_sums_ht).named("sink_attention", &[&output_thk])?;
        let output = output_thk.shallow_clone();
        let sinks_kind = sinks_h.kind();
        Ok((output, Self { kernel, inputs, sinks_h1: sinks_h1.detach(), sinks_kind, output_thk, log_sums_ht }))
    }

    /// ds = -sum over tokens of exp(s - l') D, D = rowsum(dO' O').
    fn sinks_gradient(&self, gradient_thk: &Tensor) -> Result<Tensor, TchError> {
        let kind = self.log_sums_ht.kind();
        let mut sum_h = Tensor::f_zeros([self.inputs.heads], (kind, gradient_thk.device()))?;
        for (first, rows) in pieces(self.output_thk.size()[0]) {
            let part = |tensor_thk: &Tensor| tensor_thk.f_narrow(0, first, rows)?.f_to_kind(kind);
            let means_th = part(gradient_thk)?.f_mul(&part(&self.output_thk)?)?.f_sum_dim_intlist(-1, false, kind)?;
            let shares_ht = self.sinks_h1.f_sub(&self.log_sums_ht.f_narrow(1, first, rows)?)?.f_exp_()?;
            let _ = sum_h.f_sub_(&shares_ht.f_mul(&means_th.f_transpose(0, 1)?)?.f_sum_dim_intlist(1, false, kind)?)?;
        }
        Ok(sum_h)
    }
}

impl Function for SinkAttention {
    fn backward(&mut self, output_gradients: &[Option<Tensor>], needs_gradient: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient_thk) = &output_gradients[0] else { return Ok(vec![None, None, None, None]) };
        let sinks = if needs_gradient[3] {
            let gradient = self.sinks_gradient(gradient_thk).named("sink_attention backward", &[gradient_thk])?;
            Some(cast(&gradient, self.sinks_kind)?)
        } else {
            None
        };
        if !needs_gradient[..3].contains(&true) {
            return Ok(vec![None, None, None, sinks]);
        }
        let [query, key, value] = self.kernel.backward(&self.inputs, gradient_thk, &self.output_thk, &self.log_sums_ht)?;
        Ok(vec![Some(query), Some(key), Some(value), sinks])
    }
}

/// Takes from the plain output what the sink's probability is: O exp(l - l'), in place.
fn give_to_sinks(output_thk: &Tensor, plain_ht: &Tensor, log_sums_ht: &Tensor) -> Result<(), TchError> {
    for (first, rows) in pieces(output_thk.size()[0]) {
        let part = |tensor_ht: &Tensor| tensor_ht.f_narrow(1, first, rows);
        let kept_th1 = part(plain_ht)?.f_sub(&part(log_sums_ht)?)?.f_exp_()?.f_transpose(0, 1)?.f_unsqueeze(-1)?;
        let _ = output_thk.f_narrow(0, first, rows)?.f_mul_(&kept_th1)?;
    }
    Ok(())
}

/// `rows` in pieces: where each begins, and how many it has.
fn pieces(rows: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..rows).step_by(ROWS_AT_ONCE as usize).map(move |first| (first, ROWS_AT_ONCE.min(rows - first)))
}
