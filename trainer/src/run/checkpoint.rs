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
use crate::optimizer::{AdamW, Moments, MomentsKind};
use crate::torch::ops::{Named, to_f32_vec, to_u8_vec};

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
    write_tensors(&partial.join(OPTIMIZER), &named_moments(trainables, optimizer))?;
    write_atomically(&partial.join(STATE), &json(partial, state)?)?;
    let mut files = BTreeMap::new();
    for name in [WEIGHTS, OPTIMIZER, STATE] {
        files.insert(name.to_owned(), entry(&partial.join(name))?);
    }
    sync_directory(partial)?;
    write_atomically(&partial.join(MANIFEST), &json(partial, &Manifest { version: 1, files })?)?;
    sync_directory(partial)
}

/// Every tensor of the optimizer, by its name in the file.
fn named_moments<'a>(trainables: &[Trainable], optimizer: &'a AdamW) -> Vec<(String, &'a Tensor)> {
    let names = |(trainable, moments): (&Trainable, &'a Moments)| {
        let tensors = moments.tensors().into_iter();
        tensors.map(|(part, tensor)| (format!("{}.{part}", trainable.name), tensor)).collect::<Vec<_>>()
    };
    trainables.iter().zip(optimizer.moments()).flat_map(names).collect()
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
/// [`Error::CheckpointMoments`] when its optimizer kept moments otherwise, [`Error::CheckpointMismatch`] when it belongs to another run,
/// [`Error::CheckpointTensor`] for a tensor that does not fit, or the reader's errors.
pub fn restore(path: &Path, state: &RunState, identity: &Identity, trainables: &[Trainable], optimizer: &mut AdamW) -> Result<()> {
    let moments = SafetensorsFile::open(&path.join(OPTIMIZER))?;
    let difference = state.identity.difference(identity);
    if matches!(difference, None | Some("recipe")) {
        // Of all that a recipe may say otherwise, this can be named.
        check_moments(path, &moments, trainables, optimizer)?;
    }
    if let Some(what) = difference {
        return Err(Error::CheckpointMismatch { path: path.to_path_buf(), what });
    }
    let weights = SafetensorsFile::open(&path.join(WEIGHTS))?;
    for trainable in trainables {
        fill(&trainable.tensor, &weights, &trainable.name)?;
    }
    for (name, tensor) in named_moments(trainables, optimizer) {
        fill(tensor, &moments, &name)?;
    }
    optimizer.resume_at(state.step);
    Ok(())
}

/// Compares the kinds of moments that the file holds with those of the optimizer; of a parameter that it does not hold, nothing is said.
fn check_moments(path: &Path, file: &SafetensorsFile, trainables: &[Trainable], optimizer: &AdamW) -> Result<()> {
    for (Trainable { name, .. }, moments) in trainables.iter().zip(optimizer.moments()) {
        let has = |part: &str| file.get(&format!("{name}.{part}")).is_some();
        let found = match (has("first"), has("first.codes")) {
            (true, false) => MomentsKind::Float,
            (false, true) => MomentsKind::Packed,
            _ => continue,
        };
        let expected = moments.kind();
        if found != expected {
            return Err(Error::CheckpointMoments { path: path.to_path_buf(), parameter: name.clone(), expected, found });
        }
    }
    Ok(())
}

/// Copies the tensor of the file, bit for bit.
fn fill(tensor: &Tensor, file: &SafetensorsFile, name: &str) -> Result<()> {
    let view = file.tensor(name)?;
    let spec = spec(name, tensor);
    if (view.dtype, view.shape) != (spec.dtype, &spec.shape[..]) {
        let text = |dtype: Dtype, shape: &[usize]| format!("{} {shape:?}", dtype.name());
        let (expected, found) = (text(spec.dtype, &spec.shape), text(view.dtype, view.shape));
        return Err(Error::CheckpointTensor { path: file.path().to_path_buf(), tensor: name.to_owned(), expected, found });
    }
    tch::no_grad(|| {
        Tensor::f_from_data_size(view.bytes, &tensor.size(), tensor.kind()).and_then(|values| tensor.shallow_clone().f_copy_(&values))
    })
    .named("restore", &[tensor])
}

fn write_tensors(path: &Path, tensors: &[(String, &Tensor)]) -> Result<()> {
    let specs: Vec<TensorSpec> = tensors.iter().map(|(name, tensor)| spec(name, tensor)).collect();
    let mut writer = SafetensorsWriter::create(path, &specs, &BTreeMap::new())?;
    for (name, tensor) in tensors {
        match tensor.kind() {
            Kind::Uint8 => writer.write(name, &to_u8_vec(tensor)?)?,
            _ => writer.write(name, bytemuck::cast_slice(&to_f32_vec(tensor)?))?,
        }
    }
    Ok(writer.finish()?)
}

/// A tensor of a checkpoint: weights, f32 moments and scales are f32, codes are u8.
fn spec(name: &str, tensor: &Tensor) -> TensorSpec {
    let dtype = match tensor.kind() {
        Kind::Uint8 => Dtype::U8,
        _ => Dtype::F32,
    };
    TensorSpec { name: name.to_owned(), dtype, shape: tensor.size().iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect() }
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
    use crate::recipe::OptimizerKind;

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

    const KINDS: [OptimizerKind; 2] = [OptimizerKind::Adamw, OptimizerKind::Adamw8bit];

    /// One tensor that is too small for moments of 8 bits, and one whose last block is a short one.
    const SHAPES: [[i64; 2]; 2] = [[3, 5], [67, 81]];

    fn options(kind: OptimizerKind) -> AdamWOptions {
        AdamWOptions { kind, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.0 }
    }

    fn trainables(value: impl Fn([i64; 2]) -> Tensor) -> Vec<Trainable> {
        SHAPES.iter().zip(["w", "v"]).map(|(&shape, name)| Trainable { name: name.into(), tensor: value(shape) }).collect()
    }

    fn leaves(trainables: &[Trainable]) -> Vec<Tensor> {
        trainables.iter().map(|trainable| trainable.tensor.detach()).collect()
    }

    fn fixture_of(kind: OptimizerKind) -> (Vec<Trainable>, AdamW) {
        tch::manual_seed(1);
        let random = |shape| Tensor::randn(shape, (Kind::Float, tch::Device::Cpu));
        let trainables = trainables(|shape| random(shape).set_requires_grad(true));
        let mut leaves = leaves(&trainables);
        let mut optimizer = AdamW::new(options(kind), &leaves).unwrap();
        for _ in 0..4 {
            optimizer.step(&mut leaves, SHAPES.map(random).into(), 0.1).unwrap();
        }
        (trainables, optimizer)
    }

    fn fixture() -> (Vec<Trainable>, AdamW) {
        fixture_of(OptimizerKind::Adamw)
    }

    /// Zeros, and an optimizer that has not made a step.
    fn blank(kind: OptimizerKind) -> (Vec<Trainable>, AdamW) {
        let blanks = trainables(|shape| Tensor::zeros(shape, (Kind::Float, tch::Device::Cpu)));
        let optimizer = AdamW::new(options(kind), &leaves(&blanks)).unwrap();
        (blanks, optimizer)
    }

    #[test]
    fn what_was_written_comes_back_to_the_bit_and_goes_on_so() {
        for kind in KINDS {
            let directory = tempfile::tempdir().unwrap();
            let (trainables, mut optimizer) = fixture_of(kind);
            write(directory.path(), &state(4), &trainables, &optimizer, 2).unwrap();
            let Newest { found, passed_over } = newest(directory.path()).unwrap();
            let (path, found) = found.unwrap();
            assert_eq!((&found, passed_over.len()), (&state(4), 0));
            let (blanks, mut restored) = blank(kind);
            restore(&path, &found, &identity(), &blanks, &mut restored).unwrap();
            for step in 0..3 {
                let (kept, moments) = (leaves(&trainables), named_moments(&trainables, &optimizer));
                assert!(kept.iter().zip(&leaves(&blanks)).all(|(left, right)| left.equal(right)), "{kind:?}, {step} steps on");
                for ((name, left), (_, right)) in moments.iter().zip(named_moments(&blanks, &restored)) {
                    assert!(left.equal(right), "{kind:?}, {step} steps on, {name}");
                }
                let gradients = SHAPES.map(|shape| Tensor::randn(shape, (Kind::Float, tch::Device::Cpu)));
                let copies = gradients.each_ref().map(Tensor::copy);
                optimizer.step(&mut leaves(&trainables), gradients.into(), 0.1).unwrap();
                restored.step(&mut leaves(&blanks), copies.into(), 0.1).unwrap();
            }
        }
    }

    #[test]
    fn moments_of_the_other_kind_are_refused_by_name() {
        let other_recipe = Identity { recipe: "another".into(), ..identity() };
        for (written, asked, identity) in [(KINDS[0], KINDS[1], identity()), (KINDS[1], KINDS[0], other_recipe)] {
            let directory = tempfile::tempdir().unwrap();
            let (trainables, optimizer) = fixture_of(written);
            let path = write(directory.path(), &state(4), &trainables, &optimizer, 2).unwrap();
            let (blanks, mut restored) = blank(asked);
            let error = restore(&path, &state(4), &identity, &blanks, &mut restored).unwrap_err();
            // Of the two parameters the small one has f32 moments in either kind.
            let Error::CheckpointMoments { parameter, expected, found, .. } = &error else { panic!("{error}") };
            assert_eq!(parameter, "v");
            assert_eq!((*found, *expected), (MomentsKind::of(written, 5427), MomentsKind::of(asked, 5427)));
            let words = error.to_string();
            assert!(words.contains("8-bit moments") && words.contains("f32 moments"), "{words}");
            assert!(ft_formats::Hint::hint(&error).unwrap().contains("optimizer.kind"));
        }
    }

    #[test]
    fn a_tensor_of_another_shape_or_type_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (mut trainables, optimizer) = fixture();
        let path = write(directory.path(), &state(4), &trainables, &optimizer, 2).unwrap();
        let cpu = tch::Device::Cpu;
        for wrong in [Tensor::zeros([5, 3], (Kind::Float, cpu)), Tensor::zeros([3, 5], (Kind::Uint8, cpu))] {
            trainables[0].tensor = wrong;
            let (_, mut restored) = fixture();
            let error = restore(&path, &state(4), &identity(), &trainables, &mut restored).unwrap_err();
            assert!(matches!(&error, Error::CheckpointTensor { found, .. } if found == "F32 [3, 5]"), "{error}");
        }
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
