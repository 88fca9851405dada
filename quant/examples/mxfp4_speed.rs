//! Throughput of the MXFP4 codec and of a plain copy of the same bytes, in one run, alternating: one JSON object on stdout.
//!
//! `RAYON_NUM_THREADS=1` gives the figures of one core. The matrix is a gate-and-up projection of gpt-oss-20b, 2880 inputs and 5760 outputs,
//! as often as `--experts` says.

use std::collections::BTreeMap;
use std::time::Instant;

use ft_quant::Float;
use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS, ScaleRule, pack, pack_transposed, unpack, unpack_transposed};
use half::bf16;

const INPUTS: usize = 2880;
const OUTPUTS: usize = 5760;
const ROUNDS: usize = 7;

#[expect(clippy::print_stdout, reason = "this program's result")]
fn main() {
    let experts = std::env::args().nth(1).map_or(4, |count| count.parse().expect("a number of experts"));
    let elements = experts * INPUTS * OUTPUTS;
    let mut state = 1u64;
    let values: Vec<bf16> = (0..elements).map(|_| bf16::from_f32(weight(&mut state))).collect();
    let singles: Vec<f32> = (0..elements).map(|_| weight(&mut state)).collect();
    let mut blocks = vec![1; elements / BLOCK_ELEMENTS * BLOCK_BYTES];
    let mut scales = vec![1; elements / BLOCK_ELEMENTS];
    // Large allocations begin 16 bytes into a page; writing past the caches takes a whole line.
    let mut storage = vec![bf16::ONE; elements + 32];
    let start = storage.as_ptr().align_offset(64);
    let out = &mut storage[start..start + elements];
    let (from, mut to) = (vec![1u8; elements * 81 / 64], vec![2u8; elements * 81 / 64]);

    pack(&values, ScaleRule::Even.into(), None, &mut blocks, &mut scales).expect("finite weights");
    let hints = scales.clone();
    let mut seconds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut time = |name, work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            seconds.entry(name).or_default().push(start.elapsed().as_secs_f64());
        };
        // Read and written together, this moves what a conversion moves: 2 bytes and 17/32 of one an element.
        time("copy", &mut || to.copy_from_slice(&from));
        time("unpack", &mut || unpack(&blocks, &scales, out).expect("valid blocks"));
        time("unpack_transposed", &mut || {
            for ((blocks, scales), out) in each(&blocks, experts).zip(each(&scales, experts)).zip(out.chunks_exact_mut(INPUTS * OUTPUTS)) {
                unpack_transposed(blocks, scales, OUTPUTS, out).expect("valid blocks");
            }
        });
        let mut pack_both = |rows, columns, rule: ScaleRule| {
            time(rows, &mut || pack(&values, rule.into(), Some(&hints), &mut blocks, &mut scales).expect("finite weights"));
            time(columns, &mut || pack_columns(&values, experts, rule, &hints, &mut blocks, &mut scales));
        };
        pack_both("pack_even", "pack_transposed_even", ScaleRule::Even);
        pack_both("pack_hint", "pack_transposed_hint", ScaleRule::Hint);
        pack_both("pack_mse", "pack_transposed_mse", ScaleRule::Mse);
        let hint = ScaleRule::Hint;
        time("pack_f32_hint", &mut || pack(&singles, hint.into(), Some(&hints), &mut blocks, &mut scales).expect("finite weights"));
        time("pack_transposed_f32_hint", &mut || pack_columns(&singles, experts, hint, &hints, &mut blocks, &mut scales));
    }
    let figures = seconds.into_iter().map(|(name, mut seconds)| {
        seconds.sort_by(f64::total_cmp);
        format!("\"{name}\": {:.3}", elements as f64 / seconds[ROUNDS / 2] / 1e9)
    });
    println!("{{\"unit\": \"1e9 elements/s\", {}}}", figures.collect::<Vec<_>>().join(", "));
}

fn pack_columns<T: Float>(values: &[T], experts: usize, rule: ScaleRule, hints: &[u8], blocks: &mut [u8], scales: &mut [u8]) {
    let packed = blocks.chunks_exact_mut(INPUTS * OUTPUTS / 2).zip(scales.chunks_exact_mut(INPUTS * OUTPUTS / BLOCK_ELEMENTS));
    for ((values, hints), (blocks, scales)) in each(values, experts).zip(each(hints, experts)).zip(packed) {
        pack_transposed(values, OUTPUTS, rule.into(), Some(hints), blocks, scales).expect("finite weights");
    }
}

fn each<T>(values: &[T], experts: usize) -> impl Iterator<Item = &[T]> {
    values.chunks_exact(values.len() / experts)
}

/// Roughly normal, as weights are.
fn weight(state: &mut u64) -> f32 {
    (0..4).fold(0.0, |sum, _| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        sum + (*state >> 40) as f32 / 16_777_216.0 - 0.5
    }) * 0.03
}
