//! The corpus of the fuzz targets, replayed: whatever once was interesting stays without harm.

use std::fs;
use std::path::Path;

use ft_formats::fuzzing;

/// Gives every file of a target's corpus to the target.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("a file");
        // The test's own output names the one that fails.
        eprintln!("{}", path.display());
        target(&bytes);
        // All beginnings, too: what is cut is another case each.
        (0..bytes.len().min(600)).for_each(|length| target(&bytes[..length]));
        count += 1;
    }
    assert!(count >= 8, "{} holds {count} files", folder.display());
}

#[test]
fn gguf_files_do_no_harm() {
    replay("gguf", fuzzing::gguf);
}

#[test]
fn safetensors_files_do_no_harm() {
    replay("safetensors", fuzzing::safetensors);
}

#[test]
fn adapters_do_no_harm() {
    replay("adapter", fuzzing::adapter);
}
