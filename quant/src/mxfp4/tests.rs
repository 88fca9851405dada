//! The fast paths at every level against the definition, and the properties that users rely on.

use half::{bf16, f16};
use proptest::prelude::*;

use super::columns::{pack_transposed_at, unpack_transposed_at};
use super::element::VALUES;
use super::rows::{pack_at, unpack_at};
use super::*;
use crate::float::Float;
use crate::processor::Level;

const RULES: [ScaleRule; 5] = [ScaleRule::Hint, ScaleRule::Even, ScaleRule::Mse, ScaleRule::Floor, ScaleRule::Rceil];
const ROUNDINGS: [Rounding; 2] = [Rounding::Even, Rounding::TowardZero];

/// Blocks and their scales.
type Packed = (Vec<u8>, Vec<u8>);

fn packed_at<T: Float>(level: Level, values: &[T], packing: Packing, hints: Option<&[u8]>) -> Result<Packed, Error> {
    let (mut blocks, mut scales) = (vec![0; values.len() / 2], vec![0; values.len() / BLOCK_ELEMENTS]);
    pack_at(level, values, packing, hints, &mut blocks, &mut scales).map(|()| (blocks, scales))
}

fn packed(values: &[bf16], rule: ScaleRule) -> Packed {
    packed_at(Level::best(), values, rule.into(), None).unwrap()
}

fn unpacked(blocks: &[u8], scales: &[u8]) -> Result<Vec<bf16>, Error> {
    let mut out = vec![bf16::ZERO; scales.len() * BLOCK_ELEMENTS];
    unpack(blocks, scales, &mut out).map(|()| out)
}

/// Blocks [out, s] of values [out, in] by the definition alone.
fn packed_by_definition<T: Float>(values: &[T], packing: Packing, hints: Option<&[u8]>) -> Packed {
    let packing = if hints.is_none() && packing.rule == ScaleRule::Hint { Packing { rule: ScaleRule::Even, ..packing } } else { packing };
    let pack = |(index, values): (usize, &[T; BLOCK_ELEMENTS])| {
        reference::pack_block(&values.map(T::to_f32), packing, hints.map(|hints| hints[index]))
    };
    let (blocks, scales): (Vec<_>, Vec<_>) = values.as_chunks().0.iter().enumerate().map(pack).unzip();
    (blocks.concat(), scales)
}

/// [rows, columns] to [columns, rows].
fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Numbers that are the same in every run. Source: xorshift64, Marsaglia, "Xorshift RNGs" (2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Source: Box, Muller, "A note on the generation of random normal deviates" (1958).
    fn normal(&mut self) -> f32 {
        let mut uniform = || ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32
    }
}

/// Blocks in which the largest element and the spread take every course: usual weights, a wide range, tiny and huge numbers, zeros of
/// both signs, ties, and single elements.
fn awkward_values(num_blocks: usize) -> Vec<bf16> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut values = Vec::with_capacity(num_blocks * BLOCK_ELEMENTS);
    for block in 0..num_blocks {
        let exponent = (random.next() % 253) as i32 - 126;
        for element in 0..BLOCK_ELEMENTS {
            let any = bf16::from_bits(random.next() as u16);
            values.push(match block % 8 {
                0 => bf16::from_f32(random.normal() * 0.02),
                1 => any,
                2 => bf16::from_f64(f64::from(random.normal()) * f64::from(exponent).exp2()),
                3 => bf16::from_bits(random.next() as u16 & 0x83ff),
                4 => bf16::from_bits(random.next() as u16 & 0x8000),
                5 => bf16::from_f64((random.next() % 65) as f64 / 8.0 * f64::from(exponent.min(120)).exp2()),
                6 if element == block / 8 % BLOCK_ELEMENTS => any,
                6 => bf16::ZERO,
                _ => bf16::from_bits((random.next() as u16 & 0x803f) | (0x3e00 + 0x40 * (random.next() % 12) as u16)),
            });
        }
    }
    values.into_iter().map(|value| if value.is_finite() { value } else { bf16::from_bits(value.to_bits() ^ 0x0100) }).collect()
}

/// Scales near those of the values, and any.
fn awkward_hints(values: &[bf16]) -> Vec<u8> {
    let mut random = Random(42);
    let (_, mut hints) = packed(values, ScaleRule::Floor);
    for hint in &mut hints {
        *hint = match random.next() % 4 {
            0 => (random.next() % 255) as u8,
            _ => hint.saturating_add((random.next() % 9) as u8).saturating_sub(3).min(254),
        };
    }
    hints
}

/// The same for f32, whose bits below those of bf16 count: ties and what is just beside them, and blocks of which two scales have almost the
/// same error.
fn awkward_singles(num_blocks: usize) -> Vec<f32> {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let coarse = awkward_values(num_blocks);
    let mut values = Vec::with_capacity(num_blocks * BLOCK_ELEMENTS);
    for (block, coarse) in coarse.as_chunks::<BLOCK_ELEMENTS>().0.iter().enumerate() {
        let exponent = (random.next() % 253) as i32 - 126;
        let unit = 2.0f32.powi(exponent);
        for (element, coarse) in coarse.iter().enumerate() {
            let sign = [1.0, -1.0][(random.next() % 2) as usize];
            let any = f32::from_bits(random.next() as u32);
            values.push(match block % 8 {
                0 => random.normal() * 0.02,
                1 => any,
                2 => f32::from_bits(random.next() as u32 & 0x81ff_ffff),
                // Midpoints of all scales near the unit, and the numbers on both sides of them.
                3 => {
                    let midpoint = sign * unit * [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0][(random.next() % 8) as usize];
                    [midpoint, midpoint.next_up(), midpoint.next_down()][(random.next() % 3) as usize]
                }
                // On the grid of some scale, with one value beside it.
                4 => {
                    let value = sign * unit * VALUES[(random.next() % 8) as usize];
                    if element == 7 { value.next_up() } else { value }
                }
                5 => f32::from_bits(coarse.to_f32().to_bits() | random.next() as u32 & 0xffff),
                6 if element == block / 8 % BLOCK_ELEMENTS => any,
                6 => sign * 0.0,
                _ => coarse.to_f32(),
            });
        }
    }
    values.into_iter().map(|value| if value.is_finite() { value } else { f32::from_bits(value.to_bits() ^ 0x0100_0000) }).collect()
}

/// Values [outputs, in] both ways at every level, by every rule.
fn assert_packed_as_defined<T: Float>(values: &[T], outputs: usize, hints: &[u8]) {
    let columns = transposed(values, values.len() / outputs);
    for rule in RULES {
        for rounding in ROUNDINGS {
            for hints in [None, Some(hints)] {
                let packing = Packing { rule, rounding };
                let expected = packed_by_definition(values, packing, hints);
                for level in Level::available() {
                    let found = packed_at(level, values, packing, hints).unwrap();
                    for (index, (found, expected)) in found.1.iter().zip(&expected.1).enumerate() {
                        let hint = hints.map(|hints| hints[index]);
                        assert_eq!(found, expected, "scale {index} by {packing:?} at {level:?} from {hint:?}");
                    }
                    assert_eq!(found.0, expected.0, "{packing:?} at {level:?}");
                    let (mut blocks, mut scales) = (vec![0; expected.0.len()], vec![0; expected.1.len()]);
                    pack_transposed_at(level, &columns, outputs, packing, hints, &mut blocks, &mut scales).unwrap();
                    assert!((blocks, scales) == expected, "{packing:?} at {level:?}, transposed");
                }
            }
        }
    }
}

#[test]
fn every_level_packs_as_defined() {
    let values = awkward_values(301 * 7);
    assert_packed_as_defined(&values, 301, &awkward_hints(&values));
}

/// Outputs that are no multiple of what is read together, and rows whose last strip is not whole.
#[test]
fn every_level_packs_f32_and_f16_as_defined() {
    for (outputs, row_blocks) in [(1, 1), (33, 5), (129, 4), (301, 9)] {
        let values = awkward_singles(outputs * row_blocks);
        let rounded: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value.clamp(-3e38, 3e38))).collect();
        let hints = awkward_hints(&rounded);
        assert_packed_as_defined(&values, outputs, &hints);
        let mut random = Random(outputs as u64);
        let mut half: Vec<f16> = values.iter().map(|&value| f16::from_f32(value.clamp(-65504.0, 65504.0))).collect();
        half.iter_mut().step_by(3).for_each(|half| *half = f16::from_bits(random.next() as u16 & 0xbfff));
        assert_packed_as_defined(&half, outputs, &hints);
    }
}

#[test]
fn every_level_unpacks_as_defined() {
    let mut random = Random(7);
    let (outputs, row_blocks) = (645, 9);
    let mut scales: Vec<u8> = (0..outputs * row_blocks).map(|_| (random.next() % 253) as u8).collect();
    // Larger scales only under codes that bf16 has.
    let mut blocks: Vec<u8> = (0..scales.len() * BLOCK_BYTES).map(|_| random.next() as u8).collect();
    (scales[5], scales[4000]) = (253, 254);
    blocks[5 * BLOCK_BYTES..6 * BLOCK_BYTES].fill(0x5d);
    blocks[4000 * BLOCK_BYTES..4001 * BLOCK_BYTES].fill(0x3b);
    let by_definition = |(block, &scale): (&[u8; BLOCK_BYTES], &u8)| reference::unpack_block(block, scale);
    let expected: Vec<bf16> = blocks.as_chunks().0.iter().zip(&scales).flat_map(by_definition).collect();
    for level in Level::available() {
        let mut found = vec![bf16::ZERO; expected.len()];
        unpack_at(level, &blocks, &scales, &mut found).unwrap();
        assert!(bits(&found) == bits(&expected), "{level:?}");
        let mut found = vec![bf16::ZERO; expected.len()];
        unpack_transposed_at(level, &blocks, &scales, outputs, &mut found).unwrap();
        assert!(bits(&found) == bits(&transposed(&expected, row_blocks * BLOCK_ELEMENTS)), "{level:?}, transposed");
    }
}

/// More than fits the caches, so that it is written past them.
#[test]
fn streamed_values_are_the_same() {
    let mut random = Random(3);
    let (outputs, row_blocks) = (2880, 97);
    let scales: Vec<u8> = (0..outputs * row_blocks).map(|_| 100 + (random.next() % 40) as u8).collect();
    let blocks: Vec<u8> = (0..scales.len() * BLOCK_BYTES).map(|_| random.next() as u8).collect();
    let mut storage = vec![bf16::ZERO; scales.len() * BLOCK_ELEMENTS + 32];
    let start = storage.as_ptr().align_offset(64);
    let by_definition = |(block, &scale): (&[u8; BLOCK_BYTES], &u8)| reference::unpack_block(block, scale);
    let expected: Vec<bf16> = blocks.as_chunks().0.iter().zip(&scales).flat_map(by_definition).collect();
    for level in Level::available() {
        let out = &mut storage[start..start + expected.len()];
        out.fill(bf16::ZERO);
        unpack_at(level, &blocks, &scales, out).unwrap();
        assert!(bits(out) == bits(&expected), "{level:?}");
        unpack_transposed_at(level, &blocks, &scales, outputs, out).unwrap();
        assert!(bits(out) == bits(&transposed(&expected, row_blocks * BLOCK_ELEMENTS)), "{level:?}, transposed");
    }
}

#[test]
fn bf16_is_packed_as_its_f32() {
    let values = awkward_values(37 * 3);
    let hints = awkward_hints(&values);
    let single: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
    for rule in RULES {
        let of_bf16 = packed_at(Level::best(), &values, rule.into(), Some(&hints)).unwrap();
        assert!(packed_at(Level::best(), &single, rule.into(), Some(&hints)).unwrap() == of_bf16, "{rule:?}");
    }
}

/// Every scale, every code as the largest of its block, every code beside it: the bytes come back.
#[test]
fn hints_return_every_block_byte_for_byte() {
    let (mut blocks, mut scales) = (Vec::new(), Vec::new());
    for scale in 0..=252u8 {
        for largest in 0..16u8 {
            for other in 0..16u8 {
                let mut block = [0; BLOCK_BYTES];
                for (index, byte) in block.iter_mut().enumerate() {
                    *byte = if index % 5 == 0 { largest << 4 | other } else { other << 4 | [other, largest, 0, 8][index % 4] };
                }
                blocks.extend(block);
                scales.push(scale);
            }
        }
        // All codes in one block.
        blocks.extend((0..16u8).map(|code| code << 4 | (15 - code)));
        scales.push(scale);
    }
    // Above 252 those blocks that bf16 has.
    for (scale, code) in [(253u8, 5u8), (253, 13), (253, 1), (254, 3), (254, 8), (254, 0)] {
        blocks.extend([code << 4 | code; BLOCK_BYTES]);
        scales.push(scale);
    }
    let values = unpacked(&blocks, &scales).unwrap();
    assert_hints_return(&values, &blocks, &scales);
    assert_hints_return(&values.iter().map(|value| value.to_f32()).collect::<Vec<_>>(), &blocks, &scales);
}

fn assert_hints_return<T: Float>(values: &[T], blocks: &[u8], scales: &[u8]) {
    let columns = transposed(values, BLOCK_ELEMENTS);
    for level in Level::available() {
        let found = packed_at(level, values, ScaleRule::Hint.into(), Some(scales)).unwrap();
        assert!(found.0 == blocks && found.1 == scales, "{level:?}");
        let (mut found_blocks, mut found_scales) = (vec![0; blocks.len()], vec![0; scales.len()]);
        let packing = ScaleRule::Hint.into();
        pack_transposed_at(level, &columns, scales.len(), packing, Some(scales), &mut found_blocks, &mut found_scales).unwrap();
        assert!(found_blocks == blocks && found_scales == scales, "{level:?}, transposed");
    }
}

/// Other rules may change the bytes of a block whose largest code is small, but no value.
#[test]
fn no_rule_changes_the_values_of_unpacked_blocks() {
    let mut random = Random(11);
    let scales: Vec<u8> = (0..20_000).map(|_| (random.next() % 253) as u8).collect();
    let blocks: Vec<u8> =
        (0..scales.len() * BLOCK_BYTES).map(|index| random.next() as u8 & [0xff, 0xbb, 0x99, 0xaa][index / BLOCK_BYTES % 4]).collect();
    let values = unpacked(&blocks, &scales).unwrap();
    for rule in RULES {
        let (blocks, scales) = packed(&values, rule);
        assert!(bits(&unpacked(&blocks, &scales).unwrap()) == bits(&values), "{rule:?}");
    }
}

/// Signal to noise, in dB, of what is packed after noise of 1% of the weights' root mean square.
#[test]
fn hints_are_better_by_8_db_after_a_small_update() {
    let mut random = Random(5);
    let weights: Vec<bf16> = (0..400_000).map(|_| bf16::from_f32(random.normal() * 0.02)).collect();
    for origin in [ScaleRule::Even, ScaleRule::Rceil, ScaleRule::Floor] {
        let (blocks, scales) = packed(&weights, origin);
        let grid = unpacked(&blocks, &scales).unwrap();
        let updated: Vec<f32> = grid.iter().map(|value| value.to_f32() + random.normal() * 0.0002).collect();
        let signal_to_noise = |rule: ScaleRule, hints: Option<&[u8]>| {
            let (blocks, scales) = packed_at(Level::best(), &updated, rule.into(), hints).unwrap();
            let back = unpacked(&blocks, &scales).unwrap();
            let noise: f64 = back.iter().zip(&updated).map(|(back, value)| f64::from(back.to_f32() - value).powi(2)).sum();
            10.0 * (updated.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / noise).log10()
        };
        let hint = signal_to_noise(ScaleRule::Hint, Some(&scales));
        for rule in [ScaleRule::Floor, ScaleRule::Rceil] {
            let other = signal_to_noise(rule, None);
            eprintln!("from {origin:?}: hint {hint:.1} dB, {rule:?} {other:.1} dB");
            assert!(hint >= other + 8.0, "from {origin:?}: hint {hint:.1} dB, {rule:?} {other:.1} dB");
        }
    }
}

#[test]
fn low_nibble_comes_first() {
    let mut block = [0; BLOCK_BYTES];
    block[0] = 0x72;
    block[15] = 0x9f;
    let out = unpacked(&block, &[127]).unwrap();
    assert_eq!([out[0], out[1], out[30], out[31]].map(bf16::to_f32), [1.0, 6.0, -6.0, -0.5]);
}

#[test]
fn every_code_under_every_scale_is_exact_and_what_exceeds_bf16_is_an_error() {
    for scale in 0..=254u8 {
        for code in 0..16u8 {
            let value = f64::from(VALUES[usize::from(code)]) * f64::from(i32::from(scale) - 127).exp2();
            match unpacked(&[code << 4 | code; BLOCK_BYTES], &[scale]) {
                Ok(out) => {
                    assert!(out.iter().all(|out| out.to_f64() == value), "code {code}, scale {scale}");
                    assert!(out.iter().all(|out| out.is_sign_negative() == (code >= 8)), "code {code}, scale {scale}");
                }
                Err(error) => {
                    assert_eq!(error, Error::Overflow { index: 0, scale });
                    assert!(value.abs() > bf16::MAX.to_f64(), "code {code}, scale {scale}");
                }
            }
        }
    }
}

#[test]
fn bad_scales_are_named_by_the_first_index() {
    let mut out = vec![bf16::ZERO; 6 * BLOCK_ELEMENTS];
    let mut blocks = [0; 6 * BLOCK_BYTES];
    let scales = [1, 2, 127, 255, 255, 127];
    for level in Level::available() {
        assert_eq!(unpack_at(level, &blocks, &scales, &mut out), Err(Error::ReservedScale { index: 3 }));
        assert_eq!(unpack_transposed_at(level, &blocks, &scales, 2, &mut out), Err(Error::ReservedScale { index: 3 }));
    }
    blocks[BLOCK_BYTES] = 7;
    let scales = [1, 254, 127, 255, 127, 127];
    for level in Level::available() {
        assert_eq!(unpack_at(level, &blocks, &scales, &mut out), Err(Error::Overflow { index: 1, scale: 254 }));
        assert_eq!(unpack_transposed_at(level, &blocks, &scales, 3, &mut out), Err(Error::Overflow { index: 1, scale: 254 }));
    }
    let error = packed_at(Level::best(), &out, ScaleRule::Hint.into(), Some(&scales)).unwrap_err();
    assert_eq!(error, Error::ReservedScale { index: 3 });
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let mut out = vec![bf16::ZERO; BLOCK_ELEMENTS];
    assert_eq!(unpack(&[0; 15], &[0], &mut out), Err(Error::Length { slice: "blocks", expected: 16, found: 15 }));
    assert_eq!(unpack(&[0; 32], &[0, 0], &mut out), Err(Error::Length { slice: "out", expected: 64, found: 32 }));
    assert_eq!(unpack_transposed(&[0; 48], &[0; 3], 2, &mut out), Err(Error::Length { slice: "scales", expected: 2, found: 3 }));
    assert_eq!(unpack_transposed(&[0; 16], &[0], 0, &mut out), Err(Error::Length { slice: "scales", expected: 0, found: 1 }));
    let even = ScaleRule::Even.into();
    assert_eq!(pack(&out[..31], even, None, &mut [0; 16], &mut [0]), Err(Error::PartialBlock { block: 32, found: 31 }));
    assert_eq!(pack(&out, even, None, &mut [0; 16], &mut []), Err(Error::Length { slice: "scales", expected: 1, found: 0 }));
    let hint = ScaleRule::Hint.into();
    let error = pack(&out, hint, Some(&[1, 2]), &mut [0; 16], &mut [0]);
    assert_eq!(error, Err(Error::Length { slice: "hints", expected: 1, found: 2 }));
    let error = pack_transposed(&out, 2, even, None, &mut [0; 16], &mut [0]);
    assert_eq!(error, Err(Error::PartialBlock { block: 32, found: 16 }));
    let error = pack_transposed(&out, 5, even, None, &mut [0; 16], &mut [0]);
    assert_eq!(error, Err(Error::Length { slice: "values", expected: 30, found: 32 }));
    assert_eq!(pack::<bf16>(&[], even, None, &mut [], &mut []), Ok(()));
    assert_eq!(pack_transposed::<bf16>(&[], 7, even, None, &mut [], &mut []), Ok(()));
    assert_eq!(unpack_transposed(&[], &[], 0, &mut []), Ok(()));
}

#[test]
fn values_that_are_no_numbers_are_named_by_the_first_index() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1.0f32; 70 * BLOCK_ELEMENTS];
        (values[1400], values[1999]) = (bad, bad);
        assert_first_is_named(&values, 1400);
        assert_first_is_named(&values.iter().map(|&value| bf16::from_f32(value)).collect::<Vec<_>>(), 1400);
        assert_first_is_named(&values.iter().map(|&value| f16::from_f32(value)).collect::<Vec<_>>(), 1400);
    }
    // A NaN of which bf16 would see nothing.
    let mut values = vec![0.0f32; 70 * BLOCK_ELEMENTS];
    values[37] = f32::from_bits(0x7f80_0001);
    assert_first_is_named(&values, 37);
}

/// Both ways at every level, by every rule.
fn assert_first_is_named<T: Float>(values: &[T], index: usize) {
    let (mut blocks, mut scales) = (vec![0; 70 * BLOCK_BYTES], vec![0; 70]);
    let expected = Err(Error::NotFinite { index });
    for rule in RULES {
        for level in Level::available() {
            for hints in [None, Some(&[127; 70][..])] {
                assert_eq!(pack_at(level, values, rule.into(), hints, &mut blocks, &mut scales), expected);
                assert_eq!(pack_transposed_at(level, values, 35, rule.into(), hints, &mut blocks, &mut scales), expected);
                assert_eq!(pack_transposed_at(level, values, 70, rule.into(), hints, &mut blocks, &mut scales), expected);
            }
        }
    }
}

#[test]
fn zeros_keep_their_sign_and_get_scale_0_or_the_hint() {
    let mut values = [bf16::ZERO; BLOCK_ELEMENTS];
    values[1] = bf16::NEG_ZERO;
    for rule in RULES {
        let (blocks, scales) = packed(&values, rule);
        assert_eq!((blocks[0], scales[0]), (0x80, 0), "{rule:?}");
        let packing = Packing { rule, rounding: Rounding::TowardZero };
        assert_eq!(packed_at(Level::best(), &values, packing, None).unwrap().0, [0; BLOCK_BYTES], "{rule:?}");
    }
    let (blocks, scales) = packed_at(Level::best(), &values, ScaleRule::Hint.into(), Some(&[117])).unwrap();
    assert_eq!((blocks[0], scales[0]), (0x80, 117));
}

/// Each finite bf16 is once the largest of a block: what comes back is finite and within a step, or clipped at 6 units.
#[test]
fn every_magnitude_packs_to_what_can_be_unpacked() {
    let values: Vec<bf16> = (0..0x7f80).flat_map(|bits| [bf16::from_bits(bits); BLOCK_ELEMENTS]).collect();
    for rule in RULES {
        let (blocks, scales) = packed(&values, rule);
        let back = unpacked(&blocks, &scales).unwrap();
        for (index, (value, back)) in values.iter().zip(back).enumerate() {
            let (value, unit) = (value.to_f64(), f64::from(scale::value(scales[index / BLOCK_ELEMENTS])));
            let bound = if value > 6.0 * unit { value - 6.0 * unit } else { unit };
            assert!((back.to_f64() - value).abs() <= bound, "{value} came back as {back} under {rule:?}");
        }
    }
}

proptest! {
    /// Elements are the nearest ones under the chosen scale, by the definition in f64.
    #[test]
    fn elements_are_nearest(bits in proptest::collection::vec(0..0x7f80u16, BLOCK_ELEMENTS)) {
        let values: Vec<bf16> = bits.into_iter().map(bf16::from_bits).collect();
        for rule in RULES {
            let (blocks, scales) = packed(&values, rule);
            let unit = f64::from(scale::value(scales[0]));
            for (found, value) in unpacked(&blocks, &scales).unwrap().iter().zip(&values) {
                let error = (found.to_f64() - value.to_f64()).abs();
                let distances = VALUES[..8].iter().map(|&code| (f64::from(code) * unit - value.to_f64()).abs());
                prop_assert_eq!(error, distances.fold(f64::INFINITY, f64::min));
            }
        }
    }

    /// No scale that was passed over has a smaller error.
    #[test]
    fn the_smallest_error_is_found(values in proptest::collection::vec(-8.0f32..8.0, BLOCK_ELEMENTS), hint in 120..135u8) {
        let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
        let error = |(blocks, scales): &Packed| -> f64 {
            let back = unpacked(blocks, scales).unwrap();
            back.iter().zip(&values).map(|(back, value)| (back.to_f64() - value.to_f64()).powi(2)).sum()
        };
        let found = error(&packed_at(Level::best(), &values, ScaleRule::Hint.into(), Some(&[hint])).unwrap());
        let mse = error(&packed(&values, ScaleRule::Mse));
        prop_assert!(found <= mse);
        for rule in [ScaleRule::Even, ScaleRule::Floor, ScaleRule::Rceil] {
            prop_assert!(mse <= error(&packed(&values, rule)));
        }
    }

    /// Blocks of few exponents, where scales are close to each other, and of any.
    #[test]
    fn f32_is_packed_as_defined(
        bits in proptest::collection::vec(any::<u32>(), 35 * BLOCK_ELEMENTS),
        exponents in 1..254u32,
        spread in 1..6u32,
        hints in proptest::collection::vec(-3..7i32, 35),
    ) {
        let within = |bits: u32| bits & 0x807f_ffff | (exponents + (bits >> 23 & 0xff) % spread).min(254) << 23;
        let values: Vec<f32> = bits.into_iter().map(|bits| f32::from_bits(within(bits))).collect();
        let hints: Vec<u8> = hints.into_iter().map(|above| (exponents as i32 + above).clamp(0, 254) as u8).collect();
        assert_packed_as_defined(&values, 35, &hints);
    }
}
