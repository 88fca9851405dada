//! The judges of the functions: of their gradients the same formula, with libtorch's own graph, in f64; of losses their definition.

use ft_quant::{Float, training};
use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::torch::host::{Element, elements};

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

/// A function of logits, targets and weights that gives losses, and puts the gradients in the place of the logits where that is asked.
type Softmax<'a> = &'a dyn Fn(&mut Tensor, &Tensor, &Tensor, bool) -> Result<Tensor>;

/// Losses and gradients of both types are those of the definition, but for some roundings in f32 and that to the type.
pub(in crate::torch) fn assert_losses_of_the_definition(device: Device, softmax: Softmax<'_>) {
    assert_losses::<f32>(device, softmax, 1e-5);
    assert_losses::<bf16>(device, softmax, 1.0 / 256.0);
}

fn assert_losses<T: Element + Float>(device: Device, softmax: Softmax<'_>, tolerance: f64) {
    const VOCABULARY: i64 = 1031;
    // A usual row, one far off zero, one that is nearly certain of its target, one that is nearly certain of another; a weight of nothing.
    let targets = [0i64, 1030, 517, 8, 30];
    let weights = [0.5f32, 1.0, 2.0, 0.25, 0.0];
    let logits = Tensor::randn([5, VOCABULARY], (Kind::Float, Device::Cpu)) * 3.0;
    let _ = logits.select(0, 1).f_add_scalar_(100.0).unwrap();
    let _ = logits.select(0, 2).select(0, 517).fill_(40.0);
    let _ = logits.select(0, 3).select(0, 9).fill_(40.0);
    let logits = logits.to_kind(T::KIND);
    let values = elements::<T>(&logits).unwrap().to_vec();
    let (losses, gradients) = training::cross_entropy(&values, 1031, &targets, &weights);
    let there = |values: Tensor| values.to_device(device);
    let (targets_n, weights_n) = (there(Tensor::from_slice(&targets)), there(Tensor::from_slice(&weights)));
    for wants_gradient in [false, true] {
        let mut found = there(logits.copy());
        let found_losses = softmax(&mut found, &targets_n, &weights_n, wants_gradient).unwrap();
        assert_eq!((found_losses.kind(), found.kind()), (Kind::Float, T::KIND));
        let found_losses = found_losses.to_device(Device::Cpu);
        for ((found, expected), weight) in elements::<f32>(&found_losses).unwrap().iter().zip(&losses).zip(weights) {
            let difference = (f64::from(*found) - expected).abs();
            assert!(difference <= 1e-5 * f64::from(weight), "{:?}: a loss of {found}, expected {expected}", T::KIND);
        }
        let found = found.to_device(Device::Cpu);
        let expected = |index: usize| if wants_gradient { gradients[index] } else { f64::from(Float::to_f32(values[index])) };
        for (index, found) in elements::<T>(&found).unwrap().iter().enumerate() {
            let (found, expected) = (f64::from(Float::to_f32(*found)), expected(index));
            // The softmax is a number in f32, from which 1 is subtracted at the target.
            let bound = tolerance * expected.abs() + if wants_gradient { 1e-6 } else { 0.0 };
            assert!((found - expected).abs() <= bound, "{:?}, element {index}: {found}, expected {expected}", T::KIND);
        }
    }
}
