//! Causal attention with sinks over a grid of query blocks: memory grows with the length, never with its square.
//!
//! Letters: t tokens, c queries of a block, n keys that they see, h query heads, g key/value heads, m query heads for each of
//! them (h / g), k head width.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::ops::{Named, cast, dims3, without_graph, zeros};

/// Tokens that attend to one another: queries `queries` of the query tensor, which are the last of the keys `keys`.
///
/// When training both ranges are one packed sample; with a key/value cache the queries are the newest tokens of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionSpan {
    /// Rows of the query tensor.
    pub queries: Range<i64>,
    /// Rows of the key and value tensors; at least as many as queries.
    pub keys: Range<i64>,
}

/// Queries of one block.
const BLOCK_QUERIES: i64 = 256;

/// `softmax([q k^T / sqrt(width), sink]) [v, 0]` for each span: each query sees the keys up to its own position, and with a `window` only
/// the newest `window` of them, itself included. The sink, a logit of its own for each head, takes probability and gives no value.
///
/// # Shapes
/// `query_thk` [t, h, k], `key_ngk` and `value_ngk` [n, g, k] of one type, `sinks_h` [h]; query head j reads key head j / (h / g).
/// Gives [t, h, k].
///
/// # Errors
/// [`crate::Error::Torch`] or [`crate::Error::Shape`] on shapes or types that do not fit, or out of memory.
///
/// Source: openai/gpt-oss `gpt_oss/torch/model.py`, function `sdpa`. The softmax is taken in f32.
pub fn sink_attention(
    query_thk: &Tensor,
    key_ngk: &Tensor,
    value_ngk: &Tensor,
    sinks_h: &Tensor,
    spans: &[AttentionSpan],
    window: Option<i64>,
) -> Result<Tensor> {
    let (output, saved) = without_graph(|| {
        let shape = Shape::of(query_thk, key_ngk)?;
        let sinks_gm11 =
            cast(sinks_h, Kind::Float)?.f_view([shape.groups, shape.heads / shape.groups, 1, 1]).named("sink_attention", &[sinks_h])?;
        let kind = compute_kind(query_thk);
        let heads = Heads {
            query: cast(&shape.queries_by_group(query_thk)?, kind)?,
            key: cast(&by_head(key_ngk)?, kind)?,
            value: cast(&by_head(value_ngk)?, kind)?,
        };
        let output_gmtk =
            Tensor::f_empty(heads.query.size(), (query_thk.kind(), query_thk.device())).named("sink_attention", &[query_thk])?;
        let mut log_sums = Vec::new();
        for block in blocks(spans, window) {
            let log_sum =
                forward_block(&heads, &sinks_gm11, &block, window, shape, &output_gmtk).named("sink_attention", &[query_thk, key_ngk])?;
            log_sums.push(log_sum);
        }
        let output = cast(&shape.tokens_first(&output_gmtk)?, query_thk.kind())?;
        let saved = SinkAttention {
            heads,
            sinks_gm11,
            sinks_kind: sinks_h.kind(),
            output_gmtk,
            log_sums,
            blocks: blocks(spans, window),
            window,
            shape,
        };
        Ok((output, saved))
    })?;
    Ok(attach(saved, &[query_thk, key_ngk, value_ngk, sinks_h], vec![output])?.remove(0))
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: i64,
    groups: i64,
    width: i64,
}

impl Shape {
    fn of(query_thk: &Tensor, key_ngk: &Tensor) -> Result<Self> {
        let (_, heads, width) = dims3("sink_attention", "query", query_thk)?;
        let (_, groups, _) = dims3("sink_attention", "key", key_ngk)?;
        Ok(Self { heads, groups, width })
    }

    fn multiplicity(self) -> i64 {
        self.heads / self.groups
    }

    #[expect(clippy::cast_precision_loss, reason = "a head is far narrower than 2^52")]
    fn scale(self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// [t, h, k] to [g, m, t, k].
    fn queries_by_group(self, tensor: &Tensor) -> Result<Tensor> {
        tensor
            .f_reshape([-1, self.groups, self.multiplicity(), self.width])
            .and_then(|split| split.f_permute([1, 2, 0, 3]))
            .and_then(|heads| heads.f_contiguous())
            .named("sink_attention", &[tensor])
    }

    /// [g, m, t, k] to [t, h, k].
    fn tokens_first(self, tensor: &Tensor) -> Result<Tensor> {
        tensor.f_permute([2, 0, 1, 3]).and_then(|tokens| tokens.f_reshape([-1, self.heads, self.width])).named("sink_attention", &[tensor])
    }
}

/// Type of the products. On the CPU f32: for bf16, oneDNN would compile a kernel for each length of a sample.
fn compute_kind(query_thk: &Tensor) -> Kind {
    if query_thk.device() == Device::Cpu && query_thk.kind() == Kind::BFloat16 { Kind::Float } else { query_thk.kind() }
}

/// [n, g, k] to [g, n, k].
fn by_head(tensor: &Tensor) -> Result<Tensor> {
    tensor.f_transpose(0, 1).and_then(|heads| heads.f_contiguous()).named("sink_attention", &[tensor])
}

struct Heads {
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

/// Queries `first_query..first_query + queries`, and the keys that any of them sees.
#[derive(Debug, Clone, Copy)]
struct Block {
    first_query: i64,
    queries: i64,
    first_key: i64,
    keys: i64,
}

fn blocks(spans: &[AttentionSpan], window: Option<i64>) -> Vec<Block> {
    let mut blocks = Vec::new();
    for span in spans {
        // The key row of the query in row 0 of the span.
        let shift = span.keys.end - span.queries.end;
        let mut first_query = span.queries.start;
        while first_query < span.queries.end {
            let queries = BLOCK_QUERIES.min(span.queries.end - first_query);
            let end_key = first_query + queries + shift;
            let first_key = window.map_or(span.keys.start, |window| span.keys.start.max(first_query + shift - window + 1));
            blocks.push(Block { first_query, queries, first_key, keys: end_key - first_key });
            first_query += queries;
        }
    }
    blocks
}

impl Block {
    /// Zero where a key is seen, negative infinity elsewhere: [c, n] in f32. None when every query sees every key.
    fn mask(&self, window: Option<i64>, device: tch::Device) -> Result<Option<Tensor>, tch::TchError> {
        if self.queries == 1 {
            return Ok(None);
        }
        // The last query sees the last key; a query that stands b before it sees none of the last b.
        let hidden = Tensor::f_ones([self.queries, self.keys], (Kind::Bool, device))?;
        let newest = self.keys - self.queries;
        let hidden = match window {
            // Key j is too old for query i when j <= i + newest - window.
            Some(window) => hidden.f_triu(newest + 1)?.f_logical_or(&hidden.f_tril(newest - window)?)?,
            None => hidden.f_triu(newest + 1)?,
        };
        let mask = Tensor::f_zeros([self.queries, self.keys], (Kind::Float, device))?;
        mask.f_masked_fill(&hidden, f64::NEG_INFINITY).map(Some)
    }

    fn query(&self, tensor_gmtk: &Tensor) -> Result<Tensor, tch::TchError> {
        tensor_gmtk.f_narrow(2, self.first_query, self.queries)
    }

    fn key(&self, tensor_gnk: &Tensor) -> Result<Tensor, tch::TchError> {
        tensor_gnk.f_narrow(1, self.first_key, self.keys)
    }
}

/// Scores of a block in f32, [g, m, c, n]: scaled products, hidden keys at negative infinity.
fn scores(heads: &Heads, block: &Block, window: Option<i64>, shape: Shape) -> Result<Tensor, tch::TchError> {
    let query = block.query(&heads.query)?.f_reshape([shape.groups, -1, shape.width])?;
    let key = block.key(&heads.key)?;
    let product = query.f_matmul(&key.f_transpose(1, 2)?)?.f_to_kind(Kind::Float)?.f_mul_scalar_(shape.scale())?;
    let mut scores = product.f_view([shape.groups, shape.multiplicity(), block.queries, block.keys])?;
    match block.mask(window, scores.device())? {
        Some(mask) => scores.f_add_(&mask),
        None => Ok(scores),
    }
}

/// Writes the block's rows of the output; gives log(sum of exp over keys and sink), [g, m, c, 1] in f32.
fn forward_block(
    heads: &Heads,
    sinks_gm11: &Tensor,
    block: &Block,
    window: Option<i64>,
    shape: Shape,
    output_gmtk: &Tensor,
) -> Result<Tensor, tch::TchError> {
    let mut scores = scores(heads, block, window, shape)?;
    let log_sum = scores.f_logsumexp(-1, true)?.f_logaddexp(sinks_gm11)?;
    let probability = scores.f_sub_(&log_sum)?.f_exp_()?.f_to_kind(heads.value.kind())?;
    let probability = probability.f_view([shape.groups, -1, block.keys])?;
    let rows = probability.f_matmul(&block.key(&heads.value)?)?;
    block.query(output_gmtk)?.f_copy_(&rows.f_view([shape.groups, shape.multiplicity(), block.queries, shape.width])?)?;
    Ok(log_sum)
}

struct SinkAttention {
    heads: Heads,
    sinks_gm11: Tensor,
    sinks_kind: Kind,
    output_gmtk: Tensor,
    log_sums: Vec<Tensor>,
    blocks: Vec<Block>,
    window: Option<i64>,
    shape: Shape,
}

impl Function for SinkAttention {
    /// P = exp(S - lse), D = sum_k dO O: dV = P^T dO, dS = P (dO V^T - D), dQ = dS K, dK = dS^T Q, dsink = -sum exp(sink - lse) D.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient_thk) = &output_gradients[0] else { return Ok(vec![None, None, None, None]) };
        let kind = self.heads.key.kind();
        let gradient_gmtk = cast(&self.shape.queries_by_group(gradient_thk)?, kind)?;
        let device = gradient_thk.device();
        let input_kind = gradient_thk.kind();
        let query_gradient = Tensor::f_empty(self.heads.query.size(), (kind, device)).named("sink_attention backward", &[])?;
        let sum_kind = Kind::Float;
        let key_gradient = zeros(&self.heads.key.size(), sum_kind, device)?;
        let value_gradient = zeros(&self.heads.value.size(), sum_kind, device)?;
        let mut sink_gradient = zeros(&self.sinks_gm11.size(), Kind::Float, device)?;
        for (block, log_sum) in self.blocks.iter().zip(&self.log_sums) {
            self.backward_block(block, log_sum, &gradient_gmtk, &query_gradient, &key_gradient, &value_gradient, &mut sink_gradient)
                .named("sink_attention backward", &[gradient_thk])?;
        }
        let tokens_first = |tensor: &Tensor| {
            tensor.f_transpose(0, 1).and_then(|tokens| tokens.f_to_kind(input_kind)).named("sink_attention backward", &[tensor])
        };
        let sinks =
            sink_gradient.f_reshape([-1]).and_then(|sinks| sinks.f_to_kind(self.sinks_kind)).named("sink_attention backward", &[])?;
        Ok(vec![
            Some(cast(&self.shape.tokens_first(&query_gradient)?, input_kind)?),
            Some(tokens_first(&key_gradient)?),
            Some(tokens_first(&value_gradient)?),
            Some(sinks),
        ])
    }
}

impl SinkAttention {
    #[expect(clippy::too_many_arguments, reason = "the gradients that a block adds to")]
    fn backward_block(
        &self,
        block: &Block,
        log_sum: &Tensor,
        gradient_gmtk: &Tensor,
        query_gradient: &Tensor,
        key_gradient: &Tensor,
        value_gradient: &Tensor,
        sink_gradient: &mut Tensor,
    ) -> Result<(), tch::TchError> {
        let Shape { groups, width, .. } = self.shape;
        let kind = self.heads.key.kind();
        let probability = scores(&self.heads, block, self.window, self.shape)?.f_sub_(log_sum)?.f_exp_()?;
        let gradient = block.query(gradient_gmtk)?;
        let gradient_rows = gradient.f_reshape([groups, -1, width])?;
        let products = gradient.f_to_kind(Kind::Float)?.f_mul(&block.query(&self.output_gmtk)?.f_to_kind(Kind::Float)?)?;
        let mean = products.f_sum_dim_intlist(-1, true, Kind::Float)?;

        let flat = |tensor: &Tensor| tensor.f_to_kind(kind)?.f_view([groups, -1, block.keys]);
        let value_part = flat(&probability)?.f_transpose(1, 2)?.f_matmul(&gradient_rows)?;
        let _ = block.key(value_gradient)?.f_add_(&value_part)?;

        let value = block.key(&self.heads.value)?.f_transpose(1, 2)?;
        let mut score_gradient = gradient_rows.f_matmul(&value)?.f_to_kind(Kind::Float)?.f_view(&probability.size()[..])?;
        let score_gradient = score_gradient.f_sub_(&mean)?.f_mul_(&probability)?.f_mul_scalar_(self.shape.scale())?;
        let score_gradient = flat(&score_gradient)?;
        let query_part = score_gradient.f_matmul(&block.key(&self.heads.key)?)?;
        block.query(query_gradient)?.f_copy_(&query_part.f_view(&gradient.size()[..])?)?;

        let query_rows = block.query(&self.heads.query)?.f_reshape([groups, -1, width])?;
        let key_part = score_gradient.f_transpose(1, 2)?.f_matmul(&query_rows)?;
        let _ = block.key(key_gradient)?.f_add_(&key_part)?;

        let sink = self.sinks_gm11.f_sub(log_sum)?.f_exp_()?.f_mul(&mean)?.f_sum_dim_intlist(&[2i64, 3][..], true, Kind::Float)?;
        let _ = sink_gradient.f_sub_(&sink)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// The definition, with libtorch's own graph: one matrix of scores, the sink as a column that is dropped after the softmax.
    fn reference(query: &Tensor, key: &Tensor, value: &Tensor, sinks: &Tensor, spans: &[AttentionSpan], window: Option<i64>) -> Tensor {
        let (tokens, heads, width) = query.size3().unwrap();
        let keys = key.size()[0];
        let mut visible = vec![false; usize::try_from(tokens * keys).unwrap()];
        for span in spans {
            let shift = span.keys.end - span.queries.end;
            for i in span.queries.clone() {
                for j in span.keys.clone() {
                    let seen = j <= i + shift && window.is_none_or(|window| i + shift - j < window);
                    visible[usize::try_from(i * keys + j).unwrap()] = seen;
                }
            }
        }
        let hidden = Tensor::from_slice(&visible).view([tokens, keys]).logical_not();
        let repeat = heads / key.size()[1];
        let key = key.repeat_interleave_self_int(repeat, 1, None);
        let value = value.repeat_interleave_self_int(repeat, 1, None);
        let scores = Tensor::einsum("qhk,nhk->hqn", &[query, &key], None::<i64>) / f64::from(i32::try_from(width).unwrap()).sqrt();
        let scores = scores.masked_fill(&hidden, f64::NEG_INFINITY);
        let column = sinks.view([heads, 1, 1]).expand([heads, tokens, 1], false);
        let probability = Tensor::cat(&[scores, column], -1).softmax(-1, None::<Kind>).narrow(-1, 0, keys);
        Tensor::einsum("hqn,nhk->qhk", &[probability, value], None::<i64>)
    }

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu)).set_requires_grad(true)
    }

    fn compare(tokens: i64, keys: i64, spans: &[AttentionSpan], window: Option<i64>) {
        tch::manual_seed(7);
        let inputs = [random(&[tokens, 6, 5]), random(&[keys, 2, 5]), random(&[keys, 2, 5]), random(&[6])];
        let [query, key, value, sinks] = &inputs;
        let direction = Tensor::randn([tokens, 6, 5], (Kind::Double, Device::Cpu));
        let mut gradients = Vec::new();
        let expected = reference(query, key, value, sinks, spans, window);
        let found = sink_attention(query, key, value, sinks, spans, window).unwrap();
        // Scores are kept in f32 whatever the inputs.
        assert!((&expected - &found).abs().max().double_value(&[]) < 2e-6);
        for output in [expected, found] {
            (output * &direction).sum(None::<Kind>).backward();
            gradients.push(inputs.iter().map(|input| input.grad().copy()).collect::<Vec<_>>());
            for input in &inputs {
                let _ = input.grad().zero_();
            }
        }
        for (expected, found) in gradients[0].iter().zip(&gradients[1]) {
            let difference = (expected - found).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "gradients differ by {difference}");
        }
    }

    fn packed(lengths: &[i64]) -> Vec<AttentionSpan> {
        let mut start = 0;
        lengths
            .iter()
            .map(|length| {
                let range = start..start + length;
                start += length;
                AttentionSpan { queries: range.clone(), keys: range }
            })
            .collect()
    }

    #[test]
    fn one_sequence_equals_the_definition() {
        compare(37, 37, &packed(&[37]), None);
    }

    #[test]
    fn a_window_counts_the_token_itself() {
        compare(37, 37, &packed(&[37]), Some(8));
    }

    #[test]
    fn packed_samples_do_not_see_each_other() {
        compare(50, 50, &packed(&[13, 1, 36]), None);
        compare(50, 50, &packed(&[13, 1, 36]), Some(4));
    }

    #[test]
    fn sequences_longer_than_a_block_are_joined_without_seams() {
        compare(BLOCK_QUERIES * 2 + 9, BLOCK_QUERIES * 2 + 9, &packed(&[BLOCK_QUERIES * 2 + 9]), None);
        compare(BLOCK_QUERIES * 2 + 9, BLOCK_QUERIES * 2 + 9, &packed(&[BLOCK_QUERIES * 2 + 9]), Some(100));
    }

    #[test]
    fn queries_after_a_cache_are_the_newest_keys() {
        let spans = [AttentionSpan { queries: 0..3, keys: 0..20 }];
        compare(3, 20, &spans, None);
        compare(3, 20, &spans, Some(6));
        compare(1, 20, &[AttentionSpan { queries: 0..1, keys: 0..20 }], Some(6));
    }

    #[test]
    fn sink_logit_takes_probability_mass() {
        let one = Tensor::ones([1, 1, 2], (Kind::Float, Device::Cpu));
        let sinks = Tensor::from_slice(&[std::f32::consts::FRAC_1_SQRT_2 * 2.0]);
        let output = sink_attention(&one, &one, &one, &sinks, &packed(&[1]), None).unwrap();
        // The only key has the logit 2 / sqrt(2), as has the sink: half of the probability each.
        assert!((output.double_value(&[0, 0, 0]) - 0.5).abs() < 1e-6);
    }
}
