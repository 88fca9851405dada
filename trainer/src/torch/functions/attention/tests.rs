//! Every kernel against the definition in f64, and packed against unpacked.

use std::io::Write;

use tch::{Device, Kind, Tensor};

use super::blocks::Blocks;
use super::kernel::{Inputs, Kernel};
use super::tiles::Tiles;
use super::*;
use crate::torch::device;

/// The definition, with libtorch's own graph: one matrix of scores, the sink as a column that is dropped after the softmax.
fn reference(inputs: &[Tensor; 4], spans: &[AttentionSpan], window: Option<i64>) -> Tensor {
    let [query, key, value, sinks] = inputs;
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
    let hidden = Tensor::from_slice(&visible).view([tokens, keys]).logical_not().to_device(query.device());
    let repeat = heads / key.size()[1];
    let key = key.repeat_interleave_self_int(repeat, 1, None);
    let value = value.repeat_interleave_self_int(repeat, 1, None);
    let scores = Tensor::einsum("qhk,nhk->hqn", &[query, &key], None::<i64>) / f64::from(i32::try_from(width).unwrap()).sqrt();
    let scores = scores.masked_fill(&hidden, f64::NEG_INFINITY);
    let column = sinks.view([heads, 1, 1]).expand([heads, tokens, 1], false);
    let probability = Tensor::cat(&[scores, column], -1).softmax(-1, None::<Kind>).narrow(-1, 0, keys);
    Tensor::einsum("hqn,nhk->qhk", &[probability, value], None::<i64>)
}

/// Heads of a model.
#[derive(Debug, Clone, Copy)]
struct Heads {
    heads: i64,
    groups: i64,
    width: i64,
}

/// Six query heads, of which three share a key head; heads times width is no power of two.
const ODD: Heads = Heads { heads: 6, groups: 2, width: 5 };

fn random(spans: &[AttentionSpan], shape: Heads) -> [Tensor; 4] {
    tch::manual_seed(7);
    let (tokens, keys) = spans.last().map_or((0, 0), |span| (span.queries.end, span.keys.end));
    let Heads { heads, groups, width } = shape;
    // Numbers of f32, so that all kernels start from the same ones.
    [vec![tokens, heads, width], vec![keys, groups, width], vec![keys, groups, width], vec![heads]]
        .map(|shape| Tensor::randn(&shape[..], (Kind::Float, Device::Cpu)).to_kind(Kind::Double))
}

/// Output and the four gradients, in f64 on the CPU.
fn results(inputs: &[Tensor; 4], kind: Kind, device: Device, attend: impl Fn(&[Tensor; 4]) -> Tensor) -> Vec<Tensor> {
    let leaves = inputs.each_ref().map(|input| input.to_device(device).to_kind(kind).detach().set_requires_grad(true));
    let output = attend(&leaves);
    let count = output.numel() as i64;
    let direction = Tensor::arange(count, (Kind::Double, device)).remainder(17.0).view(&output.size()[..]) / 8.0 - 1.0;
    (output.to_kind(Kind::Double) * direction).sum(None::<Kind>).backward();
    let gradients = leaves.iter().map(Tensor::grad);
    std::iter::once(output.detach()).chain(gradients).map(|tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double)).collect()
}

/// The largest difference of output and gradients, each over the largest number that was expected, or 1. One tolerance for the output, and
/// one for the gradients, which in f32 are sums of more terms, over queries and heads.
fn assert_near(found: &[Tensor], expected: &[Tensor], tolerances: [f64; 2], what: &str) {
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.size(), expected.size(), "{what}");
        if expected.numel() == 0 {
            continue;
        }
        let size = expected.abs().max().double_value(&[]).max(1.0);
        let difference = (found - expected).abs().max().double_value(&[]) / size;
        let name = ["output", "query gradient", "key gradient", "value gradient", "sink gradient"][index];
        assert!(difference < tolerances[index.min(1)], "{what}: {name} off by {difference}");
    }
}

fn by(kernel: &'static dyn Kernel, spans: &[AttentionSpan], window: Option<i64>) -> impl Fn(&[Tensor; 4]) -> Tensor {
    move |[query, key, value, sinks]| {
        let (output, saved) = without_graph(|| {
            let inputs = Inputs::new(query, key, value, spans, window)?;
            SinkAttention::forward(kernel, inputs, sinks)
        })
        .unwrap();
        attach(saved, &[query, key, value, sinks], vec![output]).unwrap().remove(0)
    }
}

/// Our kernels against the definition: tiles in f32, operators in f64 and f32.
fn compare(spans: &[AttentionSpan], window: Option<i64>, shape: Heads) {
    let inputs = random(spans, shape);
    let expected = results(&inputs, Kind::Double, Device::Cpu, |inputs| reference(inputs, spans, window));
    let kernels: [(&str, &'static dyn Kernel, Kind, [f64; 2]); 3] = [
        ("tiles", &Tiles, Kind::Float, [2e-6, 8e-6]),
        ("blocks", &Blocks, Kind::Float, [2e-6, 8e-6]),
        ("blocks", &Blocks, Kind::Double, [1e-12; 2]),
    ];
    for (name, kernel, kind, tolerances) in kernels {
        let found = results(&inputs, kind, Device::Cpu, by(kernel, spans, window));
        assert_near(&found, &expected, tolerances, &format!("{name} in {kind:?}, {shape:?}, window {window:?}"));
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
    compare(&packed(&[37]), None, ODD);
    compare(&packed(&[1]), None, ODD);
}

#[test]
fn a_window_counts_the_token_itself() {
    for window in [1, 2, 5, 8, 128] {
        compare(&packed(&[37]), Some(window), ODD);
    }
}

#[test]
fn packed_samples_do_not_see_each_other() {
    for window in [None, Some(1), Some(4), Some(128)] {
        compare(&packed(&[13, 1, 36]), window, ODD);
        compare(&packed(&[1, 1, 1, 2, 150, 1, 3]), window, ODD);
    }
    compare(&packed(&[3; 70]), None, ODD);
}

#[test]
fn every_count_of_heads_to_a_key_head_and_every_width() {
    for (heads, groups) in [(3, 3), (6, 3), (8, 1), (16, 2), (7, 1), (300, 1)] {
        for width in [1, 8, 16, 64] {
            let shape = Heads { heads, groups, width };
            compare(&packed(&[19, 70]), None, shape);
            compare(&packed(&[19, 70]), Some(5), shape);
        }
    }
}

#[test]
fn sequences_longer_than_blocks_and_tiles_are_joined_without_seams() {
    for window in [None, Some(100), Some(128), Some(600)] {
        compare(&packed(&[1033]), window, ODD);
        compare(&packed(&[521, 40]), window, Heads { heads: 1, groups: 1, width: 8 });
    }
}

#[test]
fn queries_after_a_cache_are_the_newest_keys() {
    let after = |queries: i64, keys: i64| [AttentionSpan { queries: 0..queries, keys: 0..keys }];
    for window in [None, Some(1), Some(6)] {
        compare(&after(3, 20), window, ODD);
        compare(&after(1, 20), window, ODD);
        compare(&after(70, 700), window, ODD);
    }
    let two = [AttentionSpan { queries: 0..2, keys: 0..9 }, AttentionSpan { queries: 2..3, keys: 9..30 }];
    compare(&two, None, ODD);
    // Keys without a query, and a span of nothing.
    let some = [
        AttentionSpan { queries: 0..0, keys: 0..4 },
        AttentionSpan { queries: 0..3, keys: 4..9 },
        AttentionSpan { queries: 3..3, keys: 9..9 },
    ];
    compare(&some, Some(2), ODD);
}

#[test]
fn packed_samples_are_what_they_are_alone() {
    let lengths = [200, 1, 33, 700];
    let spans = packed(&lengths);
    let inputs = random(&spans, ODD).map(|input| input.to_kind(Kind::Float));
    for window in [None, Some(16)] {
        let together = results(&inputs, Kind::Float, Device::Cpu, by(&Tiles, &spans, window));
        let mut sinks = Tensor::zeros([6], (Kind::Double, Device::Cpu));
        for span in &spans {
            let (first, length) = (span.keys.start, span.keys.end - span.keys.start);
            let rows = |tensor: &Tensor| tensor.narrow(0, first, length);
            let alone = [rows(&inputs[0]), rows(&inputs[1]), rows(&inputs[2]), inputs[3].shallow_clone()];
            let leaves = alone.map(|input| input.detach().set_requires_grad(true));
            let output = by(&Tiles, &packed(&[length]), window)(&leaves);
            let count = together[0].numel() as i64;
            let direction = Tensor::arange(count, (Kind::Double, Device::Cpu)).remainder(17.0).view(&together[0].size()[..]) / 8.0 - 1.0;
            (output.to_kind(Kind::Double) * rows(&direction)).sum(None::<Kind>).backward();
            let expected = [&output, &leaves[0].grad(), &leaves[1].grad(), &leaves[2].grad()].map(|part| part.to_kind(Kind::Double));
            let found: Vec<Tensor> = together[..4].iter().map(rows).collect();
            assert_near(&found, &expected, [1e-5; 2], "packed");
            sinks += leaves[3].grad().to_kind(Kind::Double);
        }
        assert_near(&[together[4].shallow_clone()], &[sinks], [1e-5; 2], "sinks of all samples");
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let spans = packed(&[200, 1, 333, 64]);
    let inputs = random(&spans, ODD);
    let threads = tch::get_num_threads();
    let run = || results(&inputs, Kind::Float, Device::Cpu, by(&Tiles, &spans, None));
    let many = run();
    tch::set_num_threads(1);
    let one = run();
    tch::set_num_threads(threads);
    assert!(many.iter().zip(&one).all(|(many, one)| many.equal(one)));
}

#[test]
fn bf16_is_within_its_rounding() {
    for (spans, window) in [(packed(&[70, 1, 129]), None), (packed(&[70, 1, 129]), Some(5))] {
        let inputs = random(&spans, ODD).map(|input| input.to_kind(Kind::BFloat16).to_kind(Kind::Double));
        let expected = results(&inputs, Kind::Double, Device::Cpu, |inputs| reference(inputs, &spans, window));
        // 8 bits of fraction: outputs are rounded twice, gradients once more by D.
        for kernel in [&Tiles as &'static dyn Kernel, &Blocks] {
            let found = results(&inputs, Kind::BFloat16, Device::Cpu, by(kernel, &spans, window));
            assert_near(&found, &expected, [1.5e-2; 2], "bf16");
        }
        let found = results(&inputs, Kind::Half, Device::Cpu, by(&Blocks, &spans, window));
        assert_near(&found, &expected, [2e-3; 2], "f16");
    }
}

#[test]
fn sinks_alone_may_want_a_gradient() {
    let spans = packed(&[9]);
    let [query, key, value, sinks] = random(&spans, ODD);
    let sinks = sinks.set_requires_grad(true);
    sink_attention(&query, &key, &value, &sinks, &spans, None).unwrap().sum(None::<Kind>).backward();
    let expected = sinks.grad().copy();
    let query = query.set_requires_grad(true);
    let _ = sinks.grad().zero_();
    sink_attention(&query, &key, &value, &sinks, &spans, None).unwrap().sum(None::<Kind>).backward();
    assert!(sinks.grad().equal(&expected) && expected.abs().min().double_value(&[]) > 0.0);
}

#[test]
fn sink_logit_takes_probability_mass() {
    let one = Tensor::ones([1, 1, 2], (Kind::Float, Device::Cpu));
    let sinks = Tensor::from_slice(&[std::f32::consts::FRAC_1_SQRT_2 * 2.0]);
    let output = sink_attention(&one, &one, &one, &sinks, &packed(&[1]), None).unwrap();
    // The only key has the logit 2 / sqrt(2), as has the sink: half of the probability each.
    assert!((output.double_value(&[0, 0, 0]) - 0.5).abs() < 1e-6);
}

#[test]
fn a_value_that_is_no_number_reaches_the_output() {
    for place in 0..3 {
        let spans = packed(&[40, 40]);
        let inputs = random(&spans, ODD).map(|input| input.to_kind(Kind::Float));
        let _ = inputs[place].get(3).fill_(f64::NAN);
        let [query, key, value, sinks] = &inputs;
        let output = sink_attention(query, key, value, sinks, &spans, None).unwrap();
        assert!(output.get(3).isnan().any().int64_value(&[]) == 1);
        assert!(output.narrow(0, 40, 40).isnan().any().int64_value(&[]) == 0);
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let tensor = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let (query, key, sinks, spans) = (tensor(&[4, 6, 5]), tensor(&[4, 2, 5]), tensor(&[6]), packed(&[4]));
    let attend = |query: &Tensor, key: &Tensor, value: &Tensor, sinks: &Tensor| sink_attention(query, key, value, sinks, &spans, None);
    let wrong = |result: Result<Tensor>| match result {
        Err(Error::Shape { tensor, .. }) => tensor,
        other => panic!("{other:?}"),
    };
    let _ = attend(&query, &key, &key, &sinks).unwrap();
    assert_eq!(wrong(attend(&tensor(&[4, 30]), &key, &key, &sinks)), "query");
    assert_eq!(wrong(attend(&query, &tensor(&[4, 4, 5]), &key, &sinks)), "key");
    assert_eq!(wrong(attend(&query, &tensor(&[4, 2, 3]), &key, &sinks)), "key");
    assert_eq!(wrong(attend(&query, &key, &tensor(&[3, 2, 5]), &sinks)), "value");
    assert_eq!(wrong(attend(&query, &key, &key.to_kind(Kind::Double), &sinks)), "value");
    assert_eq!(wrong(attend(&query, &key, &key, &tensor(&[2]))), "sinks");
    let refused = sink_attention(&query, &key, &key, &sinks, &packed(&[3]), None);
    assert!(matches!(refused, Err(Error::AttentionRows { what: "queries", expected: 4, found: 3 })), "{refused:?}");
    for window in [0, -1] {
        let refused = sink_attention(&query, &key, &key, &sinks, &spans, Some(window));
        assert!(matches!(refused, Err(Error::AttentionWindow { window: found }) if found == window), "{refused:?}");
    }
}

#[test]
fn strided_inputs_and_no_tokens_are_taken() {
    let spans = packed(&[7]);
    let inputs = random(&spans, ODD);
    let strided =
        inputs.each_ref().map(|input| if input.dim() == 3 { input.transpose(0, 2).contiguous().transpose(0, 2) } else { input.copy() });
    let run = |inputs: &[Tensor; 4]| sink_attention(&inputs[0], &inputs[1], &inputs[2], &inputs[3], &spans, Some(3)).unwrap();
    assert!(run(&inputs).equal(&run(&strided)));
    for kind in [Kind::Float, Kind::Double] {
        let nothing = random(&[], ODD);
        let found =
            results(&nothing, kind, Device::Cpu, |[query, key, value, sinks]| sink_attention(query, key, value, sinks, &[], None).unwrap());
        assert_eq!(found[0].size(), [0, 6, 5]);
        assert_eq!(found[4].abs().max().double_value(&[]), 0.0);
    }
}

#[test]
fn flash_attention_agrees_with_f32_on_the_cpu_on_cuda() {
    let device = device::best();
    if device == Device::Cpu {
        writeln!(std::io::stderr(), "SKIPPED torch::functions::attention on CUDA: libtorch finds no device").unwrap();
        return;
    }
    let gpt_oss = Heads { heads: 16, groups: 2, width: 64 };
    let narrow = Heads { heads: 6, groups: 2, width: 24 };
    let cached = vec![AttentionSpan { queries: 0..5, keys: 0..300 }];
    let one = vec![AttentionSpan { queries: 0..1, keys: 0..300 }];
    let two = vec![AttentionSpan { queries: 0..1, keys: 0..90 }, AttentionSpan { queries: 1..2, keys: 90..290 }];
    let unseen = vec![AttentionSpan { queries: 0..0, keys: 0..40 }, AttentionSpan { queries: 0..30, keys: 40..300 }];
    let cases = [packed(&[1000]), packed(&[1, 200, 1, 37, 129, 520]), packed(&[1; 9]), cached, one, two, unseen];
    for shape in [gpt_oss, narrow, Heads { heads: 3, groups: 3, width: 128 }] {
        for spans in &cases {
            for window in [None, Some(1), Some(5), Some(128)] {
                let inputs = random(spans, shape).map(|input| input.to_kind(Kind::BFloat16).to_kind(Kind::Double));
                let expected = results(&inputs, Kind::Float, Device::Cpu, by(&Tiles, spans, window));
                for (kind, tolerance) in [(Kind::BFloat16, 2e-2), (Kind::Half, 4e-3), (Kind::Float, 1e-5)] {
                    let found = results(&inputs, kind, device, |[query, key, value, sinks]| {
                        sink_attention(query, key, value, sinks, spans, window).unwrap()
                    });
                    assert_near(&found, &expected, [tolerance; 2], &format!("{kind:?}, {shape:?}, {spans:?}, window {window:?}"));
                }
            }
        }
    }
    let spans = packed(&[700, 900]);
    let inputs = random(&spans, gpt_oss);
    device::set_deterministic(true);
    let run = || {
        results(&inputs, Kind::BFloat16, device, |[query, key, value, sinks]| {
            sink_attention(query, key, value, sinks, &spans, None).unwrap()
        })
    };
    let (first, second) = (run(), run());
    device::set_deterministic(false);
    assert!(first.iter().zip(&second).all(|(first, second)| first.equal(second)), "the same bits at every run");
}
