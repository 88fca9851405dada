//! Blocks of queries, what each of them sees, and the passes over a tile of scores.

use std::ops::Range;

use super::super::dispatch::for_each_instruction_set;
use super::super::element::Element;
use super::super::exponential::exp;
use super::super::parallel::Shared;
use super::{SpanRows, TILE_KEYS};

/// Independent partial sums, so that the order of additions does not depend on the vector width.
const LANES: usize = 16;

/// Below this, an exponential (9e-27) is taken as 0: of its sum with 1 nothing would be left in f32, and its products might be so small that
/// processors are slow with them.
const NEGLIGIBLE: f32 = -60.0;

/// Some queries of a span.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// Rows of the query tensor.
    pub(super) rows: Range<usize>,
    /// The key row of the first query itself.
    own_key: usize,
    /// The span's first key row.
    first_key: usize,
    window: Option<usize>,
}

impl Block {
    /// The blocks of a span, of `queries` each but for the last.
    pub(super) fn of_span(span: &SpanRows, window: Option<usize>, queries: usize) -> impl Iterator<Item = Self> {
        let SpanRows { queries: rows, keys } = span.clone();
        rows.clone().step_by(queries).map(move |first| Self {
            rows: first..rows.end.min(first + queries),
            own_key: keys.end - (rows.end - first),
            first_key: keys.start,
            window,
        })
    }

    pub(super) fn queries(&self) -> usize {
        self.rows.len()
    }

    /// Key rows that any of the queries sees.
    pub(super) fn keys(&self) -> Range<usize> {
        self.first_visible(0)..self.own_key + self.queries()
    }

    /// [`Block::keys`] in tiles.
    pub(super) fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let keys = self.keys();
        keys.clone().step_by(TILE_KEYS).map(move |first| first..keys.end.min(first + TILE_KEYS))
    }

    /// Columns of a tile that query `index` of the block sees.
    #[inline(always)]
    pub(super) fn visible(&self, index: usize, tile: &Range<usize>) -> Range<usize> {
        let column = |key: usize| key.clamp(tile.start, tile.end) - tile.start;
        column(self.first_visible(index))..column(self.own_key + index + 1)
    }

    #[inline(always)]
    fn first_visible(&self, index: usize) -> usize {
        let newest = self.own_key + index;
        self.window.map_or(self.first_key, |window| self.first_key.max((newest + 1).saturating_sub(window)))
    }
}

/// Evenly spaced rows of a tensor, or the part of each that belongs to one group of heads.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    pub(super) rows: Range<usize>,
    /// Elements of the tensor's rows.
    pub(super) stride: usize,
    /// Where the part begins in its row.
    pub(super) offset: usize,
    /// Its elements.
    pub(super) length: usize,
}

impl Rows {
    /// Elements of the part of `row`.
    fn part(&self, row: usize) -> Range<usize> {
        let start = row * self.stride + self.offset;
        start..start + self.length
    }

    /// Writes consecutive parts of `values`, each element times `factor`.
    pub(super) fn write<T: Element>(&self, values: &[f32], factor: f32, to: &Shared<T>) {
        for (row, values) in self.rows.clone().zip(values.chunks_exact(self.length)) {
            // SAFETY: callers give disjoint rows or parts of rows to different threads.
            write::<T>(values, factor, unsafe { to.part(self.part(row)) });
        }
    }

    /// Reads them end to end, each element times `factor`.
    pub(super) fn read<T: Element>(&self, from: &[T], factor: f32, values: &mut [f32]) {
        for (row, values) in self.rows.clone().zip(values.chunks_exact_mut(self.length)) {
            read::<T>(&from[self.part(row)], factor, values);
        }
    }
}

for_each_instruction_set! {
    fn write<T: Element>(values: &[f32], factor: f32, to: &mut [T]) {
        for (to, value) in to.iter_mut().zip(values) {
            *to = T::from_f32(value * factor);
        }
    }
}

for_each_instruction_set! {
    fn read<T: Element>(from: &[T], factor: f32, values: &mut [f32]) {
        for (value, from) in values.iter_mut().zip(from) {
            *value = from.to_f32() * factor;
        }
    }
}

/// What a row of scores came to over the tiles that it met: the largest, and the sum of exponentials of the others less it.
#[derive(Debug)]
pub(super) struct Running<'a> {
    pub(super) peaks: &'a mut [f32],
    pub(super) sums: &'a mut [f32],
    /// Sums of values by these exponentials, of `width` each; rescaled when a peak rises.
    pub(super) outputs: &'a mut [f32],
}

for_each_instruction_set! {
    /// Turns scores of rows of `columns` into exponentials of themselves less the peak so far; what `visible` does not name, into 0.
    pub(super) fn exponentiate_rows<V: Fn(usize) -> Range<usize>>(scores: &mut [f32], columns: usize, visible: V, running: Running) {
        let Running { peaks, sums, outputs } = running;
        let width = outputs.len() / peaks.len();
        let rows = scores.chunks_exact_mut(columns).zip(outputs.chunks_exact_mut(width)).zip(peaks.iter_mut().zip(sums));
        for (index, ((row, output), (peak, sum))) in rows.enumerate() {
            let visible = visible(index);
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
            let row = &mut row[visible];
            let largest = largest(row, *peak);
            if largest > *peak {
                // At first the peak is negative infinity: nothing was summed, and the factor is as good as 0.
                let factor = exp(*peak - largest);
                *sum *= factor;
                for output in output {
                    *output *= factor;
                }
            }
            *peak = largest;
            *sum += exponentiate(row, largest);
        }
    }
}

for_each_instruction_set! {
    /// Turns scores into probabilities P by the logarithms of their sums, and `products` dP into P (dP - mean); hidden ones into 0.
    pub(super) fn differentiate_rows<V: Fn(usize) -> Range<usize>>(
        scores: &mut [f32], products: &mut [f32], columns: usize, visible: V, log_sums: &[f32], means: &[f32],
    ) {
        let rows = scores.chunks_exact_mut(columns).zip(products.chunks_exact_mut(columns)).zip(log_sums.iter().zip(means));
        for (index, ((scores, products), (&log_sum, &mean))) in rows.enumerate() {
            let visible = visible(index);
            for row in [&mut *scores, &mut *products] {
                row[..visible.start].fill(0.0);
                row[visible.end..].fill(0.0);
            }
            for (score, product) in scores[visible.clone()].iter_mut().zip(&mut products[visible]) {
                let probability = exponential(*score - log_sum);
                *score = probability;
                *product = probability * (*product - mean);
            }
        }
    }
}

for_each_instruction_set! {
    /// Scalar products of the rows of two matrices.
    pub(super) fn row_products<V: Fn(usize) -> Range<usize>>(left: &[f32], right: &[f32], part: V, products: &mut [f32]) {
        for (index, product) in products.iter_mut().enumerate() {
            let part = part(index);
            let mut lanes = [0f32; LANES];
            let ((left, left_rest), (right, right_rest)) = (left[part.clone()].as_chunks::<LANES>(), right[part].as_chunks::<LANES>());
            for (left, right) in left.iter().zip(right) {
                for lane in 0..LANES {
                    lanes[lane] += left[lane] * right[lane];
                }
            }
            let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
            *product = lanes.iter().sum::<f32>() + rest;
        }
    }
}

/// The largest of `start` and the row. A NaN is passed over here; its exponential shows it.
#[inline(always)]
fn largest(row: &[f32], start: f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(start, |largest, &value| if value > largest { value } else { largest })
}

#[inline(always)]
fn exponential(x: f32) -> f32 {
    let value = exp(x);
    // A NaN is not below.
    if x < NEGLIGIBLE { 0.0 } else { value }
}

/// Replaces each value by exp(value - peak); gives their sum.
#[inline(always)]
fn exponentiate(row: &mut [f32], peak: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exponential(*value - peak);
            *lane += *value;
        }
    }
    let mut sum = lanes.iter().sum::<f32>();
    for value in rest {
        *value = exponential(*value - peak);
        sum += *value;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_span_see_what_their_queries_see() {
        // Ten queries, which are the last of 25 keys from row 100 on.
        let span = SpanRows { queries: 40..50, keys: 100..125 };
        for window in [None, Some(1), Some(3), Some(12), Some(1000)] {
            let blocks: Vec<Block> = Block::of_span(&span, window, 4).collect();
            assert_eq!(blocks.iter().map(|block| block.rows.clone()).collect::<Vec<_>>(), [40..44, 44..48, 48..50]);
            for block in &blocks {
                let sees = |query: usize, key: usize| {
                    let own = 100 + 15 + (query - 40);
                    key >= 100 && key <= own && window.is_none_or(|window| own - key < window)
                };
                for tile in [100..125, 100..107, 107..118, 118..125] {
                    for (index, query) in block.rows.clone().enumerate() {
                        let visible = block.visible(index, &tile);
                        for key in tile.clone() {
                            assert_eq!(visible.contains(&(key - tile.start)), sees(query, key), "{query} {key} {window:?}");
                        }
                    }
                }
                let seen: Vec<usize> = (0..200).filter(|&key| block.rows.clone().any(|query| sees(query, key))).collect();
                assert_eq!(block.keys().collect::<Vec<_>>(), seen);
                assert_eq!(block.tiles().flatten().collect::<Vec<_>>(), seen);
            }
        }
    }

    #[test]
    fn a_row_that_sees_nothing_of_a_tile_is_left_as_it_was() {
        let (mut peaks, mut sums, mut outputs) = ([f32::NEG_INFINITY, 1.0], [0.0, 2.0], [0.0, 0.0, 3.0, 4.0]);
        let mut scores = [5.0; 6];
        exponentiate_rows(&mut scores, 3, |_| 1..1, Running { peaks: &mut peaks, sums: &mut sums, outputs: &mut outputs });
        assert_eq!((peaks, sums, outputs, scores), ([f32::NEG_INFINITY, 1.0], [0.0, 2.0], [0.0, 0.0, 3.0, 4.0], [0.0; 6]));
    }

    #[test]
    fn a_share_too_small_to_count_is_nothing() {
        let (mut peaks, mut sums, mut outputs) = ([f32::NEG_INFINITY], [0.0], [0.0]);
        let mut scores = [0.0, -59.0, -61.0, -300.0];
        exponentiate_rows(&mut scores, 4, |_| 0..4, Running { peaks: &mut peaks, sums: &mut sums, outputs: &mut outputs });
        assert!(scores[1] > 1e-26 && scores[2..] == [0.0; 2] && sums == [1.0], "{scores:?}, {sums:?}");
    }

    #[test]
    fn a_rising_peak_rescales_what_was_summed() {
        let (mut peaks, mut sums, mut outputs) = ([1.0], [2.0], [3.0]);
        let mut scores = [2.0, 3.0];
        exponentiate_rows(&mut scores, 2, |_| 0..2, Running { peaks: &mut peaks, sums: &mut sums, outputs: &mut outputs });
        let factor = (-2f32).exp();
        let near = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
        near(peaks[0], 3.0);
        near(sums[0], 2.0 * factor + (-1f32).exp() + 1.0);
        near(outputs[0], 3.0 * factor);
        near(scores[0], (-1f32).exp());
    }
}
