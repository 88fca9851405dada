//! Throughput of ggml's block types on one core and of a plain copy of the values, in one run, alternating: one JSON object on stdout.
//!
//! The matrix is a projection of one expert of gpt-oss-20b, 2880 by 2880.

use std::collections::BTreeMap;
use std::time::Instant;

use ft_quant::ggml::Type;
use ft_quant::ggml::relayout::{checkpoint_to_ggml, ggml_to_checkpoint};

const ELEMENTS: usize = 2880 * 2880;
const ROUNDS: usize = 7;

#[expect(clippy::print_stdout, reason = "this program's result")]
fn main() {
    let mut state = 1u64;
    let values: Vec<f32> = (0..ELEMENTS).map(|_| weight(&mut state)).collect();
    let mut out = vec![1.0f32; ELEMENTS];
    let (mut codes, mut scales) = (vec![1u8; ELEMENTS / 2], vec![1u8; ELEMENTS / 32]);
    let mut seconds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut time = |name: String, work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            seconds.entry(name).or_default().push(start.elapsed().as_secs_f64());
        };
        time("copy".into(), &mut || out.copy_from_slice(&values));
        for kind in Type::ALL {
            let mut blocks = vec![1; ELEMENTS / kind.block_elements() * kind.block_bytes()];
            time(format!("quantize {kind:?}"), &mut || kind.quantize(&values, &mut blocks).expect("finite weights"));
            time(format!("dequantize {kind:?}"), &mut || kind.dequantize(&blocks, &mut out).expect("valid blocks"));
            if kind == Type::Mxfp4 {
                time("to checkpoint".into(), &mut || ggml_to_checkpoint(&blocks, &mut codes, &mut scales).expect("valid blocks"));
                time("to ggml".into(), &mut || checkpoint_to_ggml(&codes, &scales, &mut blocks).expect("valid blocks"));
            }
        }
    }
    let figures = seconds.into_iter().map(|(name, mut seconds)| {
        seconds.sort_by(f64::total_cmp);
        format!("\"{name}\": {:.3}", ELEMENTS as f64 / seconds[ROUNDS / 2] / 1e9)
    });
    println!("{{\"unit\": \"1e9 elements/s\", {}}}", figures.collect::<Vec<_>>().join(", "));
}

/// Roughly normal, as weights are.
fn weight(state: &mut u64) -> f32 {
    (0..4).fold(0.0, |sum, _| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        sum + (*state >> 40) as f32 / 16_777_216.0 - 0.5
    }) * 0.03
}
