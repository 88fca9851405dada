//! `ft logits` against transformers' f32 logits, on every layout and on awkward shapes.

use std::path::Path;

use ft_tests::program::{ft, peer, succeed};
use ft_tests::scratch::Scratch;
use ft_tests::tensors::{self, Distance};

/// The most that a logit may differ, in standard deviations of the logits.
const BAR: f64 = 1e-4;

fn logits(case: &Path, dtype: &str) -> std::collections::BTreeMap<String, tensors::Tensor> {
    let model = ["model", "original"].map(|name| case.join(name)).into_iter().find(|path| path.is_dir());
    let model = model.unwrap_or_else(|| panic!("{} holds no model", case.display()));
    let output = case.join(format!("{dtype}.safetensors"));
    let mut command = ft(["logits", "--dtype", dtype]);
    succeed(command.arg(model).arg("--tokens").arg(case.join("tokens.json")).arg("--output").arg(&output));
    tensors::read(&output)
}

fn worst(
    found: &std::collections::BTreeMap<String, tensors::Tensor>,
    expected: &std::collections::BTreeMap<String, tensors::Tensor>,
    measure: impl Fn(Distance) -> f64,
) -> f64 {
    assert!(found.keys().eq(expected.keys()), "{:?} instead of {:?}", found.keys(), expected.keys());
    expected.iter().map(|(name, each)| measure(tensors::distance(name, &found[name], each))).fold(0.0, f64::max)
}

#[test]
fn logits_equal_those_of_transformers() {
    let scratch = Scratch::new("forward");
    let cases = scratch.join("cases");
    succeed(peer("forward.py", [&cases]).env("OMP_NUM_THREADS", "2"));
    let mut failures = Vec::new();
    for case in ["bf16_sharded", "bf16_published_spelling", "no_yarn", "mxfp4", "mxfp4_sharded", "original", "long"] {
        let case_directory = cases.join(case);
        let expected = tensors::read(&case_directory.join("expected.safetensors"));
        let found = logits(&case_directory, "f32");
        let difference = worst(&found, &expected, |distance| distance.largest_in_deviations);
        eprintln!("{case:>24}: {difference:.1e} of the logits' standard deviation");
        if difference > BAR {
            failures.push(case);
        }
    }
    assert!(failures.is_empty(), "further than {BAR:.0e} from transformers: {failures:?}");

    // In bf16 both programs round; ft must not be further from the f32 truth than transformers is.
    let case = cases.join("bf16_sharded");
    let truth = tensors::read(&case.join("expected.safetensors"));
    let theirs = worst(&tensors::read(&case.join("transformers_bf16.safetensors")), &truth, |each| each.typical_in_deviations);
    let ours = worst(&logits(&case, "bf16"), &truth, |each| each.typical_in_deviations);
    eprintln!("{:>24}: {ours:.1e} (transformers {theirs:.1e})", "bf16, typical");
    assert!(ours < 1.5 * theirs, "bf16 logits are {ours:.2e} from f32, those of transformers {theirs:.2e}");
}
