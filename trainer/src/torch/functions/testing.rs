//! The judge of the functions' gradients: the same formula, with libtorch's own graph, in f64.

use tch::{Device, Kind, Tensor};

/// A leaf of random f64 values.
pub(super) fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Double, Device::Cpu)).set_requires_grad(true)
}

/// Values and gradients of both functions agree, in a random direction, within f32's rounding.
pub(super) fn assert_same_gradients(inputs: &[Tensor], found: impl Fn(&[Tensor]) -> Tensor, expected: impl Fn(&[Tensor]) -> Tensor) {
    let outputs = [found(inputs), expected(inputs)];
    let difference = (&outputs[0] - &outputs[1]).abs().max().double_value(&[]);
    assert!(difference < 2e-6, "values differ by {difference}");
    let direction = Tensor::randn(outputs[0].size(), (Kind::Double, Device::Cpu));
    let [found, expected] = outputs.map(|output| {
        (output.to_kind(Kind::Double) * &direction).sum(None::<Kind>).backward();
        inputs
            .iter()
            .map(|input| {
                let gradient = input.grad().copy();
                let _ = input.grad().zero_();
                gradient
            })
            .collect::<Vec<_>>()
    });
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let difference = (found - expected).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "gradients of input {index} differ by {difference}");
    }
}
