//! The CUDA kernels on a GPU, where there is one.

use std::io::Write;

use ft_quant::cuda::Gpu;
use ft_quant::mxfp4::{BLOCK_ELEMENTS, ScaleRule};
use ft_tests::codec::{Packed, Random, awkward_hints, awkward_values, compare_all, compare_pack, compare_unpack, packings};
use ft_tests::nvrtc;
use ft_tests::training_kernels::{
    compare_combine, compare_cross_entropy, compare_expert_bias, compare_gather, compare_rms_norm, compare_rope, compare_swiglu,
};

/// The first device; what is missing is said past the test runner, which hides what passing tests print.
fn gpu(test: &str) -> Option<Gpu> {
    match Gpu::open_with(0, &nvrtc::folders()) {
        Ok(gpu) => Some(gpu),
        Err(reason) => {
            let mut stderr = std::io::stderr();
            writeln!(stderr, "SKIPPED {test}: {reason}").expect("standard error is open");
            None
        }
    }
}

#[test]
fn kernels_on_the_device_equal_the_cpu() {
    if let Some(gpu) = gpu("kernels_on_the_device_equal_the_cpu") {
        compare_all(&gpu);
    }
}

/// More than a chunk of rows, and an expert of gpt-oss-20b.
#[test]
fn large_matrices_on_the_device_equal_the_cpu() {
    let Some(gpu) = gpu("large_matrices_on_the_device_equal_the_cpu") else { return };
    let mut random = Random(11);
    compare_unpack(&gpu, &Packed::random(&mut random, 5760 * 220), 5760);
    let values = awkward_values(&mut random, 5760 * 90);
    let scales: Vec<u8> = values.chunks(BLOCK_ELEMENTS).map(|block| (block[0].to_bits() >> 7) as u8).collect();
    let hints = awkward_hints(&mut random, &scales);
    for packing in packings() {
        compare_pack(&gpu, &values, 5760, packing, Some(&hints));
    }
    compare_pack(&gpu, &values, 2880, ScaleRule::Hint.into(), None);
}

#[test]
fn swiglu_on_the_device_is_what_its_definition_says() {
    if let Some(gpu) = gpu("swiglu_on_the_device_is_what_its_definition_says") {
        compare_swiglu(&gpu);
    }
}

#[test]
fn rms_norm_on_the_device_is_what_its_definition_says() {
    if let Some(gpu) = gpu("rms_norm_on_the_device_is_what_its_definition_says") {
        compare_rms_norm(&gpu);
    }
}

#[test]
fn rope_on_the_device_is_what_its_definition_says() {
    if let Some(gpu) = gpu("rope_on_the_device_is_what_its_definition_says") {
        compare_rope(&gpu);
    }
}

#[test]
fn combine_on_the_device_is_what_its_definition_says() {
    if let Some(gpu) = gpu("combine_on_the_device_is_what_its_definition_says") {
        compare_combine(&gpu);
        compare_gather(&gpu);
    }
}

#[test]
fn expert_bias_on_the_device_is_what_its_definition_says() {
    if let Some(gpu) = gpu("expert_bias_on_the_device_is_what_its_definition_says") {
        compare_expert_bias(&gpu);
    }
}

#[test]
fn cross_entropy_on_the_device_is_what_its_definition_says() {
    if let Some(gpu) = gpu("cross_entropy_on_the_device_is_what_its_definition_says") {
        compare_cross_entropy(&gpu);
    }
}
