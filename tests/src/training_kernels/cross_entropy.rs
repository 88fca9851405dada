//! Losses of logits, and their gradients in place.

use ft_quant::cuda::{CrossEntropy, Gpu};
use ft_quant::training;
use half::bf16;

use super::samples::{OFFSETS, OnDevice, Sample, UNIT, assert_close, launched, numbers};
use crate::codec::Random;

/// Losses with and without gradients, of both types, the same on every alignment.
///
/// # Panics
/// When they differ from the definition by more than the kernel's file says, or logits are written whose gradient is not wanted.
pub fn compare_cross_entropy(gpu: &Gpu) {
    let mut random = Random(26);
    // More rows than a grid of one multiprocessor has blocks; spans that are not full, whole ones, and the vocabulary of gpt-oss.
    for (rows, vocabulary) in [(0, 5), (3, 0), (77, 1), (77, 31), (77, 48), (40, 2883), (12, 8200), (5, 201_088)] {
        compare::<bf16>(gpu, &mut random, rows, vocabulary);
        compare::<f32>(gpu, &mut random, rows, vocabulary);
    }
}

/// Rows of every kind that matters, the usual ones first, and the targets and weights that go with them.
fn samples<T: Sample>(random: &mut Random, rows: usize, vocabulary: usize) -> (Vec<T>, Vec<i64>, Vec<f32>) {
    let mut logits = numbers::<T>(random, rows * vocabulary);
    let mut targets: Vec<i64> = (0..rows).map(|row| (row * 7919 % vocabulary.max(1)) as i64).collect();
    let mut weights: Vec<f32> = numbers::<f32>(random, rows);
    for (row, logits) in logits.chunks_mut(vocabulary.max(1)).enumerate() {
        let (target, last) = (targets[row] as usize, logits.len() - 1);
        match row % 16 {
            // Far apart: up to 1e4.
            1 => logits.iter_mut().for_each(|logit| *logit = T::of(logit.to_f32() * 2560.0)),
            // Rising, so that each thread has a new maximum with each span.
            2 => logits.iter_mut().enumerate().for_each(|(index, logit)| *logit = T::of(index as f32 / 4096.0 + logit.to_f32() / 64.0)),
            // Most of them impossible, whole spans among them.
            3 => logits.iter_mut().enumerate().filter(|(index, _)| index % 1000 != target % 1000).for_each(|(_, logit)| {
                *logit = T::of(f32::NEG_INFINITY);
            }),
            4 => logits[last] = T::of(f32::NAN),
            5 => logits[target] = T::of(f32::NEG_INFINITY),
            6 => logits[last] = T::of(f32::INFINITY),
            7 => logits.fill(T::of(f32::NEG_INFINITY)),
            // Nearly certain, and all but impossible.
            8 => logits[target] = T::of(30.0),
            9 => logits[target] = T::of(-80.0),
            10 => weights[row] = 0.0,
            // What is no token, also when its upper half is lost.
            11 => targets[row] = -1,
            12 => targets[row] = vocabulary as i64,
            13 => targets[row] += 1 << 32,
            14 => targets[row] = i64::MIN,
            15 => weights[row] = f32::NAN,
            _ => {}
        }
    }
    (logits, targets, weights)
}

fn compare<T: Sample>(gpu: &Gpu, random: &mut Random, rows: usize, vocabulary: usize) {
    let (logits, targets, weights) = samples::<T>(random, rows, vocabulary);
    let results = OFFSETS.map(|offset| {
        let case = format!("{:?}, {rows} rows of {vocabulary}, offset {offset}", T::ELEMENT);
        let there = OnDevice::new(gpu, &logits, offset);
        let (there_targets, there_weights) = (OnDevice::new(gpu, &targets, offset), OnDevice::new(gpu, &weights, offset));
        let of = CrossEntropy {
            element: T::ELEMENT,
            rows,
            vocabulary,
            logits: there.address(),
            targets: there_targets.address(),
            weights: there_weights.address(),
        };
        let [alone, losses] = [false, true].map(|wants_gradient| {
            let losses = OnDevice::room::<f32>(gpu, rows, offset);
            // SAFETY: the stream is the device's own; the buffers have the sizes of the shapes and live until they were read.
            launched(unsafe { gpu.cross_entropy_on(gpu.stream(), of, wants_gradient, losses.address()) });
            if !wants_gradient {
                assert!(same(&there.read::<T>(gpu), &logits), "logits, {case}");
            }
            losses.read::<f32>(gpu)
        });
        assert!(same(&alone, &losses), "losses with and without gradients, {case}");
        (losses, there.read::<T>(gpu))
    });
    let [(losses, gradients), (moved_losses, moved_gradients)] = &results;
    let case = format!("{:?}, {rows} rows of {vocabulary}", T::ELEMENT);
    assert!(same(losses, moved_losses) && same(gradients, moved_gradients), "one alignment and the other, {case}");

    let (exact, exact_gradients) = training::cross_entropy(&logits, vocabulary, &targets, &weights);
    let steps = vocabulary as f64 / 512.0 + 56.0;
    let size = |row: usize| f64::from(weights[row].abs());
    assert_close(losses, &exact, |row| UNIT * (steps * size(row) + 4.0 * exact[row].abs()), &format!("losses, {case}"));
    let largest: Vec<f64> =
        logits.chunks(vocabulary.max(1)).map(|row| row.iter().fold(f64::MIN, |most, l| most.max(l.to_f32().into()))).collect();
    let bound = |index: usize| {
        let (row, column) = (index / vocabulary, index % vocabulary);
        if targets[row] == column as i64 {
            return UNIT * steps * size(row);
        }
        let distance = largest[row] - f64::from(logits[index].to_f32());
        // Where the result is subnormal, bf16 keeps no more than this.
        UNIT * (steps + distance) * exact_gradients[index].abs() + (1.0 + size(row)) * f64::exp2(-133.0)
    };
    assert_close(gradients, &exact_gradients, bound, &format!("gradients, {case}"));
}

/// The same bits, or both no number.
fn same<T: Sample>(first: &[T], second: &[T]) -> bool {
    let is_same = |(first, second): (&T, &T)| first.bytes() == second.bytes() || (first.to_f32().is_nan() && second.to_f32().is_nan());
    first.len() == second.len() && first.iter().zip(second).all(is_same)
}
