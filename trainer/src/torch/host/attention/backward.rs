//! The gradients of one span under one key head, whose key and value gradients one thread sums.

use super::super::element::Element;
use super::super::matrix::{Matrix, Write, multiply};
use super::super::parallel::Shared;
use super::tile::{Block, Rows, differentiate_rows, row_products};
use super::{AttentionInputs, AttentionResults, AttentionTiles, take};

/// Buffers of a thread.
pub(super) struct Space<'a> {
    query: &'a mut [f32],
    gradient: &'a mut [f32],
    query_gradient: &'a mut [f32],
    scores: &'a mut [f32],
    products: &'a mut [f32],
    key: &'a mut [f32],
    value: &'a mut [f32],
    log_sums: &'a mut [f32],
    means: &'a mut [f32],
    key_gradient: &'a mut [f32],
    value_gradient: &'a mut [f32],
}

impl<'a> Space<'a> {
    /// f32 of each, for so many rows of a block, keys of a tile and keys of a span.
    pub(super) fn sizes(rows: usize, keys: usize, span_keys: usize, width: usize) -> [usize; 11] {
        let [block, tile, square, span] = [rows * width, keys * width, rows * keys, span_keys * width];
        [block, block, block, square, square, tile, tile, rows, rows, span, span]
    }

    fn new(mut space: &'a mut [f32], sizes: [usize; 11]) -> Self {
        let [query, gradient, query_gradient, scores, products, key, value, log_sums, means, key_gradient, value_gradient] =
            sizes.map(|size| take(&mut space, size));
        Self { query, gradient, query_gradient, scores, products, key, value, log_sums, means, key_gradient, value_gradient }
    }
}

/// Writes the gradients of span `index` that belong to `group`, to query, key and value.
pub(super) fn span<T: Element>(
    tiles: &AttentionTiles,
    inputs: AttentionInputs<T>,
    results: AttentionResults<T>,
    index: usize,
    group: usize,
    gradients: &[Shared<T>; 3],
    space: &mut [f32],
) {
    let (shape, keys) = (tiles.shape, &tiles.spans[index].keys);
    let blocks = &tiles.blocks[tiles.blocks_of_span[index].clone()];
    let rows = blocks.iter().map(Block::queries).max().unwrap_or(0) * shape.multiplicity();
    let longest = blocks.iter().map(|block| block.keys().len()).max().unwrap_or(0).min(super::TILE_KEYS);
    let mut space = Space::new(space, Space::sizes(rows, longest, keys.len(), shape.width));

    space.key_gradient.fill(0.0);
    space.value_gradient.fill(0.0);
    for block in blocks {
        add_block(tiles, inputs, results, block, group, keys.start, &mut space);
        shape.query_rows(block, group).write(space.query_gradient, shape.scale(), &gradients[0]);
    }
    let key_rows = Rows { rows: keys.clone(), ..shape.key_rows(group) };
    key_rows.write(space.key_gradient, 1.0, &gradients[1]);
    key_rows.write(space.value_gradient, 1.0, &gradients[2]);
}

/// Adds a block's part to the key and value gradients of the span, whose keys begin at `first_key`, and leaves the block's query gradient
/// without its scale.
fn add_block<T: Element>(
    tiles: &AttentionTiles,
    inputs: AttentionInputs<T>,
    results: AttentionResults<T>,
    block: &Block,
    group: usize,
    first_key: usize,
    space: &mut Space,
) {
    let (shape, width) = (tiles.shape, tiles.shape.width);
    let multiplicity = shape.multiplicity();
    let rows = block.queries() * multiplicity;
    let query_rows = shape.query_rows(block, group);

    // The output goes where the query gradient will: only its products with the gradient are needed.
    query_rows.read(results.output, 1.0, space.query_gradient);
    query_rows.read(results.gradient, 1.0, space.gradient);
    row_products(space.gradient, space.query_gradient, |row| row * width..(row + 1) * width, &mut space.means[..rows]);
    query_rows.read(inputs.query, shape.scale(), space.query);
    let tokens = inputs.query.len() / (shape.heads * width);
    for (row, log_sum) in space.log_sums[..rows].iter_mut().enumerate() {
        let head = group * multiplicity + row % multiplicity;
        *log_sum = results.log_sums[head * tokens + block.rows.start + row / multiplicity];
    }

    for (position, tile) in block.tiles().enumerate() {
        let keys = tile.len();
        let key_rows = Rows { rows: tile.clone(), ..shape.key_rows(group) };
        key_rows.read(inputs.key, 1.0, space.key);
        key_rows.read(inputs.value, 1.0, space.value);
        let [query, gradient] = [Matrix::new(space.query, rows, width), Matrix::new(space.gradient, rows, width)];
        let [key, value] = [Matrix::new(space.key, keys, width), Matrix::new(space.value, keys, width)];
        let (scores, products) = (&mut space.scores[..rows * keys], &mut space.products[..rows * keys]);
        multiply(query, key.transposed(), Write::Over, scores);
        multiply(gradient, value.transposed(), Write::Over, products);
        let visible = |row: usize| block.visible(row / multiplicity, &tile);
        differentiate_rows(scores, products, keys, visible, &space.log_sums[..rows], &space.means[..rows]);

        let [probability, score_gradient] = [Matrix::new(scores, rows, keys), Matrix::new(products, rows, keys)];
        let part = (tile.start - first_key) * width..(tile.end - first_key) * width;
        multiply(probability.transposed(), gradient, Write::Add, &mut space.value_gradient[part.clone()]);
        multiply(score_gradient.transposed(), query, Write::Add, &mut space.key_gradient[part]);
        let write = if position == 0 { Write::Over } else { Write::Add };
        multiply(score_gradient, key, write, space.query_gradient);
    }
}
