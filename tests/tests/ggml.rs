//! The block types of ggml against ggml itself: every byte that its quantizers write, every value that it reads back.

use std::fs;
use std::path::Path;

use ft_quant::Error;
use ft_quant::ggml::Type;
use ft_tests::program::{peer, succeed};
use ft_tests::scratch::Scratch;

/// Values of each kind of rows.
const VALUES: usize = 57_600;

/// Width of a row, which is no multiple of 256 for the types that need none.
fn columns(kind: Type) -> usize {
    if kind.block_elements() == 256 { 3840 } else { 2880 }
}

/// Below this, ggml converts a negative exponent to an unsigned byte, which C leaves undefined.
const LEAST_MXFP4: f32 = f32::from_bits(2 << 23);

fn name(kind: Type) -> &'static str {
    match kind {
        Type::Q4_0 => "q4_0",
        Type::Q5_0 => "q5_0",
        Type::Q5_1 => "q5_1",
        Type::Q8_0 => "q8_0",
        Type::Q4K => "q4_K",
        Type::Q5K => "q5_K",
        Type::Q6K => "q6_K",
        Type::Iq4Nl => "iq4_nl",
        Type::Mxfp4 => "mxfp4",
        other => panic!("{other:?} has no peer"),
    }
}

/// Whether squares of the values overflowed in ggml's search for the scale.
fn has_nan_scale(kind: Type, block: &[u8]) -> bool {
    kind == Type::Iq4Nl && u16::from_le_bytes([block[0], block[1]]) & 0x7fff > 0x7c00
}

/// Whether ggml writes zeros for values that are too large for the type, and takes them for valid.
fn loses_values(kind: Type, row: &[f32]) -> bool {
    kind == Type::Q6K && row.iter().any(|value| value.abs() > 1e11)
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(path: &Path) -> Vec<f32> {
    bytes(path).as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What ggml says of some rows of blocks.
struct Peer {
    blocks: Vec<u8>,
    values: Vec<f32>,
    is_valid: Vec<u8>,
}

impl Peer {
    fn read(folder: &Path, label: &str) -> Self {
        let file = |ending| folder.join(format!("{label}.{ending}"));
        Self { blocks: bytes(&file("blocks")), values: floats(&file("values")), is_valid: bytes(&file("valid")) }
    }

    /// Blocks, values and whether they are valid, row by row.
    fn rows(&self, kind: Type) -> impl Iterator<Item = (&[u8], &[f32], bool)> {
        let blocks = self.blocks.chunks_exact(columns(kind) / kind.block_elements() * kind.block_bytes());
        blocks
            .zip(self.values.chunks_exact(columns(kind)))
            .zip(&self.is_valid)
            .map(|((blocks, values), valid)| (blocks, values, *valid == 1))
    }
}

/// Reads a row back, which has to give ggml's values, or an error where ggml refuses the row or has no finite values for it.
fn compare_values(kind: Type, blocks: &[u8], expected: &[f32], is_valid: bool, what: &str) {
    let mut values = vec![0.0; expected.len()];
    match kind.dequantize(blocks, &mut values) {
        Ok(()) => {
            assert!(is_valid, "{what}: ggml refuses it");
            assert!(bits(&values) == bits(expected), "{what}: values differ");
        }
        Err(Error::Overflow { index, .. }) => assert!(expected[32 * index..][..32].iter().any(|value| !value.is_finite()), "{what}"),
        Err(error) => assert!(!is_valid, "{what}: {error}, and ggml takes it"),
    }
}

#[test]
fn every_byte_and_every_value_equals_ggml() {
    let scratch = Scratch::new("ggml");
    let folder = scratch.join("cases");
    succeed(&mut peer("ggml.py", [&folder]));
    let rows = floats(&folder.join("rows.f32"));
    let names: Vec<String> = serde_json::from_slice(&bytes(&folder.join("rows.json"))).expect("a list of names");
    assert!(names.len() >= 30, "{} kinds of rows only", names.len());
    for kind in Type::ALL {
        let peer = Peer::read(&folder, name(kind));
        let (mut num_compared, mut num_rows, mut num_refused, mut num_lost) = (0, 0, 0, 0);
        for (index, (row, (expected, values, is_valid))) in rows.chunks_exact(columns(kind)).zip(peer.rows(kind)).enumerate() {
            let what = format!("{} of row {index}, {}", name(kind), names[index * columns(kind) / VALUES]);
            let mut blocks = vec![0; expected.len()];
            let outcome = kind.quantize(row, &mut blocks);
            let is_defined = |block: &[f32]| {
                let largest = block.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
                kind != Type::Mxfp4 || largest == 0.0 || largest >= LEAST_MXFP4
            };
            let ours_and_theirs = blocks.chunks_exact(kind.block_bytes()).zip(expected.chunks_exact(kind.block_bytes()));
            let mut all_defined = true;
            for (place, (block, (found, expected))) in row.chunks_exact(kind.block_elements()).zip(ours_and_theirs).enumerate() {
                if is_defined(block) {
                    // Codes under a scale that is NaN changed from one version of ggml to the next.
                    let compared = if has_nan_scale(kind, expected) { 2 } else { expected.len() };
                    assert_eq!(found[..compared], expected[..compared], "{what}, block {place}: {block:?}");
                    num_compared += 1;
                } else {
                    assert_eq!(found[0], 0, "{what}, block {place}");
                    all_defined = false;
                }
            }
            if loses_values(kind, row) {
                assert!(outcome.is_err(), "{what}: values are lost");
                num_lost += usize::from(is_valid);
            } else if all_defined {
                assert_eq!(outcome.is_ok(), is_valid, "{what}: {outcome:?}");
            }
            if all_defined {
                compare_values(kind, expected, values, is_valid, &what);
            }
            num_rows += 1;
            num_refused += usize::from(outcome.is_err());
        }
        let random = Peer::read(&folder, &format!("{}.random", name(kind)));
        for (index, (blocks, values, is_valid)) in random.rows(kind).enumerate() {
            compare_values(kind, blocks, values, is_valid, &format!("{} of random row {index}", name(kind)));
        }
        eprintln!("{}: {num_compared} blocks equal, {num_refused} of {num_rows} rows refused, {num_lost} by us alone", name(kind));
        assert!(num_compared * kind.block_elements() > 1_500_000, "{num_compared} blocks only");
    }
}
