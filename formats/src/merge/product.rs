//! The update of a weight, `scaling * B A`, added to it row by row.
//!
//! Every element is a sum over the rank in its order, in f32 and without fused operations, so that it depends neither on the number of
//! threads nor on the instructions that the processor has.
//!
//! Letters: m rows, n columns, r rank.

use ft_quant::Float;
use rayon::prelude::*;

use crate::peft::AdapterPair;

/// Columns that are worked on together.
const PANEL: usize = 32;

/// Elements of the result that a thread works on at a time: they stay in its cache until the weight is added.
const CHUNK_ELEMENTS: usize = 1 << 16;

/// Rows of a chunk are a multiple of it.
const ROWS: usize = 8;

/// A product of rank r, with its factor.
#[derive(Debug)]
pub(super) struct LowRank {
    rank: usize,
    columns: usize,
    scaling: f32,
    /// [m, r].
    left: Vec<f32>,
    /// [r, n] in panels of columns, the last one filled up with zeros: [n / 32, r, 32].
    right: Vec<[f32; PANEL]>,
}

/// What adding a product did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Added {
    /// The product is not zero everywhere.
    pub(super) is_changed: bool,
    /// Every sum is a finite number.
    pub(super) is_finite: bool,
}

impl LowRank {
    /// The update of a weight [out, in] that is not of the experts, or of an expert's packed matrix; nothing where it is zero.
    ///
    /// `expert` is 0 for the former.
    pub(super) fn output_rows(pair: &AdapterPair, expert: usize) -> Option<Self> {
        let Factors { a, b, input, output, rank } = Factors::of(pair, expert)?;
        debug_assert_eq!((a.len(), b.len()), (rank * input, output * rank));
        Some(Self::new(pair.scaling, rank, b.to_vec(), input, |row, column| a[row * input + column]))
    }

    /// The update of an expert's plain matrix [in, out]; nothing where it is zero.
    pub(super) fn input_rows(pair: &AdapterPair, expert: usize) -> Option<Self> {
        let Factors { a, b, input, output, rank } = Factors::of(pair, expert)?;
        let left = (0..input).flat_map(|row| (0..rank).map(move |r| a[r * input + row])).collect();
        Some(Self::new(pair.scaling, rank, left, output, |row, column| b[column * rank + row]))
    }

    fn new(scaling: f64, rank: usize, left: Vec<f32>, columns: usize, right: impl Fn(usize, usize) -> f32) -> Self {
        let element = |row: usize, column: usize| if column < columns { right(row, column) } else { 0.0 };
        let panel = |first: usize| (0..rank).map(move |row| (first, row));
        let panels = (0..columns).step_by(PANEL).flat_map(panel);
        let right = panels.map(|(first, row)| std::array::from_fn(|lane| element(row, first + lane))).collect();
        // As torch multiplies by a number of Python's.
        #[expect(clippy::cast_possible_truncation, reason = "what exceeds f32 becomes infinite, and is refused with the first sum")]
        let scaling = scaling as f32;
        Self { rank, columns, scaling, left, right }
    }

    /// Puts `values` plus the rows of the product from `first_row` on into `sums`, with the threads of the current rayon pool. Where the
    /// product is zero the value stays what it is, a negative zero too.
    ///
    /// # Shapes
    /// `values` and `sums` have the same number of whole rows of n.
    pub(super) fn add<T: Float>(&self, first_row: usize, values: &[T], sums: &mut [f32]) -> Added {
        let chunk_rows = (CHUNK_ELEMENTS / self.columns).next_multiple_of(ROWS).max(ROWS);
        let left = &self.left[first_row * self.rank..][..sums.len() / self.columns * self.rank];
        let chunk = chunk_rows * self.columns;
        let chunks = sums.par_chunks_mut(chunk).zip(values.par_chunks(chunk)).zip(left.par_chunks(chunk_rows * self.rank));
        let added = chunks.map(|((sums, values), left)| {
            let factored = Factored { left, right: &self.right, rank: self.rank, columns: self.columns, scaling: self.scaling };
            multiply_and_add(&factored, values, sums)
        });
        added.reduce(
            || Added { is_changed: false, is_finite: true },
            |one, other| Added { is_changed: one.is_changed | other.is_changed, is_finite: one.is_finite & other.is_finite },
        )
    }
}

/// The two matrices of a pair, of one expert where there are several.
struct Factors<'a> {
    /// [r, in].
    a: &'a [f32],
    /// [out, r].
    b: &'a [f32],
    input: usize,
    output: usize,
    rank: usize,
}

impl<'a> Factors<'a> {
    /// Nothing where their product is zero.
    fn of(pair: &'a AdapterPair, expert: usize) -> Option<Self> {
        let (input, output) = (*pair.a_shape.last()?, *pair.b_shape.iter().nth_back(1)?);
        let part = |values: &'a [f32], length: usize| &values[expert * length..(expert + 1) * length];
        let (a, b) = (part(&pair.a, pair.rank * input), part(&pair.b, output * pair.rank));
        let is_zero = |values: &[f32]| values.iter().all(|&value| value == 0.0);
        let is_nothing = pair.scaling == 0.0 || is_zero(a) || is_zero(b);
        (!is_nothing).then_some(Self { a, b, input, output, rank: pair.rank })
    }
}

#[inline(always)]
fn add_values<T: Float>(values: &[T], sums: &mut [f32]) -> Added {
    // Without a branch for each element.
    let (mut changed, mut not_finite) = (0u32, 0u32);
    for (sum, value) in sums.iter_mut().zip(values) {
        let (update, value) = (*sum, value.to_f32());
        let is_changed = update != 0.0;
        *sum = if is_changed { value + update } else { value };
        changed |= u32::from(is_changed);
        not_finite |= u32::from(!sum.is_finite());
    }
    Added { is_changed: changed != 0, is_finite: not_finite == 0 }
}

/// Some rows of the left matrix with the whole of the right one.
struct Factored<'a> {
    left: &'a [f32],
    right: &'a [[f32; PANEL]],
    rank: usize,
    columns: usize,
    scaling: f32,
}

/// The rows of the product with `values` added. Every set of instructions gives the same bits.
fn multiply_and_add<T: Float>(factored: &Factored<'_>, values: &[T], sums: &mut [f32]) -> Added {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")]
        fn avx512<T: Float>(factored: &Factored<'_>, values: &[T], sums: &mut [f32]) -> Added {
            kernel::<ROWS, T>(factored, values, sums)
        }
        #[target_feature(enable = "avx2,f16c")]
        fn avx2<T: Float>(factored: &Factored<'_>, values: &[T], sums: &mut [f32]) -> Added {
            kernel::<2, T>(factored, values, sums)
        }
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if has_avx2 && has_avx512 {
            // SAFETY: this processor has these instructions.
            return unsafe { avx512(factored, values, sums) };
        }
        if has_avx2 {
            // SAFETY: as above.
            return unsafe { avx2(factored, values, sums) };
        }
    }
    kernel::<1, T>(factored, values, sums)
}

#[inline(always)]
fn kernel<const M: usize, T: Float>(factored: &Factored<'_>, values: &[T], sums: &mut [f32]) -> Added {
    multiply::<M>(factored, sums);
    add_values(values, sums)
}

/// `M` rows by a panel of columns at a time, whose sums the registers of a level can hold.
#[inline(always)]
fn multiply<const M: usize>(factored: &Factored<'_>, out: &mut [f32]) {
    let &Factored { left, right, rank, columns, scaling } = factored;
    for (panel, first) in right.chunks_exact(rank).zip((0..columns).step_by(PANEL)) {
        let width = PANEL.min(columns - first);
        let rows = left.len() / rank;
        let mut row = 0;
        while row + M <= rows {
            let sums = panel_sums::<M>(&left[row * rank..(row + M) * rank], panel, rank);
            for (index, sums) in sums.iter().enumerate() {
                put(sums, scaling, &mut out[(row + index) * columns + first..][..width]);
            }
            row += M;
        }
        for row in row..rows {
            let [sums] = panel_sums::<1>(&left[row * rank..(row + 1) * rank], panel, rank);
            put(&sums, scaling, &mut out[row * columns + first..][..width]);
        }
    }
}

#[inline(always)]
fn panel_sums<const M: usize>(left: &[f32], panel: &[[f32; PANEL]], rank: usize) -> [[f32; PANEL]; M] {
    let mut sums = [[0.0; PANEL]; M];
    for (step, right) in panel.iter().enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            let factor = left[row * rank + step];
            for lane in 0..PANEL {
                sums[lane] += factor * right[lane];
            }
        }
    }
    sums
}

#[inline(always)]
fn put(sums: &[f32; PANEL], scaling: f32, out: &mut [f32]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = sum * scaling;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Projection;
    use crate::peft::AdapterTarget;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 16_777_216.0 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    fn pair(experts: usize, rank: usize, input: usize, output: usize) -> AdapterPair {
        AdapterPair {
            target: AdapterTarget::Experts { layer: 0, projection: Projection::GateUp },
            rank,
            scaling: 0.7,
            a: numbers(experts * rank * input, 1),
            a_shape: vec![experts, rank, input],
            b: numbers(experts * output * rank, 2),
            b_shape: vec![experts, output, rank],
        }
    }

    /// By the definition: of expert `expert`, output `o`, input `i`.
    fn update(pair: &AdapterPair, expert: usize, o: usize, i: usize) -> f32 {
        let (rank, input, output) = (pair.rank, pair.a_shape[2], pair.b_shape[1]);
        let mut sum = 0.0f32;
        for r in 0..rank {
            sum += pair.b[(expert * output + o) * rank + r] * pair.a[(expert * rank + r) * input + i];
        }
        sum * pair.scaling as f32
    }

    #[test]
    fn both_orders_are_the_definition_bit_for_bit() {
        for (rank, input, output) in [(1, 1, 1), (3, 33, 5), (16, 70, 129), (5, 31, 97), (4, 64, 8)] {
            let pair = pair(3, rank, input, output);
            let weights = numbers(input * output, 3);
            for expert in [0, 2] {
                let (mut by_output, mut by_input) = (vec![f32::NAN; input * output], vec![f32::NAN; input * output]);
                let added = LowRank::output_rows(&pair, expert).unwrap().add(0, &weights, &mut by_output);
                assert_eq!(added, Added { is_changed: true, is_finite: true });
                LowRank::input_rows(&pair, expert).unwrap().add(0, &weights, &mut by_input);
                for o in 0..output {
                    for i in 0..input {
                        let update = update(&pair, expert, o, i);
                        assert_eq!(by_output[o * input + i].to_bits(), (weights[o * input + i] + update).to_bits());
                        assert_eq!(by_input[i * output + o].to_bits(), (weights[i * output + o] + update).to_bits());
                    }
                }
            }
        }
    }

    #[test]
    fn every_kernel_gives_the_same_bits() {
        let pair = pair(1, 7, 75, 19);
        let low = LowRank::output_rows(&pair, 0).unwrap();
        let factored = Factored { left: &low.left, right: &low.right, rank: 7, columns: 75, scaling: low.scaling };
        let weights = numbers(19 * 75, 9);
        let of = |kernel: fn(&Factored<'_>, &[f32], &mut [f32]) -> Added| {
            let mut sums = vec![f32::NAN; 19 * 75];
            assert!(kernel(&factored, &weights, &mut sums).is_changed);
            sums.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let expected = of(kernel::<1, f32>);
        assert!(of(kernel::<2, f32>) == expected && of(kernel::<ROWS, f32>) == expected && of(multiply_and_add) == expected);
    }

    #[test]
    fn neither_pieces_nor_threads_change_the_sums() {
        let pair = pair(1, 16, 4000, 50);
        let low = LowRank::output_rows(&pair, 0).unwrap();
        let weights = numbers(4000 * 50, 5);
        let sums = |threads: usize, rows: usize| {
            let mut sums = vec![0.0; weights.len()];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let pieces = sums.chunks_mut(rows * 4000).zip(weights.chunks(rows * 4000)).enumerate();
            pool.install(|| pieces.for_each(|(piece, (sums, weights))| assert!(low.add(piece * rows, weights, sums).is_finite)));
            sums.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let expected = sums(1, 50);
        assert!(sums(3, 50) == expected && sums(2, 7) == expected && sums(2, 1) == expected);
    }

    #[test]
    fn what_is_not_updated_keeps_its_sign() {
        let mut pair = pair(2, 2, 4, 3);
        // Only the second output of the second expert.
        pair.b.fill(0.0);
        pair.b[(3 + 1) * 2] = 1.0;
        pair.a[2 * 4..].copy_from_slice(&[0.0, -0.0, 5.0, -5.0, 1.0, 1.0, 1.0, 1.0]);
        assert!(LowRank::output_rows(&pair, 0).is_none());
        let weights = [-0.0f32; 12];
        let mut sums = [1.0; 12];
        let added = LowRank::output_rows(&pair, 1).unwrap().add(0, &weights, &mut sums);
        assert_eq!(added, Added { is_changed: true, is_finite: true });
        let expected = [-0.0, -0.0, -0.0, -0.0, -0.0, -0.0, 3.5, -3.5, -0.0, -0.0, -0.0, -0.0];
        assert_eq!(sums.map(f32::to_bits), expected.map(f32::to_bits));
        pair.scaling = 0.0;
        assert!(LowRank::input_rows(&pair, 1).is_none());
    }

    #[test]
    fn sums_beyond_f32_are_told() {
        let mut pair = pair(1, 2, 4, 3);
        pair.a.fill(3e38);
        pair.b.fill(1.0);
        let mut sums = [0.0; 12];
        assert!(!LowRank::output_rows(&pair, 0).unwrap().add(0, &[0.0f32; 12], &mut sums).is_finite);
        // The update is no number where the one infinity meets the other.
        pair.b[1] = -1.0;
        (pair.a[0], pair.a[4]) = (f32::MAX, f32::MAX);
        pair.scaling = 1e300;
        assert!(!LowRank::output_rows(&pair, 0).unwrap().add(0, &[0.0f32; 12], &mut sums).is_finite);
    }
}
