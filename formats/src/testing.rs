//! Small models on disk for tests, and their bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::checkpoint::{Checkpoint, Config, ExpertStorage, write_random_model};
use crate::safetensors::{SafetensorsFile, SafetensorsWriter, TensorSpec};

/// Tensors of a file with their bytes.
pub(crate) type Tensors = Vec<(TensorSpec, Vec<u8>)>;

/// A folder for models.
pub(crate) struct Models {
    root: TempDir,
}

impl Models {
    pub(crate) fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A random model whose sizes are multiples of 32 and of nothing else in common.
    pub(crate) fn random(&self, name: &str, storage: ExpertStorage) -> PathBuf {
        let mut config = Config::nano();
        for (key, value) in [
            ("hidden_size", "96"),
            ("intermediate_size", "160"),
            ("vocab_size", "1000"),
            ("num_hidden_layers", "2"),
            ("num_local_experts", "5"),
        ] {
            config.set(key, value).unwrap();
        }
        config.has_mxfp4_experts = storage == ExpertStorage::Mxfp4;
        write_random_model(&self.path(name), &config, storage, 3, &mut |_, _| ()).unwrap()
    }

    /// Nothing but these is left.
    pub(crate) fn assert_only(&self, names: &[&str]) {
        let mut found: Vec<String> =
            fs::read_dir(self.root.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        assert_eq!(found, names);
    }
}

/// Every tensor's bytes by name.
pub(crate) fn tensors(model: &Path) -> BTreeMap<String, Vec<u8>> {
    let checkpoint = Checkpoint::open(model).unwrap();
    checkpoint.specs().iter().map(|spec| (spec.name.clone(), checkpoint.tensor(&spec.name).unwrap().bytes.to_vec())).collect()
}

/// Rewrites the single file of a model.
pub(crate) fn change_tensors(model: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = model.join("model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() };
    let mut tensors: Tensors = file.tensors().map(|view| (spec(view.name, view.dtype, view.shape), view.bytes.to_vec())).collect();
    drop(file);
    change(&mut tensors);
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = SafetensorsWriter::create(&path, &specs, &BTreeMap::new()).unwrap();
    tensors.iter().for_each(|(spec, bytes)| writer.write(&spec.name, bytes).unwrap());
    writer.finish().unwrap();
}
