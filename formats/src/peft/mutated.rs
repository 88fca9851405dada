//! Adapters with bytes changed at random: refused, or read as one that can be written and comes back the same.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::round_trip::{model, pair, targets};
use super::{AdapterConfig, AdapterPair, AdapterTarget, CONFIG, PeftAdapter, TENSORS, write_adapter};

/// A small adapter of everything, with other ranks and scalings for some.
fn write(directory: &Path) {
    let of = |target| match target {
        AdapterTarget::Router { .. } => pair(target, 3, 0.5, &model()),
        _ => pair(target, 2, 2.0, &model()),
    };
    let pairs: Vec<AdapterPair> = targets(&[1]).into_iter().map(of).collect();
    write_adapter(directory, &AdapterConfig::for_pairs("base", 2, 4.0, false, &pairs), &pairs).unwrap();
}

/// Places as fractions of the file, with what is put there: at most of them one of the bytes that mean something in JSON.
fn edits() -> impl Strategy<Value = Vec<(f64, u8)>> {
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(b"\"{}[],:.-0123456789eE \\tfn".to_vec())];
    // Half of them among the first bytes, where the header is.
    let place = prop_oneof![0.0..1.0f64, 0.0..0.1f64];
    proptest::collection::vec((place, byte), 1..4)
}

fn at(place: f64, length: usize) -> usize {
    ((place * length as f64) as usize).min(length - 1)
}

/// Replaces, puts in or takes out single bytes, and cuts the end off.
fn mutated(mut bytes: Vec<u8>, edits: &[(f64, u8)], kind: u8, cut: Option<f64>) -> Vec<u8> {
    for &(place, byte) in edits {
        let index = at(place, bytes.len());
        match kind {
            0 => bytes.insert(index, byte),
            1 if bytes.len() > 1 => drop(bytes.remove(index)),
            _ => bytes[index] = byte,
        }
    }
    if let Some(cut) = cut {
        bytes.truncate(at(cut, bytes.len()));
    }
    bytes
}

/// Panics where an adapter is read that is none.
fn check(directory: &Path) -> bool {
    let Ok(adapter) = PeftAdapter::open_for(directory, &model()) else { return false };
    for pair in adapter.pairs() {
        let [_, input, output] = pair.target.dims(&model());
        assert_eq!((pair.a_shape.last(), pair.b_shape.iter().nth_back(1)), (Some(&input), Some(&output)));
        assert!(pair.scaling.is_finite() && pair.a.iter().chain(&pair.b).all(|value| value.is_finite()));
    }
    let again = directory.join("again");
    write_adapter(&again, adapter.config(), adapter.pairs()).unwrap();
    let back = PeftAdapter::open_for(&again, &model()).unwrap();
    assert_eq!((back.config(), back.pairs()), (adapter.config(), adapter.pairs()));
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn changed_bytes_are_refused_or_make_another_adapter(
        in_config in any::<bool>(), edits in edits(), kind in 0u8..4, cut in proptest::option::weighted(0.1, 0.0..1.0f64),
    ) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("adapter");
        write(&directory);
        let path = directory.join(if in_config { CONFIG } else { TENSORS });
        fs::write(&path, mutated(fs::read(&path).unwrap(), &edits, kind, cut)).unwrap();
        check(&directory);
    }
}

/// Single changes, of which it is known which way they go.
#[test]
fn a_corpus_of_changes_is_refused_or_read() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("adapter");
    write(&directory);
    assert!(check(&directory));
    for (old, new, is_read) in [
        ("\"lora_alpha\": 4", "\"lora_alpha\": 9", true),
        ("\"lora_alpha\": 4", "\"lora_alpha\": 4e300", true),
        ("\"lora_alpha\": 4", "\"lora_alpha\": 4e309", false),
        ("\"lora_alpha\": 4", "\"lora_alpha\": -0.0", true),
        ("\"r\": 2", "\"r\": 3", false),
        ("\"r\": 2", "\"r\": 18446744073709551615", false),
        ("\"r\": 2", "\"r\": 1e18", false),
        ("\"use_rslora\": false", "\"use_rslora\": true", true),
        ("\"base\"", "null", true),
        ("mlp.router.weight\": 3", "mlp.router.weight\": 1", false),
        ("mlp.router.weight\": 3", "mlp.router.weight(((\": 3", false),
        ("mlp.router.weight\": 3", "(a{99}){99}{99}\": 3", false),
    ] {
        write(&directory);
        let path = directory.join(CONFIG);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{old} in {text}");
        fs::write(&path, text.replacen(old, new, 1)).unwrap();
        assert_eq!(check(&directory), is_read, "{old} to {new}");
    }
    write(&directory);
    let path = directory.join(TENSORS);
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 9, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(!check(&directory), "{length} bytes");
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert!(!check(&directory));
}
