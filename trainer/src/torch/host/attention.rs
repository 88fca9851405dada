//! Causal attention on the CPU in tiles, without sinks: never a matrix of scores, no copy of the inputs, one thread for each tile.
//!
//! A block is some queries of one span with the heads that read one key head; it meets its keys tile by tile, with the largest score and the
//! sum of exponentials so far. Products go to BLAS, everything between them is one pass over the tile. Sums are in f32, in an order that does
//! not depend on the number of threads.
//!
//! Letters: t queries, n keys, h query heads, g key/value heads, m query heads for each of them (h / g), k head width.
//!
//! Source: T. Dao, "FlashAttention-2" (arXiv 2307.08691), algorithms 1 and 2.

mod backward;
mod forward;
mod tile;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::element::Element;
use super::parallel::{Shared, for_each_range};
use tile::{Block, Rows};

/// Rows of a block, a query of one head each, where that many fit.
const BLOCK_ROWS: usize = 256;
/// Queries of a block: causal blocks compute what their last query sees for all of them.
const BLOCK_QUERIES: usize = 64;
/// Keys of a tile.
const TILE_KEYS: usize = 512;
/// Bytes of all threads' buffers together. Fewer threads run where theirs would take more; a single one takes what it needs, which for the
/// gradients of 400,000 keys of width 64 is still less.
const WORKSPACE_BYTES: usize = 256 << 20;
/// Buffers start at multiples of this many f32 (64 bytes), so that products do not depend on where an allocation fell.
const ALIGNMENT: usize = 16;

/// Rows that attend to rows: the queries `queries` are the last of the keys `keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanRows {
    /// Of query, output and their gradients.
    pub queries: Range<usize>,
    /// Of key, value and their gradients; at least as many as queries.
    pub keys: Range<usize>,
}

/// Heads of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads, h.
    pub heads: usize,
    /// Key and value heads, g; divides h.
    pub groups: usize,
    /// Width of each, k.
    pub width: usize,
}

/// Contiguous inputs, of which query is [t, h, k], and key and value are [n, g, k].
#[derive(Debug, Clone, Copy)]
pub struct AttentionInputs<'a, T> {
    /// [t, h, k].
    pub query: &'a [T],
    /// [n, g, k].
    pub key: &'a [T],
    /// [n, g, k].
    pub value: &'a [T],
}

/// Where the gradients of [`AttentionInputs`] go, in the same shapes.
#[derive(Debug)]
pub struct AttentionGradients<'a, T> {
    /// [t, h, k].
    pub query: &'a mut [T],
    /// [n, g, k].
    pub key: &'a mut [T],
    /// [n, g, k].
    pub value: &'a mut [T],
}

/// What the backward pass takes, beside the inputs.
#[derive(Debug, Clone, Copy)]
pub struct AttentionResults<'a, T> {
    /// Gradient of the output, [t, h, k].
    pub gradient: &'a [T],
    /// The output, [t, h, k].
    pub output: &'a [T],
    /// The logarithms of the sums that the probabilities were divided by, [h, t].
    pub log_sums: &'a [f32],
}

/// The work of one call, cut into tiles.
#[derive(Debug)]
pub struct AttentionTiles {
    spans: Vec<SpanRows>,
    blocks: Vec<Block>,
    /// Of each span, its blocks.
    blocks_of_span: Vec<Range<usize>>,
    shape: HeadShape,
    threads: usize,
}

impl AttentionTiles {
    /// Attention of `spans`, each query to the newest `window` keys up to its own place, or to all of them. At most `threads` threads.
    ///
    /// # Panics
    /// When key heads do not divide query heads, a span has fewer keys than queries, or a window holds no key: the caller's mistake.
    #[must_use]
    pub fn new(spans: Vec<SpanRows>, window: Option<usize>, shape: HeadShape, threads: usize) -> Self {
        let HeadShape { heads, groups, .. } = shape;
        assert!(groups > 0 && heads.is_multiple_of(groups), "{heads} query heads to {groups} key heads");
        assert!(window != Some(0), "a window of at least the token itself");
        let queries = (BLOCK_ROWS / shape.multiplicity()).clamp(1, BLOCK_QUERIES);
        let (mut blocks, mut blocks_of_span) = (Vec::new(), Vec::new());
        for span in &spans {
            assert!(span.queries.len() <= span.keys.len(), "{} queries to {} keys", span.queries.len(), span.keys.len());
            let first = blocks.len();
            blocks.extend(Block::of_span(span, window, queries));
            blocks_of_span.push(first..blocks.len());
        }
        Self { spans, blocks, blocks_of_span, shape, threads: threads.max(1) }
    }

    /// f32 that [`AttentionTiles::forward`] wants as its workspace: no more than 256 MB worth, whatever the length.
    #[must_use]
    pub fn forward_workspace(&self) -> usize {
        self.slots(self.forward_items(), self.forward_floats()) * self.forward_floats()
    }

    /// f32 that [`AttentionTiles::backward`] wants as its workspace: no more than 256 MB worth, up to 400,000 keys in a span.
    #[must_use]
    pub fn backward_workspace(&self) -> usize {
        self.slots(self.backward_items(), self.backward_floats()) * self.backward_floats()
    }

    /// Writes `softmax(q k' / sqrt(k)) v` to `output` [t, h, k], and the logarithms of the softmax's sums to `log_sums` [h, t]. Rows outside of
    /// all spans stay as they are.
    ///
    /// # Panics
    /// When a span exceeds its tensor, or `workspace` is smaller than [`AttentionTiles::forward_workspace`]: the caller's mistake.
    pub fn forward<T: Element>(&self, inputs: AttentionInputs<T>, output: &mut [T], log_sums: &mut [f32], workspace: &mut [f32]) {
        assert_eq!(output.len(), inputs.query.len(), "an output for each query");
        assert_eq!(log_sums.len() * self.shape.width, output.len(), "a sum for each query and head");
        let (output, log_sums) = (Shared::new(output), Shared::new(log_sums));
        self.for_each_item(self.forward_items(), self.forward_floats(), workspace, |item, space| {
            // Blocks at the end of a span have the most keys: first.
            let block = &self.blocks[self.blocks.len() - 1 - item / self.shape.groups];
            forward::block(self, inputs, block, item % self.shape.groups, &output, &log_sums, space);
        });
    }

    /// Writes the gradients of all inputs. With P = exp(q k' / sqrt(k) - log sum) and D = rowsum(dO O): dV = P' dO, dS = P (dO V' - D),
    /// dQ = dS K / sqrt(k), dK = dS' Q / sqrt(k). Rows outside of all spans stay as they are.
    ///
    /// # Panics
    /// When a span exceeds its tensor, or `workspace` is smaller than [`AttentionTiles::backward_workspace`]: the caller's mistake.
    pub fn backward<T: Element>(
        &self,
        inputs: AttentionInputs<T>,
        results: AttentionResults<T>,
        gradients: AttentionGradients<T>,
        workspace: &mut [f32],
    ) {
        let [query, key, value] = [gradients.query, gradients.key, gradients.value];
        assert!(query.len() == inputs.query.len() && key.len() == inputs.key.len() && value.len() == key.len(), "gradients as inputs");
        assert!(results.gradient.len() == query.len() && results.output.len() == query.len(), "results as queries");
        assert_eq!(results.log_sums.len() * self.shape.width, query.len(), "a sum for each query and head");
        let gradients = [Shared::new(query), Shared::new(key), Shared::new(value)];
        self.for_each_item(self.backward_items(), self.backward_floats(), workspace, |item, space| {
            backward::span(self, inputs, results, item / self.shape.groups, item % self.shape.groups, &gradients, space);
        });
    }

    fn forward_items(&self) -> usize {
        self.blocks.len() * self.shape.groups
    }

    fn backward_items(&self) -> usize {
        self.spans.len() * self.shape.groups
    }

    /// The largest block's rows, and the most keys of a tile.
    fn largest(&self) -> (usize, usize) {
        let queries = self.blocks.iter().map(Block::queries).max().unwrap_or(0);
        let keys = self.blocks.iter().map(|block| block.keys().len()).max().unwrap_or(0);
        (queries * self.shape.multiplicity(), keys.min(TILE_KEYS))
    }

    fn forward_floats(&self) -> usize {
        let (rows, keys) = self.largest();
        forward::Space::sizes(rows, keys, self.shape.width).map(aligned).iter().sum()
    }

    fn backward_floats(&self) -> usize {
        let (rows, keys) = self.largest();
        let longest = self.spans.iter().map(|span| span.keys.len()).max().unwrap_or(0);
        backward::Space::sizes(rows, keys, longest, self.shape.width).map(aligned).iter().sum()
    }

    /// Threads for `items`, each with so many f32.
    fn slots(&self, items: usize, floats: usize) -> usize {
        let affordable = WORKSPACE_BYTES / (floats * size_of::<f32>()).max(1);
        self.threads.min(items).min(affordable.max(1))
    }

    /// Calls `work` for every item, with a part of the workspace that no other call uses meanwhile.
    fn for_each_item(&self, items: usize, floats: usize, workspace: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
        let slots = self.slots(items, floats);
        assert!(workspace.len() >= slots * floats, "{} f32 of workspace for {slots} threads with {floats} each", workspace.len());
        let (next, workspace) = (AtomicUsize::new(0), Shared::new(workspace));
        // On its own, one slot would run outside of libtorch's threads, where BLAS starts some for each product: small ones are slower for it.
        for_each_range(slots.max(2), 1, |range| {
            for slot in range.start..range.end.min(slots) {
                // SAFETY: each slot is visited once, and parts of different slots are disjoint.
                let space = unsafe { workspace.part(slot * floats..(slot + 1) * floats) };
                loop {
                    let item = next.fetch_add(1, Ordering::Relaxed);
                    if item >= items {
                        break;
                    }
                    work(item, space);
                }
            }
        });
    }
}

impl HeadShape {
    /// Query heads for each key head.
    fn multiplicity(self) -> usize {
        self.heads / self.groups
    }

    /// The part of `block`'s queries that the heads of `group` own.
    fn query_rows(self, block: &Block, group: usize) -> Rows {
        let length = self.multiplicity() * self.width;
        Rows { rows: block.rows.clone(), stride: self.heads * self.width, offset: group * length, length }
    }

    /// The part of key rows that `group` is; of no row yet.
    fn key_rows(self, group: usize) -> Rows {
        Rows { rows: 0..0, stride: self.groups * self.width, offset: group * self.width, length: self.width }
    }

    /// 1 / sqrt(k).
    #[expect(clippy::cast_precision_loss, reason = "a head is far narrower than 2^24")]
    fn scale(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

/// f32 that a buffer of `floats` takes.
fn aligned(floats: usize) -> usize {
    floats.next_multiple_of(ALIGNMENT)
}

/// Takes a buffer of `floats` off the front of `space`.
fn take<'a>(space: &mut &'a mut [f32], floats: usize) -> &'a mut [f32] {
    let (front, rest) = std::mem::take(space).split_at_mut(aligned(floats));
    *space = rest;
    &mut front[..floats]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPT_OSS: HeadShape = HeadShape { heads: 64, groups: 8, width: 64 };

    fn one_span(length: usize) -> Vec<SpanRows> {
        vec![SpanRows { queries: 0..length, keys: 0..length }]
    }

    #[test]
    fn the_workspace_stays_below_256_mib_whatever_the_length() {
        for threads in [1, 2, 16, 192] {
            for length in [1, 200, 4096, 131_072] {
                for window in [None, Some(128)] {
                    let tiles = AttentionTiles::new(one_span(length), window, GPT_OSS, threads);
                    let bytes = [tiles.forward_workspace() * 4, tiles.backward_workspace() * 4];
                    assert!(bytes.iter().all(|&bytes| bytes > 0 && bytes <= WORKSPACE_BYTES), "{bytes:?} for {length}");
                }
            }
        }
        // Three threads hold the key and value gradients of one head of 131,072 tokens, and no more.
        let tiles = AttentionTiles::new(one_span(131_072), None, GPT_OSS, 16);
        assert_eq!(tiles.slots(tiles.backward_items(), tiles.backward_floats()), 3);
        assert_eq!(tiles.slots(tiles.forward_items(), tiles.forward_floats()), 16);
    }

    #[test]
    fn tiles_of_a_long_span_are_no_larger_than_those_of_a_short_one() {
        let floats = |length| AttentionTiles::new(one_span(length), None, GPT_OSS, 1).forward_floats();
        assert_eq!(floats(131_072), floats(1024));
        assert!(floats(1024) * 4 < 2 << 20);
    }

    #[test]
    fn a_token_to_generate_takes_little_workspace() {
        let spans = vec![SpanRows { queries: 0..1, keys: 0..100 }];
        assert!(AttentionTiles::new(spans, None, GPT_OSS, 1).forward_workspace() * 4 < 80 << 10);
    }

    #[test]
    fn no_spans_are_no_work() {
        let tiles = AttentionTiles::new(Vec::new(), None, GPT_OSS, 4);
        assert_eq!((tiles.forward_workspace(), tiles.backward_workspace()), (0, 0));
        tiles.forward::<f32>(AttentionInputs { query: &[], key: &[], value: &[] }, &mut [], &mut [], &mut []);
    }
}
