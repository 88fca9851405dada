//! Rows of experts to their tokens and back.

use ft_quant::cuda::{Combine, CombineTypes, Gpu};
use ft_quant::training::{self, Slots};
use half::bf16;

use super::samples::{OFFSETS, OnDevice, Sample, UNIT, assert_close, launched, magnitudes, numbers};
use crate::codec::Random;

/// Sums and both gradients, with and without weights, of all types.
///
/// # Panics
/// When they differ from the definition by more than the kernel's file says.
pub fn compare_combine(gpu: &Gpu) {
    let mut random = Random(25);
    for (tokens, active, width) in [(0, 4, 5), (1, 1, 1), (77, 1, 31), (20, 4, 31), (77, 4, 1), (9, 3, 32), (5, 4, 2880)] {
        for offset in OFFSETS {
            for has_weights in [true, false] {
                let dims = [tokens, active, width];
                compare::<bf16, bf16>(gpu, &mut random, CombineTypes::Bf16, dims, has_weights, offset);
                compare::<bf16, f32>(gpu, &mut random, CombineTypes::Bf16WithF32Weights, dims, has_weights, offset);
                compare::<f32, f32>(gpu, &mut random, CombineTypes::F32, dims, has_weights, offset);
            }
        }
    }
}

/// Numbers from 0 in a random order.
fn shuffled(random: &mut Random, count: usize) -> Vec<i32> {
    let mut order: Vec<i32> = (0..count as i32).collect();
    for last in (1..count).rev() {
        order.swap(last, usize::from(random.below(last as u16 + 1)));
    }
    order
}

fn compare<T: Sample, W: Sample>(gpu: &Gpu, random: &mut Random, types: CombineTypes, dims: [usize; 3], has_weights: bool, offset: usize) {
    let [tokens, active, width] = dims;
    let case = format!("{types:?}, {dims:?}, weights {has_weights}, offset {offset}");
    // Some more rows than slots, so that a few have no token.
    let num_rows = tokens * active + 3;
    let mut rows = numbers::<T>(random, num_rows * width);
    let mut row_of_slot = shuffled(random, num_rows)[..tokens * active].to_vec();
    if tokens > 4 {
        // Indices of no row, and a row that is no number.
        row_of_slot[1] = -1;
        row_of_slot[3 * active] = num_rows as i32;
        rows[row_of_slot[2 * active] as usize * width] = T::of(f32::NAN);
    }
    let (mut weights, gradient) = (numbers::<W>(random, tokens * active), numbers::<T>(random, tokens * width));
    if let Some(last) = weights.last_mut().filter(|_| tokens > 4) {
        // The NaN that devices make, which a carry would turn into a zero.
        *last = W::of(f32::from_bits(0x7fff_ffff));
    }
    let (there_rows, there_slots) = (OnDevice::new(gpu, &rows, offset), OnDevice::new(gpu, &row_of_slot, offset));
    let (there_weights, there_gradient) = (OnDevice::new(gpu, &weights, offset), OnDevice::new(gpu, &gradient, offset));
    let there = Combine {
        types,
        num_rows,
        tokens,
        active,
        width,
        rows: there_rows.address(),
        row_of_slot: there_slots.address(),
        weights: has_weights.then_some(there_weights.address()),
    };
    let here = Slots { active, row_of_slot: &row_of_slot, weights: has_weights.then_some(&weights[..]) };
    let (row_magnitudes, weight_magnitudes) = (magnitudes(&rows), magnitudes(&weights));
    let sizes = Slots { weights: has_weights.then_some(&weight_magnitudes[..]), ..here };

    let out = OnDevice::room::<T>(gpu, tokens * width, offset);
    // SAFETY: the stream is the device's own; the buffers have the sizes of the shapes and live until they were read.
    launched(unsafe { gpu.combine_on(gpu.stream(), there, out.address()) });
    let sums = training::combine(&row_magnitudes, sizes, width);
    let exact = training::combine(&rows, here, width);
    assert_close(&out.read::<T>(gpu), &exact, |index| active as f64 * UNIT * sums[index], &case);

    let (of_rows, of_weights) = (OnDevice::room::<T>(gpu, num_rows * width, offset), OnDevice::room::<W>(gpu, tokens * active, offset));
    let (to_rows, to_weights) = (Some(of_rows.address()), Some(of_weights.address()));
    // SAFETY: as above; no two slots name one row.
    launched(unsafe { gpu.combine_backward_on(gpu.stream(), there, there_gradient.address(), to_rows, to_weights) });
    let (exact_rows, exact_weights) = training::combine_backward(&rows, here, width, &gradient);
    let (found_rows, found_weights) = (of_rows.read::<T>(gpu), of_weights.read::<W>(gpu));
    // What no slot names stays as it was, which is NaN.
    let exact_rows: Vec<f64> = exact_rows.into_iter().map(|gradient| gradient.unwrap_or(f64::NAN)).collect();
    assert_close(&found_rows, &exact_rows, |index| UNIT * exact_rows[index].abs(), &format!("rows, {case}"));
    let (_, sums) = training::combine_backward(&row_magnitudes, here, width, &magnitudes(&gradient));
    let steps = (width as f64 / 32.0 + 16.0) * UNIT;
    assert_close(&found_weights, &exact_weights, |slot| steps * sums[slot], &format!("weights, {case}"));

    // One gradient without the other.
    let (only_rows, only_weights) = (OnDevice::room::<T>(gpu, num_rows * width, offset), OnDevice::room::<W>(gpu, tokens * active, offset));
    let (to_rows, to_weights) = (Some(only_rows.address()), Some(only_weights.address()));
    // SAFETY: as above.
    launched(unsafe { gpu.combine_backward_on(gpu.stream(), there, there_gradient.address(), to_rows, None) });
    // SAFETY: as above.
    launched(unsafe { gpu.combine_backward_on(gpu.stream(), there, there_gradient.address(), None, to_weights) });
    assert!(same_bytes(&only_rows.read::<T>(gpu), &found_rows) && same_bytes(&only_weights.read::<W>(gpu), &found_weights), "{case}");
}

fn same_bytes<T: Sample>(first: &[T], second: &[T]) -> bool {
    first.len() == second.len() && first.iter().zip(second).all(|(first, second)| first.bytes() == second.bytes())
}

/// Without weights, and with a slot to each token, rows come as they are: zeros of both signs, infinities, the smallest numbers.
///
/// # Panics
/// When they do not.
pub fn compare_gather(gpu: &Gpu) {
    for width in [1, 8, 13] {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, -1e-40, 1.0];
        let rows: Vec<bf16> = (0..5 * width).map(|index| bf16::of(special[index % special.len()])).collect();
        let row_of_slot = [4, 0, 0, 3, 1, 4];
        let (there, slots) = (OnDevice::new(gpu, &rows, 0), OnDevice::new(gpu, &row_of_slot, 0));
        let out = OnDevice::room::<bf16>(gpu, 6 * width, 0);
        let of = Combine {
            types: CombineTypes::Bf16,
            num_rows: 5,
            tokens: 6,
            active: 1,
            width,
            rows: there.address(),
            row_of_slot: slots.address(),
            weights: None,
        };
        // SAFETY: the stream is the device's own; the buffers have the sizes of the shapes and live until they were read.
        launched(unsafe { gpu.combine_on(gpu.stream(), of, out.address()) });
        let expected: Vec<bf16> = row_of_slot.iter().flat_map(|&row| &rows[row as usize * width..][..width]).copied().collect();
        assert!(same_bytes(&out.read::<bf16>(gpu), &expected), "rows of {width}");
    }
}
