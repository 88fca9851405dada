//! What the fuzz targets do with their input, here for the plain test that replays their corpus too.
//!
//! A reader may refuse whatever it is given; it may not panic, and what it takes has to be consistent.

use std::fs;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::gguf::{GgufFile, GgufHeader};
use crate::peft::PeftAdapter;
use crate::safetensors::SafetensorsFile;

/// Reads `bytes` as a GGUF file, and as a model in one.
pub fn gguf(bytes: &[u8]) {
    let header = GgufHeader::parse(bytes);
    with_file("model.gguf", bytes, |directory| {
        let path = directory.join("model.gguf");
        let Ok(file) = GgufFile::open(&path) else { return };
        assert!(header.is_ok() || file.files().len() > 1, "a file is what its head is");
        for view in file.tensors() {
            assert_eq!(view.tensor_type.byte_length(view.shape), Some(view.bytes.len() as u64), "{}", view.name);
        }
        let Ok(checkpoint) = Checkpoint::open(&path) else { return };
        for spec in checkpoint.specs() {
            if let Ok(tensor) = checkpoint.tensor(&spec.name) {
                assert_eq!(tensor.dtype.byte_length(tensor.shape), Some(tensor.bytes.len() as u64), "{}", spec.name);
            }
        }
    });
}

/// Reads `bytes` as a safetensors file.
pub fn safetensors(bytes: &[u8]) {
    with_file("model.safetensors", bytes, |directory| {
        let Ok(file) = SafetensorsFile::open(&directory.join("model.safetensors")) else { return };
        for view in file.tensors() {
            assert_eq!(view.dtype.byte_length(view.shape), Some(view.bytes.len() as u64), "{}", view.name);
        }
    });
}

/// Reads an adapter: its config up to the first byte of 0, its tensors after it.
pub fn adapter(bytes: &[u8]) {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (config, tensors) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    with_file("adapter_config.json", config, |directory| {
        if fs::write(directory.join("adapter_model.safetensors"), tensors).is_err() {
            return;
        }
        let Ok(adapter) = PeftAdapter::open(directory) else { return };
        for pair in adapter.pairs() {
            assert_eq!(pair.a_shape.iter().product::<usize>(), pair.a.len(), "{:?}", pair.target);
            assert_eq!(pair.b_shape.iter().product::<usize>(), pair.b.len(), "{:?}", pair.target);
        }
    });
}

/// Runs `read` on a directory with one file; where there is no room for one, there is nothing to see.
fn with_file(name: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let Ok(directory) = tempfile::tempdir() else { return };
    if fs::write(directory.path().join(name), bytes).is_ok() {
        read(directory.path());
    }
}
