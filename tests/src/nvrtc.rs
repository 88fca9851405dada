//! Where the tests find NVRTC: with libtorch on a machine with a GPU, else among the peers' packages.

use std::path::PathBuf;

use crate::program::repository;

/// The folders that may hold it.
#[must_use]
pub fn folders() -> Vec<PathBuf> {
    let libraries = "nvidia/cu13/lib";
    let python = std::fs::read_dir(repository().join(".venv/lib")).into_iter().flatten().flatten();
    let packages = python.map(|version| version.path().join("site-packages").join(libraries));
    packages.chain([repository().join("third_party/libtorch").join(libraries)]).collect()
}
