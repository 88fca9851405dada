//! The gradient of every parameter against transformers' autograd, in f32.

use ft_tests::program::{built, peer, succeed};
use ft_tests::scratch::Scratch;
use ft_tests::tensors;
use std::process::Command;

/// Norm of the difference over norm of the gradient.
const BAR: f64 = 1e-3;

#[test]
fn gradients_equal_those_of_transformers() {
    let scratch = Scratch::new("gradients");
    let case = scratch.join("case");
    succeed(&mut peer("gradients.py", [&case]));
    let output = scratch.join("gradients.safetensors");
    succeed(Command::new(built("examples/gradients")).arg(case.join("model")).arg(case.join("tokens.json")).arg(&output));
    let mut expected = tensors::read(&case.join("expected.safetensors"));
    let found = tensors::read(&output);
    let loss = expected.remove("loss").expect("the peer writes its loss");
    if let Some(found) = found.get("loss") {
        let difference = (found.values[0] - loss.values[0]).abs();
        assert!(difference <= 1e-5 * loss.values[0], "loss {} instead of {}", found.values[0], loss.values[0]);
    }
    let missing: Vec<_> = expected.keys().filter(|name| !found.contains_key(*name)).collect();
    assert!(missing.is_empty(), "no gradient for {missing:?}");

    let mut distances: Vec<_> = expected.iter().map(|(name, each)| (tensors::distance(name, &found[name], each).relative, name)).collect();
    distances.sort_by(|left, right| right.0.total_cmp(&left.0));
    for (relative, name) in distances.iter().take(3) {
        eprintln!("{name}: {relative:.1e}");
    }
    let failures: Vec<_> = distances.iter().filter(|(relative, _)| *relative > BAR).collect();
    assert!(failures.is_empty(), "{} of {} gradients further than {BAR:.0e}: {failures:?}", failures.len(), expected.len());
}
