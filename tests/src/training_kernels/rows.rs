//! What is done to each row by itself: norms, rotations, biases.

use ft_quant::cuda::{ExpertBias, Gpu, RmsNorm, Rope, RopeDirection, rms_norm_slices};
use ft_quant::training::{self, BiasByExpert};
use half::bf16;

use super::samples::{OFFSETS, OnDevice, Sample, UNIT, assert_close, launched, magnitudes, numbers};
use crate::codec::Random;

/// Values, reciprocals and both gradients of norms.
///
/// # Panics
/// When they differ from the definition by more than the kernel's file says.
pub fn compare_rms_norm(gpu: &Gpu) {
    let mut random = Random(22);
    // The last has several slices, and more rows than a grid of one multiprocessor has blocks.
    for (rows, width) in [(0, 5), (1, 1), (77, 1), (5, 31), (9, 40), (3, 2880), (3, 2883), (150, 17)] {
        for offset in OFFSETS {
            for has_nan in [false, true] {
                compare_norm::<bf16>(gpu, &mut random, [rows, width], has_nan, offset);
                compare_norm::<f32>(gpu, &mut random, [rows, width], has_nan, offset);
            }
        }
    }
    // Slices of more rows than is usual.
    compare_norm::<f32>(gpu, &mut random, [16500, 2], false, 0);
}

fn compare_norm<T: Sample>(gpu: &Gpu, random: &mut Random, [rows, width]: [usize; 2], has_nan: bool, offset: usize) {
    const EPSILON: f32 = 1e-5;
    let case = format!("{:?}, {rows} rows of {width}, NaN {has_nan}, offset {offset}", T::ELEMENT);
    let (mut hidden, weight) = (numbers::<T>(random, rows * width), numbers::<f32>(random, width));
    let gradient = numbers::<T>(random, rows * width);
    if rows > 2 {
        // A row of nothing.
        hidden[..width].fill(T::of(0.0));
    }
    if let Some(last) = hidden.last_mut().filter(|_| has_nan) {
        // It reaches its row, and all of the weight's gradient.
        *last = T::of(f32::NAN);
    }
    let (there_hidden, there_weight) = (OnDevice::new(gpu, &hidden, offset), OnDevice::new(gpu, &weight, offset));
    let reciprocals = OnDevice::room::<f32>(gpu, rows, offset);
    let there = RmsNorm { element: T::ELEMENT, rows, width, hidden: there_hidden.address(), reciprocals: reciprocals.address() };
    let out = OnDevice::room::<T>(gpu, rows * width, offset);
    // SAFETY: the stream is the device's own; the buffers have the sizes of the shapes and live until they were read.
    launched(unsafe { gpu.rms_norm_on(gpu.stream(), there, there_weight.address(), EPSILON, out.address()) });
    let (exact, exact_reciprocals) = training::rms_norm(&hidden, &weight, EPSILON);
    let steps = (width as f64 / 256.0 + 32.0) * UNIT;
    assert_close(&out.read::<T>(gpu), &exact, |index| steps * exact[index].abs(), &case);
    let reciprocals = reciprocals.read::<f32>(gpu);
    assert_close(&reciprocals, &exact_reciprocals, |row| steps * exact_reciprocals[row], &format!("reciprocals, {case}"));

    let (there_gradient, result) = (OnDevice::new(gpu, &gradient, offset), OnDevice::room::<T>(gpu, rows * width, offset));
    // SAFETY: as above.
    launched(unsafe { gpu.rms_norm_backward_on(gpu.stream(), there, there_weight.address(), there_gradient.address(), result.address()) });
    let exact = training::rms_norm_backward(&hidden, &weight, &reciprocals, &gradient);
    let bounds = backward_bounds(&hidden, &weight, &reciprocals, &gradient);
    assert_close(&result.read::<T>(gpu), &exact, |index| 2.0 * steps * bounds[index], &format!("backward, {case}"));

    let slices = rms_norm_slices(rows);
    let (partials, result) = (OnDevice::room::<f32>(gpu, slices * width, offset), OnDevice::room::<f32>(gpu, width, offset));
    // SAFETY: as above.
    launched(unsafe {
        gpu.rms_norm_weight_gradient_on(gpu.stream(), there, there_gradient.address(), partials.address(), result.address())
    });
    let exact = training::rms_norm_weight_gradient(&hidden, &reciprocals, &gradient, width);
    let sums = training::rms_norm_weight_gradient(&magnitudes(&hidden), &reciprocals, &magnitudes(&gradient), width);
    let steps = (rows.div_ceil(slices.max(1)).max(64) + slices + 8) as f64 * UNIT;
    assert_close(&result.read::<f32>(gpu), &exact, |column| steps * sums[column], &format!("weight, {case}"));
}

/// reciprocal (|g| + |n| mean|g n|).
fn backward_bounds<T: Sample>(hidden: &[T], weight: &[f32], reciprocals: &[f32], gradient: &[T]) -> Vec<f64> {
    let width = weight.len();
    let rows = hidden.chunks(width).zip(gradient.chunks(width)).zip(reciprocals);
    rows.flat_map(|((hidden, gradient), &reciprocal)| {
        let reciprocal = f64::from(reciprocal);
        let parts: Vec<(f64, f64)> = (hidden.iter().zip(gradient).zip(weight))
            .map(|((hidden, gradient), weight)| {
                let scaled = f64::from(gradient.to_f32()) * f64::from(*weight);
                (scaled.abs(), (f64::from(hidden.to_f32()) * reciprocal).abs())
            })
            .collect();
        let mean = parts.iter().map(|(scaled, normal)| scaled * normal).sum::<f64>() / width as f64;
        parts.into_iter().map(move |(scaled, normal)| reciprocal * (scaled + normal * mean))
    })
    .collect()
}

/// Heads by their positions, and back.
///
/// # Panics
/// When they differ from the definition by more than the kernel's file says.
pub fn compare_rope(gpu: &Gpu) {
    let mut random = Random(23);
    for (tokens, num_heads, pairs) in [(0, 2, 4), (1, 1, 1), (7, 3, 5), (5, 2, 16), (77, 9, 32)] {
        for offset in OFFSETS {
            for direction in [RopeDirection::Forward, RopeDirection::Backward] {
                compare_rotation::<bf16>(gpu, &mut random, [tokens, num_heads, pairs], offset, direction);
                compare_rotation::<f32>(gpu, &mut random, [tokens, num_heads, pairs], offset, direction);
            }
        }
    }
}

fn compare_rotation<T: Sample>(gpu: &Gpu, random: &mut Random, dims: [usize; 3], offset: usize, direction: RopeDirection) {
    let [tokens, num_heads, pairs] = dims;
    let case = format!("{:?}, {dims:?}, offset {offset}, {direction:?}", T::ELEMENT);
    let mut heads = numbers::<T>(random, tokens * num_heads * pairs * 2);
    if let Some(last) = heads.last_mut() {
        *last = T::of(f32::NAN);
    }
    let (cosines, sines) = (numbers::<f32>(random, tokens * pairs), numbers::<f32>(random, tokens * pairs));
    let there_heads = OnDevice::new(gpu, &heads, offset);
    let (there_cosines, there_sines) = (OnDevice::new(gpu, &cosines, offset), OnDevice::new(gpu, &sines, offset));
    let out = OnDevice::room::<T>(gpu, heads.len(), offset);
    let there = Rope { element: T::ELEMENT, tokens, num_heads, pairs, cosines: there_cosines.address(), sines: there_sines.address() };
    // SAFETY: the stream is the device's own; the buffers have the sizes of the shapes and live until they were read.
    launched(unsafe { gpu.rope_on(gpu.stream(), there, direction, there_heads.address(), out.address()) });
    let exact = training::rope(&heads, &cosines, &sines, pairs, direction);
    let (heads, cosines, sines) = (magnitudes(&heads), magnitudes(&cosines), magnitudes(&sines));
    // One half of each head is a sum of magnitudes one way, the other the other way.
    let sums = [RopeDirection::Forward, RopeDirection::Backward].map(|way| training::rope(&heads, &cosines, &sines, pairs, way));
    let bound = |index: usize| 3.0 * UNIT * sums[0][index].max(sums[1][index]);
    assert_close(&out.read::<T>(gpu), &exact, bound, &case);
}

/// Rows with the bias of their expert, bit for bit.
///
/// # Panics
/// When they differ from the definition.
pub fn compare_expert_bias(gpu: &Gpu) {
    let mut random = Random(24);
    for (rows, width) in [(0, 5), (1, 1), (77, 1), (77, 31), (9, 40), (7, 5760)] {
        for offset in OFFSETS {
            for num_experts in [1, 2, 7, 32] {
                compare_bias::<bf16>(gpu, &mut random, [rows, width, num_experts], offset);
                compare_bias::<f32>(gpu, &mut random, [rows, width, num_experts], offset);
            }
        }
    }
}

fn compare_bias<T: Sample>(gpu: &Gpu, random: &mut Random, dims: [usize; 3], offset: usize) {
    let [num_rows, width, num_experts] = dims;
    let mut rows = numbers::<T>(random, num_rows * width);
    if let Some(first) = rows.first_mut() {
        *first = T::of(f32::NAN);
    }
    let bias = numbers::<T>(random, num_experts * width);
    // Sorted, some experts without rows, and at times rows beyond the last end.
    let mut ends: Vec<i32> = (0..num_experts).map(|_| i32::from(random.below(num_rows as u16 + 1))).collect();
    ends.sort_unstable();
    let there = OnDevice::new(gpu, &rows, offset);
    let (there_bias, there_ends) = (OnDevice::new(gpu, &bias, offset), OnDevice::new(gpu, &ends, offset));
    let by_expert = ExpertBias { num_experts, bias: there_bias.address(), ends: there_ends.address() };
    // SAFETY: the stream is the device's own; the buffers have the sizes of the shapes and live until they were read.
    launched(unsafe { gpu.add_expert_bias_on(gpu.stream(), T::ELEMENT, (num_rows, width), there.address(), by_expert) });
    training::add_expert_bias(&mut rows, width, BiasByExpert { bias: &bias, ends: &ends });
    for (index, (found, expected)) in there.read::<T>(gpu).iter().zip(&rows).enumerate() {
        let (found, expected) = (found.to_f32(), expected.to_f32());
        let is_same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
        assert!(is_same, "{:?}, {dims:?}, {ends:?}, offset {offset}, element {index}: {found}, expected {expected}", T::ELEMENT);
    }
}
