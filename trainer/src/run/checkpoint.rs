//! Checkpoints of a run: everything that it takes to go on as if it had never stopped.
//!
//! A checkpoint is written to a temporary directory, synced, given a manifest with sizes and hashes last, and renamed. A reader takes
//! only a directory whose manifest verifies, so a kill at any instant leaves the previous checkpoint as the newest valid one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ft_formats::dtype::Dtype;
use ft_formats::safetensors::{SafetensorsFile, SafetensorsWriter, TensorSpec};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::directory::{sync_directory, write_atomically};
use crate::adapters::Trainable;
use crate::error::{Error, Result};
use crate::optimizer::AdamW;
use crate::torch::ops::{Named, to_f32_vec};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// What a run knows besides its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Version of this layout.
    pub version: u32,
    /// Steps done.
    pub step: usize,
    /// What the run was made from; all of it must be the same to go on.
    pub identity: Identity,
    /// Bytes of `metrics.jsonl` up to this step.
    pub metrics_bytes: u64,
    /// Bytes of `samples.md` up to this step.
    pub samples_bytes: u64,
    /// Loss of the first step.
    pub first_loss: Option<f64>,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
    /// Loss of the last evaluation.
    pub validation_loss: Option<f64>,
}

/// Fingerprints of what decides a run's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Of the settings that change the numbers.
    pub recipe: String,
    /// Of the base model's config and files.
    pub model: String,
    /// Of the training samples' ids and weights.
    pub dataset: String,
}

impl Identity {
    /// The first thing in which two identities differ.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        [(self.recipe != other.recipe, "recipe"), (self.model != other.model, "base model"), (self.dataset != other.dataset, "dataset")]
            .into_iter()
            .find_map(|(differs, what)| differs.then_some(what))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    files: BTreeMap<String, ManifestEntry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ManifestEntry {
    bytes: u64,
    blake3: String,
}

/// Writes the checkpoint of `state.step` below `directory`, and removes all but the newest `keep`.
///
/// # Errors
/// [`Error::Io`] or an error of the tensor writer, for instance on a full disk; older checkpoints are then still there.
pub fn write(directory: &Path, state: &RunState, trainables: &[Trainable], optimizer: &AdamW, keep: usize) -> Result<PathBuf> {
    let complete = directory.join(format!("step-{}", state.step));
    let partial = directory.join(format!(".step-{}.partial", state.step));
    remove(&partial)?;
    fs::create_dir_all(&partial).map_err(|source| io("create", &partial, source))?;
    let result = write_files(&partial, state, trainables, optimizer).and_then(|()| {
        remove(&complete)?;
        fs::rename(&partial, &complete).map_err(|source| io("rename", &partial, source))?;
        sync_directory(directory)
    });
    if let Err(error) = result {
        remove(&partial)?;
        return Err(error);
    }
    for (_, old) in list(directory)?.into_iter().rev().skip(keep.max(1)) {
        remove(&old)?;
    }
    Ok(complete)
}

fn write_files(partial: &Path, state: &RunState, trainables: &[Trainable], optimizer: &AdamW) -> Result<()> {
    let weights: Vec<(String, &Tensor)> = trainables.iter().map(|trainable| (trainable.name.clone(), &trainable.tensor)).collect();
    write_tensors(&partial.join(WEIGHTS), &weights)?;
    let moments: Vec<(String, &Tensor)> = trainables
        .iter()
        .zip(optimizer.moments())
        .flat_map(|(trainable, [first, second])| {
            [(format!("{}.first", trainable.name), first), (format!("{}.second", trainable.name), second)]
        })
        .collect();
    write_tensors(&partial.join(OPTIMIZER), &moments)?;
    write_atomically(&partial.join(STATE), &json(partial, state)?)?;
    let mut files = BTreeMap::new();
    for name in [WEIGHTS, OPTIMIZER, STATE] {
        files.insert(name.to_owned(), entry(&partial.join(name))?);
    }
    sync_directory(partial)?;
    write_atomically(&partial.join(MANIFEST), &json(partial, &Manifest { version: 1, files })?)?;
    sync_directory(partial)
}

/// The result of a look for checkpoints.
#[derive(Debug)]
pub struct Newest {
    /// The newest checkpoint that is whole.
    pub found: Option<(PathBuf, RunState)>,
    /// A word for each newer one that had to be passed over.
    pub passed_over: Vec<String>,
}

/// Looks for the newest checkpoint that is whole.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be listed.
pub fn newest(directory: &Path) -> Result<Newest> {
    let mut passed_over = Vec::new();
    for (_, path) in list(directory)?.into_iter().rev() {
        match verify(&path) {
            Ok(state) => return Ok(Newest { found: Some((path, state)), passed_over }),
            Err(error) => {
                passed_over.push(format!("checkpoint {} is damaged and was passed over: {}", path.display(), crate::error::chain(&error)))
            }
        }
    }
    Ok(Newest { found: None, passed_over })
}

/// Puts the checkpoint's values into the trainables and the optimizer's moments.
///
/// # Errors
/// [`Error::CheckpointMismatch`] when it belongs to another run, or the reader's errors.
pub fn restore(path: &Path, state: &RunState, identity: &Identity, trainables: &[Trainable], optimizer: &mut AdamW) -> Result<()> {
    if let Some(what) = state.identity.difference(identity) {
        return Err(Error::CheckpointMismatch { path: path.to_path_buf(), what });
    }
    let weights = SafetensorsFile::open(&path.join(WEIGHTS))?;
    for trainable in trainables {
        fill(&trainable.tensor, &weights, &trainable.name)?;
    }
    let moments = SafetensorsFile::open(&path.join(OPTIMIZER))?;
    for (trainable, [first, second]) in trainables.iter().zip(optimizer.moments()) {
        fill(first, &moments, &format!("{}.first", trainable.name))?;
        fill(second, &moments, &format!("{}.second", trainable.name))?;
    }
    optimizer.resume_at(state.step);
    Ok(())
}

fn fill(tensor: &Tensor, file: &SafetensorsFile, name: &str) -> Result<()> {
    let view = file.tensor(name)?;
    let found: Vec<i64> = view.shape.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect();
    if found != tensor.size() {
        return Err(Error::Shape { operation: "restore", tensor: "checkpoint", expected: "the shape of the model's tensor", found });
    }
    tch::no_grad(|| Tensor::f_from_data_size(view.bytes, &found, Kind::Float).and_then(|values| tensor.shallow_clone().f_copy_(&values)))
        .named("restore", &[tensor])
}

fn write_tensors(path: &Path, tensors: &[(String, &Tensor)]) -> Result<()> {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, tensor)| TensorSpec {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: tensor.size().iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect(),
        })
        .collect();
    let mut writer = SafetensorsWriter::create(path, &specs, &BTreeMap::new())?;
    for (name, tensor) in tensors {
        writer.write(name, bytemuck::cast_slice(&to_f32_vec(tensor)?))?;
    }
    Ok(writer.finish()?)
}

fn verify(path: &Path) -> Result<RunState> {
    let manifest: Manifest = read_json(&path.join(MANIFEST))?;
    for (name, expected) in &manifest.files {
        let file = path.join(name);
        if entry(&file)? != *expected {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "its bytes are not those of the manifest");
            return Err(io("verify", &file, source));
        }
    }
    read_json(&path.join(STATE))
}

fn entry(path: &Path) -> Result<ManifestEntry> {
    let hash = || -> std::io::Result<ManifestEntry> {
        let mut hasher = blake3::Hasher::new();
        let bytes = std::io::copy(&mut fs::File::open(path)?, &mut hasher)?;
        Ok(ManifestEntry { bytes, blake3: hasher.finalize().to_hex().to_string() })
    };
    hash().map_err(|source| io("read", path, source))
}

/// Checkpoint directories by step, oldest first.
fn list(directory: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io("read", directory, source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| io("read", directory, source))?.path();
        let step = path.file_name().and_then(|name| name.to_str()?.strip_prefix("step-")?.parse().ok());
        found.extend(step.map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path, error)),
        _ => Ok(()),
    }
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|source| io("read", path, source))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { action, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::AdamWOptions;

    fn identity() -> Identity {
        Identity { recipe: "r".into(), model: "m".into(), dataset: "d".into() }
    }

    fn state(step: usize) -> RunState {
        RunState {
            version: 1,
            step,
            identity: identity(),
            metrics_bytes: 7,
            samples_bytes: 0,
            first_loss: Some(0.1 + 0.2),
            last_loss: None,
            validation_loss: None,
        }
    }

    fn fixture() -> (Vec<Trainable>, AdamW) {
        tch::manual_seed(1);
        let tensor = Tensor::randn([3, 5], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let options = AdamWOptions { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.0 };
        let mut optimizer = AdamW::new(options, &[tensor.shallow_clone()]).unwrap();
        optimizer.step(&mut [tensor.detach()], &[tensor.ones_like()], 0.1).unwrap();
        (vec![Trainable { name: "w".into(), tensor }], optimizer)
    }

    #[test]
    fn what_was_written_comes_back_to_the_bit() {
        let directory = tempfile::tempdir().unwrap();
        let (trainables, optimizer) = fixture();
        write(directory.path(), &state(4), &trainables, &optimizer, 2).unwrap();
        let Newest { found, passed_over } = newest(directory.path()).unwrap();
        let (path, found) = found.unwrap();
        assert_eq!((&found, passed_over.len()), (&state(4), 0));
        let blank = Tensor::zeros([3, 5], (Kind::Float, tch::Device::Cpu));
        let options = AdamWOptions { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.0 };
        let mut restored = AdamW::new(options, &[blank.shallow_clone()]).unwrap();
        let blanks = [Trainable { name: "w".into(), tensor: blank }];
        restore(&path, &found, &identity(), &blanks, &mut restored).unwrap();
        assert!(blanks[0].tensor.equal(&trainables[0].tensor));
        assert!(restored.moments()[0][1].equal(&optimizer.moments()[0][1]));
    }

    #[test]
    fn a_damaged_newest_checkpoint_is_passed_over_with_a_word() {
        let directory = tempfile::tempdir().unwrap();
        let (trainables, optimizer) = fixture();
        for step in [1, 2] {
            write(directory.path(), &state(step), &trainables, &optimizer, 2).unwrap();
        }
        let damaged = directory.path().join("step-2").join(WEIGHTS);
        let mut bytes = fs::read(&damaged).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&damaged, bytes).unwrap();
        let Newest { found, passed_over } = newest(directory.path()).unwrap();
        assert_eq!(found.unwrap().1.step, 1);
        assert!(passed_over[0].contains("step-2") && passed_over[0].contains("weights.safetensors"), "{passed_over:?}");
    }

    #[test]
    fn only_the_newest_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (trainables, optimizer) = fixture();
        for step in [9, 10, 11] {
            write(directory.path(), &state(step), &trainables, &optimizer, 2).unwrap();
        }
        let steps: Vec<usize> = list(directory.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [10, 11]);
    }

    #[test]
    fn a_checkpoint_of_another_dataset_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (trainables, mut optimizer) = fixture();
        let path = write(directory.path(), &state(1), &trainables, &optimizer, 2).unwrap();
        let other = Identity { dataset: "another".into(), ..identity() };
        let error = restore(&path, &state(1), &other, &trainables, &mut optimizer).unwrap_err();
        assert!(matches!(error, Error::CheckpointMismatch { what: "dataset", .. }));
    }
}
