//! A reader of f32 safetensors, as small as the format allows: the tests do not lean on the reader that they test.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// A tensor in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its dims.
    pub shape: Vec<usize>,
    /// Its values, row by row.
    pub values: Vec<f32>,
}

/// Reads every tensor of a file.
///
/// # Panics
/// When the file is not a safetensors file or holds a tensor that is not f32.
#[must_use]
pub fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a safetensors file holds the length of its header");
    let header_bytes = usize::try_from(u64::from_le_bytes(*length)).expect("the header fits in memory");
    let (header, body) = rest.split_at(header_bytes);
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).expect("the header is a JSON object");
    header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(|(name, entry)| {
            assert_eq!(entry["dtype"], "F32", "{name} in {}", path.display());
            let tensor = Tensor { shape: sizes(&entry["shape"]), values: floats(&body[span(&entry["data_offsets"])]) };
            assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len(), "{name} in {}", path.display());
            (name, tensor)
        })
        .collect()
}

fn sizes(list: &Value) -> Vec<usize> {
    let list = list.as_array().expect("a list of sizes");
    list.iter().map(|size| usize::try_from(size.as_u64().expect("a size")).expect("a size")).collect()
}

fn span(offsets: &Value) -> std::ops::Range<usize> {
    let offsets = sizes(offsets);
    offsets[0]..offsets[1]
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (words, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty(), "f32 data is a whole number of words");
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

/// How far `found` is from `expected`.
#[derive(Debug, Clone, Copy)]
pub struct Distance {
    /// The largest difference, in standard deviations of the expected values.
    pub largest_in_deviations: f64,
    /// The root mean square of the differences, in standard deviations of the expected values.
    pub typical_in_deviations: f64,
    /// The norm of the difference over the norm of the expected values.
    pub relative: f64,
}

/// Compares two tensors.
///
/// # Panics
/// When their shapes differ or a value is not finite.
#[must_use]
pub fn distance(name: &str, found: &Tensor, expected: &Tensor) -> Distance {
    assert_eq!(found.shape, expected.shape, "shape of {name}");
    #[expect(clippy::cast_precision_loss, reason = "a count of values")]
    let count = expected.values.len() as f64;
    let mean = expected.values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let (mut largest, mut squares, mut norm, mut spread) = (0.0_f64, 0.0, 0.0, 0.0);
    for (place, (&found, &expected)) in found.values.iter().zip(&expected.values).enumerate() {
        assert!(found.is_finite(), "{name} holds {found} at {place}");
        let (found, expected) = (f64::from(found), f64::from(expected));
        largest = largest.max((found - expected).abs());
        squares += (found - expected).powi(2);
        norm += expected.powi(2);
        spread += (expected - mean).powi(2);
    }
    let deviation = (spread / count).sqrt();
    Distance {
        largest_in_deviations: largest / deviation,
        typical_in_deviations: (squares / count).sqrt() / deviation,
        relative: (squares / norm).sqrt(),
    }
}
