//! The output of one block.

use super::super::element::Element;
use super::super::matrix::{Matrix, Write, multiply};
use super::super::parallel::Shared;
use super::tile::{Block, Rows, Running, exponentiate_rows};
use super::{AttentionInputs, AttentionTiles, take};

/// Buffers of a thread.
pub(super) struct Space<'a> {
    query: &'a mut [f32],
    output: &'a mut [f32],
    scores: &'a mut [f32],
    key: &'a mut [f32],
    value: &'a mut [f32],
    peaks: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<'a> Space<'a> {
    /// f32 of each, for so many rows of a block and keys of a tile.
    pub(super) fn sizes(rows: usize, keys: usize, width: usize) -> [usize; 7] {
        [rows * width, rows * width, rows * keys, keys * width, keys * width, rows, rows]
    }

    fn new(mut space: &'a mut [f32], sizes: [usize; 7]) -> Self {
        let [query, output, scores, key, value, peaks, sums] = sizes.map(|size| take(&mut space, size));
        Self { query, output, scores, key, value, peaks, sums }
    }
}

/// Writes the rows of `block` that the heads of `group` own.
pub(super) fn block<T: Element>(
    tiles: &AttentionTiles,
    inputs: AttentionInputs<T>,
    block: &Block,
    group: usize,
    output: &Shared<T>,
    log_sums: &Shared<f32>,
    space: &mut [f32],
) {
    let (shape, width) = (tiles.shape, tiles.shape.width);
    let multiplicity = shape.multiplicity();
    let rows = block.queries() * multiplicity;
    let space = Space::new(space, Space::sizes(rows, block.keys().len().min(super::TILE_KEYS), width));

    let query_rows = shape.query_rows(block, group);
    query_rows.read(inputs.query, shape.scale(), space.query);
    space.output.fill(0.0);
    space.peaks.fill(f32::NEG_INFINITY);
    space.sums.fill(0.0);
    for tile in block.tiles() {
        let keys = tile.len();
        let key_rows = Rows { rows: tile.clone(), ..shape.key_rows(group) };
        key_rows.read(inputs.key, 1.0, space.key);
        key_rows.read(inputs.value, 1.0, space.value);
        let scores = &mut space.scores[..rows * keys];
        multiply(Matrix::new(space.query, rows, width), Matrix::new(space.key, keys, width).transposed(), Write::Over, scores);
        exponentiate_rows(
            scores,
            keys,
            |row| block.visible(row / multiplicity, &tile),
            Running { peaks: space.peaks, sums: space.sums, outputs: space.output },
        );
        multiply(Matrix::new(scores, rows, keys), Matrix::new(space.value, keys, width), Write::Add, space.output);
    }

    for (output, sum) in space.output.chunks_exact_mut(width).zip(space.sums.iter()) {
        for value in output {
            *value /= sum;
        }
    }
    query_rows.write(space.output, 1.0, output);
    let tokens = inputs.query.len() / (shape.heads * width);
    for head in 0..multiplicity {
        let first = (group * multiplicity + head) * tokens;
        // SAFETY: a head and the rows of a block belong to one item.
        let log_sums = unsafe { log_sums.part(first + block.rows.start..first + block.rows.end) };
        for (index, log_sum) in log_sums.iter_mut().enumerate() {
            let row = index * multiplicity + head;
            *log_sum = space.peaks[row] + space.sums[row].ln();
        }
    }
}
