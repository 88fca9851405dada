//! Products of small dense matrices on one thread, by the BLAS that libtorch brings along.

use std::ffi::{c_char, c_int};

unsafe extern "C" {
    /// C = alpha A B + beta C, column by column.
    ///
    /// Source: the reference BLAS, `sgemm`; libtorch_cpu.so 2.11.0 exports MKL's, with integers of 32 bits. MKL keeps to the calling thread
    /// inside a loop on libtorch's threads.
    fn sgemm_(
        transpose_a: *const c_char,
        transpose_b: *const c_char,
        m: *const c_int,
        n: *const c_int,
        k: *const c_int,
        alpha: *const f32,
        a: *const f32,
        stride_a: *const c_int,
        b: *const f32,
        stride_b: *const c_int,
        beta: *const f32,
        c: *mut f32,
        stride_c: *const c_int,
    );
}

/// A factor: rows of f32 end to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    is_transposed: bool,
}

/// What becomes of the values that stand where a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// They are overwritten.
    Over,
    /// The product is added to them.
    Add,
}

impl<'a> Matrix<'a> {
    /// The first `rows * columns` values.
    ///
    /// # Panics
    /// When there are fewer.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { values: &values[..rows * columns], rows, columns, is_transposed: false }
    }

    /// The same values, read as the transposed matrix.
    pub(super) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, is_transposed: !self.is_transposed, ..self }
    }

    /// Values from the start of one stored row to the next.
    fn stride(&self) -> c_int {
        size(if self.is_transposed { self.rows } else { self.columns })
    }

    fn flag(&self) -> c_char {
        // ASCII in either signedness of C's char.
        if self.is_transposed { b'T' as c_char } else { b'N' as c_char }
    }
}

/// Writes `left right` to the first values of `product`, in rows.
///
/// # Panics
/// When the matrices do not fit each other or `product`: the caller's mistake.
pub(super) fn multiply(left: Matrix, right: Matrix, write: Write, product: &mut [f32]) {
    let (rows, columns, inner) = (left.rows, right.columns, left.columns);
    assert_eq!(inner, right.rows, "columns of the left matrix and rows of the right");
    assert!(product.len() >= rows * columns, "{} values for a product of {rows} x {columns}", product.len());
    if rows == 0 || columns == 0 {
        return;
    }
    let beta = if write == Write::Add { 1.0 } else { 0.0 };
    // Rows of a matrix are columns of its transpose, and (A B)' = B' A'.
    // SAFETY: `Matrix::new` holds as many values as the sizes say, and the assertion above does so for the product, which is borrowed
    // exclusively. Strides are at least 1 and no smaller than a stored row.
    unsafe {
        sgemm_(
            &right.flag(),
            &left.flag(),
            &size(columns),
            &size(rows),
            &size(inner),
            &1.0,
            right.values.as_ptr(),
            &right.stride().max(1),
            left.values.as_ptr(),
            &left.stride().max(1),
            &beta,
            product.as_mut_ptr(),
            &size(columns),
        );
    }
}

/// A size as BLAS takes it.
///
/// # Panics
/// When it exceeds 2^31: tiles are far smaller.
fn size(size: usize) -> c_int {
    c_int::try_from(size).expect("the size of a tile")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: usize, count: usize) -> Vec<f32> {
        #[expect(clippy::cast_precision_loss, reason = "a test value")]
        let value = |index: usize| ((index * 7919 + seed * 104_729) % 31) as f32 - 15.0;
        (0..count).map(value).collect()
    }

    #[test]
    fn products_are_those_of_the_definition_whichever_factor_is_transposed() {
        let (rows, inner, columns) = (5, 3, 7);
        let (left, right, before) = (values(1, rows * inner), values(2, inner * columns), values(3, rows * columns));
        for (left_transposed, right_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
            let at_left = |i: usize, l: usize| if left_transposed { left[l * rows + i] } else { left[i * inner + l] };
            let at_right = |l: usize, j: usize| if right_transposed { right[j * inner + l] } else { right[l * columns + j] };
            let matrix = |values, rows, columns, is_transposed| {
                if is_transposed { Matrix::new(values, columns, rows).transposed() } else { Matrix::new(values, rows, columns) }
            };
            let (a, b) = (matrix(&left, rows, inner, left_transposed), matrix(&right, inner, columns, right_transposed));
            for write in [Write::Over, Write::Add] {
                let mut product = before.clone();
                multiply(a, b, write, &mut product);
                for (index, &found) in product.iter().enumerate() {
                    let sum: f32 = (0..inner).map(|l| at_left(index / columns, l) * at_right(l, index % columns)).sum();
                    // Small integers: exact.
                    assert_eq!(found, sum + if write == Write::Add { before[index] } else { 0.0 });
                }
            }
        }
    }

    #[test]
    fn nothing_times_nothing_writes_nothing() {
        let mut product = [1.0, 2.0];
        multiply(Matrix::new(&[], 0, 3), Matrix::new(&[0.0; 6], 3, 2), Write::Over, &mut product);
        multiply(Matrix::new(&[], 1, 0), Matrix::new(&[], 0, 2), Write::Add, &mut product);
        assert_eq!(product, [1.0, 2.0]);
    }
}
