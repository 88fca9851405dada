//! One AdamW step over a parameter whose moments are kept in 8 bits, in one pass over memory.

use super::adamw::{AdamWFactors, moved};
use super::adamw_maps::CodeMap;
use super::dispatch::for_each_instruction_set;
use super::element::Element;
use super::parallel::{Shared, for_each_range};

/// Elements that share one scale.
///
/// Source: `blocksize` of the optimizers of bitsandbytes; the paper, Dettmers et al., "8-bit Optimizers via Block-wise Quantization"
/// (arXiv 2110.02861), takes 2,048.
pub const BLOCK_ELEMENTS: usize = 256;

/// Blocks that one thread takes at least.
const GRAIN: usize = 1 << 6;

/// One moment: a byte for each element and a scale for each block, the last of which may be shorter. An element is the number of its byte,
/// from a [`CodeMap`], times the scale.
#[derive(Debug)]
pub struct PackedSlices<'a> {
    /// A byte for each element.
    pub codes: &'a mut [u8],
    /// The largest magnitude of each block.
    pub scales: &'a mut [f32],
}

/// Moves `parameter` by one step. Each block is unpacked, moved in f32 as [`super::adamw`] does it, and packed again under its new scale;
/// it is computed alone, so the result does not depend on the number of threads.
///
/// # Panics
/// When the slices differ in length: the caller's mistake.
pub fn adamw_8bit(parameter: &mut [f32], gradient: &[f32], first: PackedSlices<'_>, second: PackedSlices<'_>, factors: AdamWFactors) {
    let count = parameter.len();
    let blocks = count.div_ceil(BLOCK_ELEMENTS);
    assert!(
        gradient.len() == count && first.codes.len() == count && second.codes.len() == count,
        "one gradient and two moments for each element"
    );
    assert!(first.scales.len() == blocks && second.scales.len() == blocks, "two scales for each block");
    let parameter = Shared::new(parameter);
    let (first_codes, first_scales) = (Shared::new(first.codes), Shared::new(first.scales));
    let (second_codes, second_scales) = (Shared::new(second.codes), Shared::new(second.scales));
    for_each_range(blocks, GRAIN, |range| {
        let elements = range.start * BLOCK_ELEMENTS..(range.end * BLOCK_ELEMENTS).min(count);
        // SAFETY: ranges are disjoint.
        let (parameter, first, second) = unsafe {
            (
                parameter.part(elements.clone()),
                PackedSlices { codes: first_codes.part(elements.clone()), scales: first_scales.part(range.clone()) },
                PackedSlices { codes: second_codes.part(elements.clone()), scales: second_scales.part(range) },
            )
        };
        step(parameter, &gradient[elements], first, second, factors);
    });
}

for_each_instruction_set! {
    fn step<T: Element>(parameter: &mut [T], gradient: &[f32], first: PackedSlices<'_>, second: PackedSlices<'_>, factors: AdamWFactors) {
        let (signed, unsigned) = (CodeMap::signed(), CodeMap::unsigned());
        let mut moments = [[0f32; BLOCK_ELEMENTS]; 2];
        let scales = first.scales.iter_mut().zip(second.scales);
        let codes = first.codes.chunks_mut(BLOCK_ELEMENTS).zip(second.codes.chunks_mut(BLOCK_ELEMENTS));
        let values = parameter.chunks_mut(BLOCK_ELEMENTS).zip(gradient.chunks(BLOCK_ELEMENTS));
        for (((parameter, gradient), (first_codes, second_codes)), (first_scale, second_scale)) in values.zip(codes).zip(scales) {
            let [first, second] = &mut moments;
            let (first, second) = (&mut first[..parameter.len()], &mut second[..parameter.len()]);
            unpack(signed, first_codes, *first_scale, first);
            unpack(unsigned, second_codes, *second_scale, second);
            for (((parameter, &gradient), first), second) in parameter.iter_mut().zip(gradient).zip(&mut *first).zip(&mut *second) {
                *parameter = T::from_f32(moved(parameter.to_f32(), gradient, first, second, factors));
            }
            *first_scale = pack(signed, first, first_codes);
            *second_scale = pack(unsigned, second, second_codes);
        }
    }
}

#[inline(always)]
fn unpack(map: &CodeMap, codes: &[u8], scale: f32, values: &mut [f32]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = map.value(code) * scale;
    }
}

/// Gives the scale.
#[inline(always)]
fn pack(map: &CodeMap, values: &[f32], codes: &mut [u8]) -> f32 {
    // Magnitudes are ordered as their bits are, and whole numbers need no care for NaN.
    let scale = f32::from_bits(values.iter().map(|value| value.abs().to_bits()).fold(0, u32::max));
    let divisor = if scale == 0.0 { 1.0 } else { scale };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = map.code(value / divisor);
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::super::adamw::adamw;
    use super::*;

    const FACTORS: AdamWFactors =
        AdamWFactors { rest1: 0.1, beta2: 0.99, rest2: 0.01, decay: 0.999, step_size: 0.02, root_correction: 0.3, epsilon: 1e-8 };

    /// A few blocks, of very different sizes, and a short one at the end.
    const COUNT: usize = 100 * BLOCK_ELEMENTS + 77;

    fn numbers(seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..COUNT).map(|index| next().powi(7) * 10f32.powi(-((index / BLOCK_ELEMENTS) as i32 % 9))).collect()
    }

    struct Packed {
        codes: Vec<u8>,
        scales: Vec<f32>,
    }

    impl Packed {
        fn zero(code: u8) -> Self {
            Self { codes: vec![code; COUNT], scales: vec![0.0; COUNT.div_ceil(BLOCK_ELEMENTS)] }
        }

        fn slices(&mut self) -> PackedSlices<'_> {
            PackedSlices { codes: &mut self.codes, scales: &mut self.scales }
        }

        /// Unpacked, one element after the other.
        fn values(&self, map: &CodeMap) -> Vec<f32> {
            self.codes
                .iter()
                .enumerate()
                .map(|(index, &code)| map.values()[usize::from(code)] * self.scales[index / BLOCK_ELEMENTS])
                .collect()
        }

        /// The nearest by looking at every number of the map, in the way of the definition.
        fn nearest(map: &CodeMap, values: &[f32]) -> Self {
            let mut packed = Self { codes: Vec::new(), scales: Vec::new() };
            for block in values.chunks(BLOCK_ELEMENTS) {
                let scale = block.iter().fold(0f32, |scale, value| scale.max(value.abs()));
                packed.scales.push(scale);
                packed.codes.extend(block.iter().map(|value| {
                    let ratio = if scale == 0.0 { 0.0 } else { value / scale };
                    let distance = |code: usize| (f64::from(map.values()[code]) - f64::from(ratio)).abs();
                    let order = |&left: &usize, &right: &usize| {
                        let by_magnitude = map.values()[left].abs().total_cmp(&map.values()[right].abs());
                        distance(left).total_cmp(&distance(right)).then(by_magnitude)
                    };
                    let lowest = usize::from(map.values()[0] == 0.0 && ratio > 0.0);
                    (lowest..256).min_by(order).unwrap() as u8
                }));
            }
            packed
        }
    }

    #[test]
    fn a_step_unpacks_moves_and_packs_to_the_nearest() {
        let (mut first, mut second) = (Packed::zero(127), Packed::zero(0));
        let (mut found, mut expected) = (numbers(1), numbers(1));
        for step in 0..4 {
            let gradient = numbers(step + 2);
            let (mut wide_first, mut wide_second) = (first.values(CodeMap::signed()), second.values(CodeMap::unsigned()));
            adamw(&mut expected, &gradient, &mut wide_first, &mut wide_second, FACTORS);
            adamw_8bit(&mut found, &gradient, first.slices(), second.slices(), FACTORS);
            assert!(found.iter().zip(&expected).all(|(found, expected)| found.to_bits() == expected.to_bits()));
            for (packed, wide, map) in [(&first, &wide_first, CodeMap::signed()), (&second, &wide_second, CodeMap::unsigned())] {
                let expected = Packed::nearest(map, wide);
                assert_eq!(packed.codes, expected.codes);
                assert_eq!(packed.scales, expected.scales);
            }
        }
        assert!(second.codes.iter().any(|&code| code > 200) && second.codes.contains(&1), "small and large numbers");
    }

    #[test]
    fn the_result_is_the_same_in_parts() {
        let gradient = numbers(5);
        let [mut whole, mut parts] = [(); 2].map(|()| (numbers(4), Packed::zero(127), Packed::zero(0)));
        adamw_8bit(&mut whole.0, &gradient, whole.1.slices(), whole.2.slices(), FACTORS);
        let blocks = 33;
        for (part, range) in [0..blocks * BLOCK_ELEMENTS, blocks * BLOCK_ELEMENTS..COUNT].into_iter().enumerate() {
            let scales = [0..blocks, blocks..COUNT.div_ceil(BLOCK_ELEMENTS)][part].clone();
            let first = PackedSlices { codes: &mut parts.1.codes[range.clone()], scales: &mut parts.1.scales[scales.clone()] };
            let second = PackedSlices { codes: &mut parts.2.codes[range.clone()], scales: &mut parts.2.scales[scales] };
            step(&mut parts.0[range.clone()], &gradient[range], first, second, FACTORS);
        }
        assert!(whole.0.iter().zip(&parts.0).all(|(left, right)| left.to_bits() == right.to_bits()));
        assert_eq!((whole.1.codes, whole.2.codes), (parts.1.codes, parts.2.codes));
    }

    #[test]
    fn a_block_of_zeros_stays_one() {
        let (mut first, mut second) = (Packed::zero(127), Packed::zero(0));
        let mut parameter = numbers(1);
        adamw_8bit(&mut parameter, &[0.0; COUNT], first.slices(), second.slices(), FACTORS);
        assert!(first.codes.iter().all(|&code| code == 127) && second.codes.iter().all(|&code| code == 0));
        assert!(first.scales.iter().chain(&second.scales).all(|&scale| scale == 0.0));
        assert!(parameter.iter().zip(numbers(1)).all(|(found, start)| *found == 0.999 * start));
    }
}
