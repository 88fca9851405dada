//! Columns of a matrix as rows: plain experts lie [in, out], and GGUF has them [out, in].

use bytemuck::Pod;

/// Rows and columns that are turned at a time, within registers and the fastest cache.
const TILE: usize = 8;

/// Writes columns `first..first + rows.len() / inputs` of a matrix with `outputs` columns, each as a row of `inputs` values.
///
/// # Shapes
/// `matrix` is [in, out]; `rows` [columns, in].
pub(super) fn columns_as_rows<T: Pod>(matrix: &[T], outputs: usize, first: usize, inputs: usize, rows: &mut [T]) {
    let columns = rows.len() / inputs;
    let whole = (columns / TILE * TILE, inputs / TILE * TILE);
    for input in (0..whole.1).step_by(TILE) {
        for column in (0..whole.0).step_by(TILE) {
            let mut tile = [[T::zeroed(); TILE]; TILE];
            for (offset, values) in tile.iter_mut().enumerate() {
                let start = (input + offset) * outputs + first + column;
                values.copy_from_slice(&matrix[start..start + TILE]);
            }
            let turned = turn(&tile);
            for (offset, values) in turned.iter().enumerate() {
                let start = (column + offset) * inputs + input;
                rows[start..start + TILE].copy_from_slice(values);
            }
        }
    }
    // What makes no whole tile, at the right and at the bottom.
    for column in 0..columns {
        let begin = if column < whole.0 { whole.1 } else { 0 };
        for input in begin..inputs {
            rows[column * inputs + input] = matrix[input * outputs + first + column];
        }
    }
}

#[inline(always)]
fn turn<T: Pod>(tile: &[[T; TILE]; TILE]) -> [[T; TILE]; TILE] {
    let mut turned = [[T::zeroed(); TILE]; TILE];
    for (row, values) in tile.iter().enumerate() {
        for (column, value) in values.iter().enumerate() {
            turned[column][row] = *value;
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_is_where_it_belongs(inputs in 1..40_usize, outputs in 1..40_usize, first: prop::sample::Index, count: prop::sample::Index) {
            let matrix: Vec<u16> = (0..inputs * outputs).map(|index| index as u16).collect();
            let first = first.index(outputs);
            let columns = count.index(outputs - first) + 1;
            let mut rows = vec![0; columns * inputs];
            columns_as_rows(&matrix, outputs, first, inputs, &mut rows);
            for column in 0..columns {
                for input in 0..inputs {
                    prop_assert_eq!(usize::from(rows[column * inputs + input]), input * outputs + first + column);
                }
            }
        }
    }
}
