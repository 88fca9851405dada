//! Attention by libtorch's operators, block by block of queries, on any device and in any type: f64, and f32 on a GPU.
//!
//! Letters: t tokens, c queries of a block, n keys that they see, h query heads, g key/value heads, m query heads for each of
//! them (h / g), k head width.

use tch::{Device, Kind, TchError, Tensor};

use super::kernel::{Inputs, Kernel};
use super::spans::AttentionSpan;
use crate::error::Result;
use crate::torch::ops::{Named, cast, contiguous, empty, zeros};

/// Queries of one block.
const BLOCK_QUERIES: i64 = 256;
/// Scores of one block: three matrices of them, in f32, are 192 MiB.
const BLOCK_SCORES: i64 = 16 << 20;

/// The kernel of whatever has no better one. Scores are in f32, or f64 for f64.
pub(super) struct Blocks;

impl Kernel for Blocks {
    fn forward(&self, inputs: &Inputs) -> Result<(Tensor, Tensor)> {
        let query = &inputs.query_thk;
        let heads = Heads::new(inputs)?;
        let output_gmtk = empty(&heads.query.size(), query.kind(), query.device())?;
        let log_sums_ht = empty(&[inputs.heads, query.size()[0]], heads.score_kind, query.device())?;
        for block in blocks(inputs) {
            heads.forward(&block, &output_gmtk, &log_sums_ht).named("sink_attention", &[query, &inputs.key_ngk])?;
        }
        Ok((heads.tokens_first(&output_gmtk)?, log_sums_ht))
    }

    fn backward(&self, inputs: &Inputs, gradient_thk: &Tensor, output_thk: &Tensor, log_sums_ht: &Tensor) -> Result<[Tensor; 3]> {
        let query = &inputs.query_thk;
        let heads = Heads::new(inputs)?;
        let given = Given {
            gradient: heads.by_group(&cast(gradient_thk, heads.query.kind())?)?,
            output: heads.by_group(output_thk)?,
            log_sums_ht: log_sums_ht.shallow_clone(),
        };
        let like = |tensor: &Tensor, kind: Kind| zeros(&tensor.size(), kind, tensor.device());
        let gradients = Heads {
            query: like(&heads.query, heads.query.kind())?,
            key: like(&heads.key, heads.score_kind)?,
            value: like(&heads.value, heads.score_kind)?,
            ..heads
        };
        for block in blocks(inputs) {
            heads.backward(&block, &given, &gradients).named("sink_attention backward", &[query, &inputs.key_ngk])?;
        }
        let tokens_first = |tensor: &Tensor| {
            let tokens = tensor.f_transpose(0, 1).and_then(|tokens| tokens.f_to_kind(query.kind()));
            contiguous(&tokens.named("sink_attention backward", &[tensor])?)
        };
        let query_gradient = cast(&heads.tokens_first(&gradients.query)?, query.kind())?;
        Ok([query_gradient, tokens_first(&gradients.key)?, tokens_first(&gradients.value)?])
    }
}

/// Queries `first_query..first_query + queries`, and the keys that any of them sees.
#[derive(Debug, Clone, Copy)]
struct Block {
    first_query: i64,
    queries: i64,
    first_key: i64,
    keys: i64,
    window: Option<i64>,
}

fn blocks(inputs: &Inputs) -> Vec<Block> {
    let mut blocks = Vec::new();
    for span in &inputs.spans {
        let mut first_query = span.queries.start;
        while first_query < span.queries.end {
            let mut queries = BLOCK_QUERIES.min(span.queries.end - first_query);
            let mut block = Block::new(span, first_query, queries, inputs.window);
            while queries > 1 && queries * inputs.heads * block.keys > BLOCK_SCORES {
                queries /= 2;
                block = Block::new(span, first_query, queries, inputs.window);
            }
            first_query += queries;
            blocks.push(block);
        }
    }
    blocks
}

impl Block {
    fn new(span: &AttentionSpan, first_query: i64, queries: i64, window: Option<i64>) -> Self {
        // The key row of the query in row 0.
        let shift = span.keys.end - span.queries.end;
        let first_key = window.map_or(span.keys.start, |window| span.keys.start.max(first_query + shift - window + 1));
        Self { first_query, queries, first_key, keys: first_query + queries + shift - first_key, window }
    }

    /// Zero where a key is seen, negative infinity elsewhere: [c, n]. None when every query sees every key.
    fn mask(&self, kind: Kind, device: Device) -> Result<Option<Tensor>, TchError> {
        if self.queries == 1 {
            return Ok(None);
        }
        // The last query sees the last key; a query that stands b before it sees none of the last b.
        let hidden = Tensor::f_ones([self.queries, self.keys], (Kind::Bool, device))?;
        let newest = self.keys - self.queries;
        let hidden = match self.window {
            // Key j is too old for query i when j <= i + newest - window.
            Some(window) => hidden.f_triu(newest + 1)?.f_logical_or(&hidden.f_tril(newest - window)?)?,
            None => hidden.f_triu(newest + 1)?,
        };
        let mask = Tensor::f_zeros([self.queries, self.keys], (kind, device))?;
        mask.f_masked_fill(&hidden, f64::NEG_INFINITY).map(Some)
    }

    fn query(&self, tensor_gmtk: &Tensor) -> Result<Tensor, TchError> {
        tensor_gmtk.f_narrow(2, self.first_query, self.queries)
    }

    fn key(&self, tensor_gnk: &Tensor) -> Result<Tensor, TchError> {
        tensor_gnk.f_narrow(1, self.first_key, self.keys)
    }

    fn log_sums(&self, tensor_ht: &Tensor) -> Result<Tensor, TchError> {
        tensor_ht.f_narrow(1, self.first_query, self.queries)
    }
}

/// Query [g, m, t, k], key and value [g, n, k], in the type of the products; or their gradients.
struct Heads {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: i64,
    multiplicity: i64,
    width: i64,
    scale: f64,
    score_kind: Kind,
}

/// What the backward pass starts from.
struct Given {
    /// [g, m, t, k].
    gradient: Tensor,
    /// [g, m, t, k].
    output: Tensor,
    log_sums_ht: Tensor,
}

impl Heads {
    fn new(inputs: &Inputs) -> Result<Self> {
        let kind = inputs.query_thk.kind();
        // On the CPU f32: for narrower types, oneDNN would compile a kernel for each length of a sample.
        let on_cpu = inputs.query_thk.device() == Device::Cpu;
        let product_kind = if on_cpu && matches!(kind, Kind::BFloat16 | Kind::Half) { Kind::Float } else { kind };
        let mut heads = Self {
            query: cast(&inputs.query_thk, product_kind)?,
            key: by_head(&cast(&inputs.key_ngk, product_kind)?)?,
            value: by_head(&cast(&inputs.value_ngk, product_kind)?)?,
            groups: inputs.groups,
            multiplicity: inputs.multiplicity(),
            width: inputs.width,
            scale: inputs.scale(),
            score_kind: if kind == Kind::Double { Kind::Double } else { Kind::Float },
        };
        heads.query = heads.by_group(&heads.query)?;
        Ok(heads)
    }

    /// [t, h, k] to [g, m, t, k].
    fn by_group(&self, tensor_thk: &Tensor) -> Result<Tensor> {
        tensor_thk
            .f_reshape([-1, self.groups, self.multiplicity, self.width])
            .and_then(|split| split.f_permute([1, 2, 0, 3]))
            .and_then(|heads| heads.f_contiguous())
            .named("sink_attention", &[tensor_thk])
    }

    /// [g, m, t, k] to [t, h, k].
    fn tokens_first(&self, tensor_gmtk: &Tensor) -> Result<Tensor> {
        tensor_gmtk
            .f_permute([2, 0, 1, 3])
            .and_then(|tokens| tokens.f_reshape([-1, self.groups * self.multiplicity, self.width]))
            .named("sink_attention", &[tensor_gmtk])
    }

    /// Scores of a block, [g, m, c, n]: scaled products, hidden keys at negative infinity.
    fn scores(&self, block: &Block) -> Result<Tensor, TchError> {
        let query = block.query(&self.query)?.f_reshape([self.groups, -1, self.width])?;
        let product = query.f_matmul(&block.key(&self.key)?.f_transpose(1, 2)?)?;
        let product = product.f_to_kind(self.score_kind)?.f_mul_scalar_(self.scale)?;
        let mut scores = product.f_view([self.groups, self.multiplicity, block.queries, block.keys])?;
        match block.mask(self.score_kind, scores.device())? {
            Some(mask) => scores.f_add_(&mask),
            None => Ok(scores),
        }
    }

    /// The block's log sums, [g, m, c, 1].
    fn log_sums(&self, block: &Block, log_sums_ht: &Tensor) -> Result<Tensor, TchError> {
        block.log_sums(log_sums_ht)?.f_reshape([self.groups, self.multiplicity, block.queries, 1])
    }

    /// Writes the block's rows of output and log sums.
    fn forward(&self, block: &Block, output_gmtk: &Tensor, log_sums_ht: &Tensor) -> Result<(), TchError> {
        let mut scores = self.scores(block)?;
        let log_sums = scores.f_logsumexp(-1, true)?;
        let probability = scores.f_sub_(&log_sums)?.f_exp_()?.f_to_kind(self.value.kind())?;
        let rows = probability.f_view([self.groups, -1, block.keys])?.f_matmul(&block.key(&self.value)?)?;
        let mut output = block.query(output_gmtk)?;
        output.f_copy_(&rows.f_view(&output.size()[..])?)?;
        let mut kept = block.log_sums(log_sums_ht)?;
        kept.f_copy_(&log_sums.f_view(&kept.size()[..])?)
    }

    /// Writes the block's query gradient, and adds its part of key and value gradients.
    fn backward(&self, block: &Block, given: &Given, gradients: &Self) -> Result<(), TchError> {
        let (groups, width, kind) = (self.groups, self.width, self.key.kind());
        let log_sums = self.log_sums(block, &given.log_sums_ht)?;
        let probability = self.scores(block)?.f_sub_(&log_sums)?.f_exp_()?;
        let gradient = block.query(&given.gradient)?;
        let gradient_rows = gradient.f_reshape([groups, -1, width])?;
        let products = gradient.f_to_kind(self.score_kind)?.f_mul(&block.query(&given.output)?.f_to_kind(self.score_kind)?)?;
        let mean = products.f_sum_dim_intlist(-1, true, self.score_kind)?;

        let flat = |tensor: &Tensor| tensor.f_to_kind(kind)?.f_view([groups, -1, block.keys]);
        let value_part = flat(&probability)?.f_transpose(1, 2)?.f_matmul(&gradient_rows)?;
        let _ = block.key(&gradients.value)?.f_add_(&value_part)?;

        let value = block.key(&self.value)?.f_transpose(1, 2)?;
        let mut score_gradient = gradient_rows.f_matmul(&value)?.f_to_kind(self.score_kind)?.f_view(&probability.size()[..])?;
        let score_gradient = score_gradient.f_sub_(&mean)?.f_mul_(&probability)?.f_mul_scalar_(self.scale)?;
        let score_gradient = flat(&score_gradient)?;
        let query_part = score_gradient.f_matmul(&block.key(&self.key)?)?;
        block.query(&gradients.query)?.f_copy_(&query_part.f_view(&gradient.size()[..])?)?;

        let query_rows = block.query(&self.query)?.f_reshape([groups, -1, width])?;
        let key_part = score_gradient.f_transpose(1, 2)?.f_matmul(&query_rows)?;
        block.key(&gradients.key)?.f_add_(&key_part).map(|_| ())
    }
}

/// [n, g, k] to [g, n, k].
fn by_head(tensor_ngk: &Tensor) -> Result<Tensor> {
    tensor_ngk.f_transpose(0, 1).and_then(|heads| heads.f_contiguous()).named("sink_attention", &[tensor_ngk])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(length: i64, heads: i64, window: Option<i64>) -> Inputs {
        let tensor = |heads: i64| Tensor::zeros([length, heads, 1], (Kind::Int8, Device::Cpu));
        let spans = [AttentionSpan { queries: 0..length, keys: 0..length }];
        Inputs::new(&tensor(heads), &tensor(1), &tensor(1), &spans, window).unwrap()
    }

    #[test]
    fn scores_of_a_block_are_bounded_whatever_the_length() {
        for window in [None, Some(128)] {
            let inputs = inputs(131_072, 64, window);
            let blocks = blocks(&inputs);
            assert_eq!(blocks.iter().map(|block| block.queries).sum::<i64>(), 131_072);
            assert!(blocks.iter().all(|block| block.queries > 0 && block.queries * 64 * block.keys <= BLOCK_SCORES));
        }
    }

    #[test]
    fn usual_lengths_go_by_256_queries() {
        let inputs = inputs(1000, 64, None);
        assert_eq!(blocks(&inputs).iter().map(|block| block.queries).collect::<Vec<_>>(), [256, 256, 256, 232]);
    }
}
