//! Attention without sinks: what is computed, and by whom.

use tch::{Device, Kind, Tensor};

use super::blocks::Blocks;
use super::flash::Flash;
use super::spans::{AttentionSpan, check};
use super::tiles::Tiles;
use crate::error::{Error, Result};
use crate::torch::flash;
use crate::torch::ops::{contiguous, dims3};

/// Attention as stock flash attention has it: each query of a span sees the keys up to its own place, or the newest `window` of them.
///
/// Letters: t queries, n keys, h query heads, g key/value heads, k head width.
pub(super) trait Kernel: Sync {
    /// `softmax(q k' / sqrt(k)) v`, [t, h, k] in the inputs' type, and the logarithms of the softmax's sums, [h, t] in f32 (f64 for f64).
    fn forward(&self, inputs: &Inputs) -> Result<(Tensor, Tensor)>;

    /// Gradients of query, key and value, in their types, of the attention whose probabilities are P = exp(score - log sum):
    /// dV = P' dO, dS = P (dO V' - D) with D = rowsum(dO O), dQ = dS K / sqrt(k), dK = dS' Q / sqrt(k).
    ///
    /// Output and log sums need not be those of [`Kernel::forward`]: rows of P need not sum to 1.
    fn backward(&self, inputs: &Inputs, gradient_thk: &Tensor, output_thk: &Tensor, log_sums_ht: &Tensor) -> Result<[Tensor; 3]>;
}

/// Contiguous tensors of one type on one device, whose shapes and spans fit each other.
pub(super) struct Inputs {
    /// [t, h, k].
    pub(super) query_thk: Tensor,
    /// [n, g, k].
    pub(super) key_ngk: Tensor,
    /// [n, g, k].
    pub(super) value_ngk: Tensor,
    pub(super) spans: Vec<AttentionSpan>,
    /// At least 1.
    pub(super) window: Option<i64>,
    /// h.
    pub(super) heads: i64,
    /// g.
    pub(super) groups: i64,
    /// k.
    pub(super) width: i64,
}

impl Inputs {
    /// # Errors
    /// [`Error::Shape`], [`Error::AttentionSpan`], [`Error::AttentionRows`] and [`Error::AttentionWindow`] for what does not fit.
    pub(super) fn new(query: &Tensor, key: &Tensor, value: &Tensor, spans: &[AttentionSpan], window: Option<i64>) -> Result<Self> {
        const OPERATION: &str = "sink_attention";
        let wrong =
            |tensor: &'static str, expected, found: &Tensor| Error::Shape { operation: OPERATION, tensor, expected, found: found.size() };
        let (tokens, heads, width) = dims3(OPERATION, "query", query)?;
        let (keys, groups, key_width) = dims3(OPERATION, "key", key)?;
        if width == 0 || heads == 0 {
            return Err(wrong("query", "[t, h, k] with a head of some width", query));
        }
        if key_width != width || groups == 0 || heads % groups != 0 {
            return Err(wrong("key", "[n, g, k] with g dividing the heads of `query`, and its k", key));
        }
        if value.size() != key.size() {
            return Err(wrong("value", "[n, g, k] as `key`", value));
        }
        for (tensor, name) in [(key, "key"), (value, "value")] {
            if (tensor.kind(), tensor.device()) != (query.kind(), query.device()) {
                return Err(wrong(name, "the type and device of `query`", tensor));
            }
        }
        if let Some(window) = window.filter(|&window| window < 1) {
            return Err(Error::AttentionWindow { window });
        }
        check(spans, tokens, keys)?;
        let [query_thk, key_ngk, value_ngk] = [contiguous(&query.detach())?, contiguous(&key.detach())?, contiguous(&value.detach())?];
        Ok(Self { query_thk, key_ngk, value_ngk, spans: spans.to_vec(), window, heads, groups, width })
    }

    /// Query heads for each key head.
    pub(super) fn multiplicity(&self) -> i64 {
        self.heads / self.groups
    }

    /// 1 / sqrt(k).
    #[expect(clippy::cast_precision_loss, reason = "a head is far narrower than 2^52")]
    pub(super) fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// Who computes this: flash attention where there is one, our tiles on the CPU, else libtorch's operators.
    pub(super) fn kernel(&self) -> &'static dyn Kernel {
        match (self.query_thk.device(), self.query_thk.kind()) {
            (Device::Cuda(_), kind) if flash::takes(kind, self.width) => &Flash,
            (Device::Cpu, Kind::Float | Kind::BFloat16) => &Tiles,
            _ => &Blocks,
        }
    }
}
