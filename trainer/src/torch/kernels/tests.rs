//! Kernels against the definitions, on a GPU where there is one, and what they refuse anywhere.

use super::*;
use crate::error::Error;
use crate::torch::functions::testing::assert_losses_of_the_definition;
use crate::torch::ops::{index_select, mul, reshape, sum, unsqueeze};

/// The first GPU; where there is none, that is said past the test runner, which hides what passing tests print.
fn device(test: &str) -> Option<Device> {
    match super::super::device::best() {
        Device::Cpu => {
            use std::io::Write;
            writeln!(std::io::stderr(), "SKIPPED torch::kernels::{test}: libtorch finds no device").unwrap();
            None
        }
        cuda => Some(cuda),
    }
}

fn random(shape: &[i64], kind: Kind, device: Device) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind).to_device(device)
}

fn indices(values: &[i32], shape: &[i64], device: Device) -> Tensor {
    Tensor::from_slice(values).view(shape).to_device(device)
}

/// Both are the same numbers, but for one rounding to `kind` and those of a sum of a few terms.
fn assert_close(found: &Tensor, expected: &Tensor, kind: Kind, what: &str) {
    assert_eq!((found.kind(), found.size()), (kind, expected.size()), "{what}");
    let wide = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
    let tolerance = if kind == Kind::Float { 3e-6 } else { 1e-2 };
    let difference = (wide(found) - wide(expected)).abs() / (wide(expected).abs() + 1.0);
    let largest = difference.max().double_value(&[]);
    assert!(largest < tolerance, "{what} of {kind:?}: {largest}");
}

const KINDS: [Kind; 2] = [Kind::BFloat16, Kind::Float];

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let float = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let index = |shape: &[i64]| Tensor::zeros(shape, (Kind::Int, Device::Cpu));
    let refused = |result: Result<Tensor>, name: &str| match result.unwrap_err() {
        Error::Shape { tensor, .. } => assert_eq!(tensor, name),
        Error::Torch { source: TchError::Torch(text), .. } => assert!(text.contains(&format!("`{name}`")), "{text}"),
        other => panic!("{other:?}"),
    };
    let (bias, ends) = (float(&[3, 8]), index(&[3]));
    let by_expert = BiasByExpert { bias_eo: &bias, ends_e: &ends };
    refused(swiglu(&float(&[4, 7]), None, 1.0, 7.0), "gate_up");
    refused(swiglu(&float(&[8]), None, 1.0, 7.0), "gate_up");
    refused(swiglu(&float(&[8, 4]).transpose(0, 1), None, 1.0, 7.0), "gate_up");
    refused(swiglu(&float(&[4, 8]).to_kind(Kind::Half), None, 1.0, 7.0), "gate_up");
    refused(swiglu(&float(&[4, 6]), Some(by_expert), 1.0, 7.0), "bias");
    refused(swiglu(&float(&[4, 8]), Some(BiasByExpert { ends_e: &index(&[2]), ..by_expert }), 1.0, 7.0), "ends");
    refused(swiglu(&float(&[4, 8]), Some(BiasByExpert { ends_e: &float(&[3]), ..by_expert }), 1.0, 7.0), "ends");
    refused(swiglu(&float(&[4, 8]), Some(BiasByExpert { bias_eo: &float(&[0, 8]), ..by_expert }), 1.0, 7.0), "bias");
    refused(swiglu_backward(&float(&[4, 8]), None, &float(&[4, 8]), 1.0, 7.0), "gradient");
    refused(rms_norm(&float(&[4, 8]), &float(&[7]), 1e-5).map(|both| both.0), "weight");
    refused(rms_norm_backward(&float(&[4, 8]), &float(&[8]), &float(&[4]), &float(&[4, 8])), "reciprocal");
    refused(rms_norm_backward(&float(&[4, 8]), &float(&[8]), &float(&[4, 1]), &float(&[3, 8])), "gradient");
    refused(rms_norm_weight_gradient(&float(&[4, 8]), &float(&[4, 1]), &float(&[4, 8]).to_kind(Kind::Double)), "gradient");
    let turned = |heads: &[i64], cos: &[i64], sin: &[i64]| rope(&float(heads), &float(cos), &float(sin), RopeDirection::Forward);
    refused(turned(&[4, 2, 5], &[4, 1, 2], &[4, 1, 2]), "heads");
    refused(turned(&[4, 2, 6], &[4, 1, 2], &[4, 1, 3]), "cos");
    refused(turned(&[4, 2, 6], &[4, 1, 3], &[4, 3]), "sin");
    refused(combine(&float(&[4, 2]), &index(&[2]), None), "row_of_slot");
    refused(combine(&float(&[4, 2]), &float(&[2, 2]), None), "row_of_slot");
    refused(combine(&float(&[4, 2]), &index(&[2, 2]), Some(&float(&[4]))), "weights");
    refused(combine(&float(&[4, 2]), &index(&[2, 2]), Some(&float(&[2, 2]).to_kind(Kind::BFloat16))), "weights");
    let gradients = combine_backward(&float(&[4, 2]), &index(&[2, 2]), None, &float(&[4, 2]), (true, false));
    refused(gradients.map(|gradients| gradients.0.unwrap()), "gradient");
    let losses = |targets: &Tensor, weights: &Tensor| cross_entropy(&mut float(&[4, 7]), targets, weights, true);
    let targets = float(&[4]).to_kind(Kind::Int64);
    refused(cross_entropy(&mut float(&[28]), &targets, &float(&[4]), true), "logits");
    refused(losses(&index(&[4]), &float(&[4])), "targets");
    refused(losses(&targets.view([4, 1]), &float(&[4])), "targets");
    refused(losses(&targets, &float(&[5])), "weights");
    refused(losses(&targets, &float(&[4]).to_kind(Kind::Double)), "weights");
    let added = |mut rows: Tensor| add_expert_bias(&mut rows, by_expert).map(|()| rows);
    refused(added(float(&[4, 7])), "bias");
}

#[test]
fn tensors_of_the_host_are_left_to_the_operators() {
    let tensor = Tensor::zeros([4, 8], (Kind::Float, Device::Cpu));
    assert!(!can_take(&[&tensor]) && !can_take(&[]));
    assert!(matches!(swiglu(&tensor, None, 1.0, 7.0), Err(Error::Torch { operation: "swiglu", .. })));
}

#[test]
fn a_bias_is_added_before_the_activation_as_by_itself() {
    let Some(device) = device("a_bias_is_added_before_the_activation_as_by_itself") else { return };
    for kind in KINDS {
        let (gate_up_rf, bias_eo) = (random(&[11, 12], kind, device), random(&[4, 12], kind, device));
        let gradient_rf = random(&[11, 6], kind, device);
        let ends_e = indices(&[0, 5, 5, 11], &[4], device);
        let expert_r = Tensor::from_slice(&[1i64, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3]).to_device(device);
        let by_expert = BiasByExpert { bias_eo: &bias_eo, ends_e: &ends_e };
        let biased = &gate_up_rf + index_select(&bias_eo, 0, &expert_r).unwrap();
        let mut added = gate_up_rf.copy();
        add_expert_bias(&mut added, by_expert).unwrap();
        assert!(added.equal(&biased), "{kind:?}");

        let fused = swiglu(&gate_up_rf, Some(by_expert), 1.702, 0.5).unwrap();
        assert!(fused.equal(&swiglu(&biased, None, 1.702, 0.5).unwrap()), "{kind:?}");
        let fused = swiglu_backward(&gate_up_rf, Some(by_expert), &gradient_rf, 1.702, 0.5).unwrap();
        assert!(fused.equal(&swiglu_backward(&biased, None, &gradient_rf, 1.702, 0.5).unwrap()), "{kind:?}");
    }
}

#[test]
fn functions_on_a_gpu_are_those_of_the_host() {
    use crate::torch::functions::{SwigluLimits, rms_norm, rotate, swiglu};
    let Some(device) = device("functions_on_a_gpu_are_those_of_the_host") else { return };
    let limits = SwigluLimits { alpha: 1.702, limit: 0.5 };
    let turn = |heads: &Tensor, angles: &Tensor| rotate(heads, &angles.cos(), &angles.sin()).unwrap();
    type Case<'a> = (&'a str, Vec<Vec<i64>>, Box<dyn Fn(&[Tensor]) -> Tensor + 'a>);
    let cases: [Case<'_>; 3] = [
        ("swiglu", vec![vec![9, 34]], Box::new(|inputs| swiglu(&inputs[0], limits).unwrap())),
        ("rms_norm", vec![vec![70, 24], vec![24]], Box::new(|inputs| rms_norm(&inputs[0], &inputs[1], 1e-5).unwrap())),
        ("rotate", vec![vec![5, 3, 16], vec![5, 1, 8]], Box::new(|inputs| turn(&inputs[0], &inputs[1].detach().to_kind(Kind::Float)))),
    ];
    for (name, shapes, function) in &cases {
        for kind in KINDS {
            let leaf = |tensor: &Tensor, kind, device| tensor.to_device(device).to_kind(kind).copy().set_requires_grad(true);
            let values: Vec<Tensor> = shapes.iter().map(|shape| random(shape, kind, Device::Cpu)).collect();
            let there: Vec<Tensor> = values.iter().map(|value| leaf(value, kind, device)).collect();
            let here: Vec<Tensor> = values.iter().map(|value| leaf(value, Kind::Double, Device::Cpu)).collect();
            let (found, expected) = (function(&there), function(&here));
            assert_close(&found, &expected, kind, name);
            let direction = random(&expected.size(), kind, Device::Cpu);
            (&found * direction.to_device(device)).sum(Kind::Float).backward();
            (&expected * direction.to_kind(Kind::Double)).sum(Kind::Double).backward();
            // The angles have none.
            for (there, here) in there.iter().zip(&here).take(if *name == "rotate" { 1 } else { 2 }) {
                assert_close(&there.grad(), &here.grad(), kind, &format!("gradient of {name}"));
            }
        }
    }
}

#[test]
fn losses_on_a_gpu_are_those_of_the_definition() {
    let Some(device) = device("losses_on_a_gpu_are_those_of_the_definition") else { return };
    assert_losses_of_the_definition(device, &cross_entropy);
}

#[test]
fn rows_are_combined_as_by_operators() {
    let Some(device) = device("rows_are_combined_as_by_operators") else { return };
    for (kind, weight_kind) in [(Kind::BFloat16, Kind::BFloat16), (Kind::BFloat16, Kind::Float), (Kind::Float, Kind::Float)] {
        let (rows_nd, gradient_td) = (random(&[6, 20], kind, device), random(&[3, 20], kind, device));
        let weights_ta = random(&[3, 2], weight_kind, device);
        let row_of_slot_ta = indices(&[4, 1, 0, 5, 2, 3], &[3, 2], device);
        let slots = row_of_slot_ta.view([6]).to_kind(Kind::Int64);
        let (wide_rows, wide_weights) =
            (rows_nd.to_kind(Kind::Double).set_requires_grad(true), weights_ta.to_kind(Kind::Double).set_requires_grad(true));
        let by_token = reshape(&index_select(&wide_rows, 0, &slots).unwrap(), &[3, 2, 20]).unwrap();
        let expected = sum(&mul(&by_token, &unsqueeze(&wide_weights, -1).unwrap()).unwrap(), &[1], false).unwrap();
        (&expected * gradient_td.to_kind(Kind::Double)).sum(Kind::Double).backward();
        let found = combine(&rows_nd, &row_of_slot_ta, Some(&weights_ta)).unwrap();
        assert_close(&found, &expected, kind, "combine");
        let (of_rows, of_weights) = combine_backward(&rows_nd, &row_of_slot_ta, Some(&weights_ta), &gradient_td, (true, true)).unwrap();
        assert_close(&of_rows.unwrap(), &wide_rows.grad(), kind, "gradient of rows");
        assert_close(&of_weights.unwrap(), &wide_weights.grad(), weight_kind, "gradient of weights");

        let gathered = combine(&rows_nd, &slots.to_kind(Kind::Int).view([6, 1]), None).unwrap();
        assert!(gathered.equal(&index_select(&rows_nd, 0, &slots).unwrap()), "{kind:?}");
    }
}

#[test]
fn rows_without_a_slot_have_no_gradient() {
    let Some(device) = device("rows_without_a_slot_have_no_gradient") else { return };
    let (rows_nd, slots) = (random(&[4, 9], Kind::Float, device), indices(&[2, 0], &[2, 1], device));
    let gradient_td = random(&[2, 9], Kind::Float, device);
    let (of_rows, of_weights) = combine_backward(&rows_nd, &slots, None, &gradient_td, (true, false)).unwrap();
    let expected = Tensor::zeros([4, 9], (Kind::Float, device));
    let expected = expected.index_copy(0, &Tensor::from_slice(&[2i64, 0]).to_device(device), &gradient_td);
    assert!(of_rows.unwrap().equal(&expected) && of_weights.is_none());
}
