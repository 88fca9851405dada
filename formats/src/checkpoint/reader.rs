//! Reading a model: everything is checked against the config before the first tensor is handed out.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ft_quant::mxfp4::unpack_transposed;
use half::bf16;
use serde_json::Value;

use super::config;
use super::experts::{ExpertMatrix, ExpertWeights};
use super::gguf::{GgufModel, is_gguf};
use super::layout::{Layout, foreign};
use super::shards::Shards;
use super::{CheckpointTensor, Config, ConfigProblem, ExpertStorage, Projection, tensor_specs};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::safetensors::{SafetensorsFile, TensorSpec, TensorView};

/// A model on disk, memory-mapped.
///
/// Its files must not be shortened while it is open: a read past their new end would end the process.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    config_path: PathBuf,
    storage: ExpertStorage,
    /// In the order of a forward pass, with the types found.
    specs: Vec<TensorSpec>,
    by_name: HashMap<String, usize>,
    store: Store,
}

/// The files that a model is in.
#[derive(Debug)]
enum Store {
    Safetensors {
        layout: Layout,
        files: Vec<SafetensorsFile>,
        /// Beside the model's specs.
        places: Vec<Place>,
    },
    Gguf(GgufModel),
}

/// Where the bytes of a tensor are.
#[derive(Debug)]
struct Place {
    file: usize,
    stored: String,
    /// Bytes of the stored tensor.
    range: Range<usize>,
}

impl Checkpoint {
    /// Opens a model: a directory in the Hugging Face layout, or in OpenAI's, there or in its subdirectory `original`; a GGUF file, or a
    /// directory with one and no other model.
    ///
    /// # Errors
    /// [`Error::NoConfig`] and [`Error::Config`] for the config, [`Error::Index`], [`Error::Safetensors`] and [`Error::Gguf`] for the
    /// files, and [`Error::MissingTensor`], [`Error::UnexpectedTensor`], [`Error::DuplicateTensor`], [`Error::WrongShape`],
    /// [`Error::WrongDtype`] or [`Error::UnsupportedLayout`] where the tensors are not those that the config asks for.
    pub fn open(path: &Path) -> Result<Self> {
        if !is_gguf(path)? {
            return Self::open_directory(path);
        }
        let (model, config, specs) = GgufModel::open(path)?;
        let config_path = model.file().main_file().to_owned();
        let storage = model.storage();
        Ok(Self { path: path.to_owned(), config, config_path, storage, by_name: by_name(&specs), specs, store: Store::Gguf(model) })
    }

    fn open_directory(directory: &Path) -> Result<Self> {
        let (home, mut config) = locate(directory)?;
        let shards = Shards::open(&home)?;
        let home_config = home.join("config.json");
        let Shards { files, by_tensor } = shards;
        let has = |name: &str| by_tensor.contains_key(name);
        let path_of = |name: &str| by_tensor.get(name).map_or(home.as_path(), |&index| files[index].path()).to_owned();
        if let Some((tensor, layout)) = by_tensor.keys().filter_map(|name| foreign(name).map(|layout| (name, layout))).min() {
            return Err(Error::UnsupportedLayout { path: path_of(tensor), layout, tensor: tensor.clone() });
        }
        let layout = if has("embedding.weight") || has("unembedding.weight") { Layout::Original } else { Layout::HuggingFace };
        let name = Projection::GateUp.tensor_name(0);
        let is_packed = layout == Layout::Original || has(&format!("{name}_blocks"));
        let config_problem = |problem| Error::Config { path: home_config.clone(), problem };
        if is_packed {
            config.check_blocks().map_err(config_problem)?;
        } else if config.has_mxfp4_experts && has(&name) {
            return Err(config_problem(ConfigProblem::NotQuantized));
        }
        let is_packed = is_packed || config.has_mxfp4_experts;
        config.has_mxfp4_experts = is_packed;
        let storage = if is_packed { ExpertStorage::Mxfp4 } else { ExpertStorage::Float(Dtype::Bf16) };
        let mut specs = tensor_specs(&config, storage);
        let mut places = Vec::with_capacity(specs.len());
        let mut used = HashSet::new();
        for spec in &mut specs {
            let stored = layout.stored(spec, &config);
            let Some(&file) = by_tensor.get(&stored.name) else {
                let path = if let [only] = &files[..] { only.path().to_path_buf() } else { home };
                return Err(Error::MissingTensor { tensor: stored.name, path });
            };
            let view = files[file].tensor(&stored.name)?;
            spec.dtype = checked_dtype(spec, view, files[file].path())?;
            if view.shape != stored.shape {
                return Err(Error::WrongShape {
                    tensor: stored.name,
                    path: files[file].path().to_owned(),
                    expected: stored.shape,
                    found: view.shape.to_vec(),
                });
            }
            // The shape is that of the config, whose sizes are not 0, and its bytes are there.
            let row_bytes = view.bytes.len() / stored.shape[0];
            let range = stored.rows.start * row_bytes..stored.rows.end * row_bytes;
            used.insert(stored.name.clone());
            places.push(Place { file, stored: stored.name, range });
        }
        if let Some(tensor) = by_tensor.keys().filter(|name| !used.contains(*name)).min() {
            return Err(Error::UnexpectedTensor { tensor: tensor.clone(), path: path_of(tensor) });
        }
        let by_name = by_name(&specs);
        let storage = by_name.get(&name).map_or(storage, |&index| ExpertStorage::Float(specs[index].dtype));
        let store = Store::Safetensors { layout, files, places };
        Ok(Self { path: directory.to_owned(), config, config_path: home_config, storage, specs, by_name, store })
    }

    /// The directory or file, as given to [`Checkpoint::open`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its config; `has_mxfp4_experts` says what the tensors are.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The content of a `config.json` for this model with its experts stored as `storage`. What the model's own says is kept, also where
    /// this program knows nothing of it; that of OpenAI's layout and of GGUF is written anew.
    pub(super) fn config_json_as(&self, storage: ExpertStorage) -> Result<Value> {
        match self.store {
            Store::Safetensors { layout: Layout::HuggingFace, .. } => config::with_storage(&self.config_path, storage),
            Store::Safetensors { layout: Layout::Original, .. } | Store::Gguf(_) => {
                let has_mxfp4_experts = storage == ExpertStorage::Mxfp4;
                Ok(Config { has_mxfp4_experts, dtype: (!has_mxfp4_experts).then(|| storage.dtype()), ..self.config.clone() }.to_json())
            }
        }
    }

    /// The tensors of this model with its experts' matrices stored as `storage` and all others in the types that they have.
    ///
    /// # Errors
    /// [`Error::Config`] when its sizes do not allow MXFP4.
    pub fn specs_as(&self, storage: ExpertStorage) -> Result<Vec<TensorSpec>> {
        if storage == ExpertStorage::Mxfp4 {
            self.config.check_blocks().map_err(|problem| Error::Config { path: self.config_path.clone(), problem })?;
        }
        let matrices: HashSet<String> = self.expert_matrices().map(|(layer, projection)| projection.tensor_name(layer)).collect();
        let mut specs = tensor_specs(&self.config, storage);
        for spec in specs.iter_mut().filter(|spec| !matrices.contains(&spec.name)) {
            if let Some(&index) = self.by_name.get(&spec.name) {
                spec.dtype = self.specs[index].dtype;
            }
        }
        Ok(specs)
    }

    /// Layer and projection of every tensor of experts' matrices, in the order of a forward pass.
    pub fn expert_matrices(&self) -> impl Iterator<Item = (usize, Projection)> + use<> {
        (0..self.config.num_hidden_layers).flat_map(|layer| Projection::ALL.map(|projection| (layer, projection)))
    }

    /// How the experts are stored.
    #[must_use]
    pub fn expert_storage(&self) -> ExpertStorage {
        self.storage
    }

    /// Every tensor by its Hugging Face name, in the order of a forward pass, with its shape and the type found.
    #[must_use]
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The Hugging Face name of every tensor, in the order of a forward pass.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.specs.iter().map(|spec| spec.name.as_str())
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        let files: Vec<&Path> = match &self.store {
            Store::Safetensors { files, .. } => files.iter().map(SafetensorsFile::path).collect(),
            Store::Gguf(model) => model.file().files().collect(),
        };
        files.into_iter()
    }

    /// The GGUF file that the model is in, if it is in one.
    #[must_use]
    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.store {
            Store::Safetensors { .. } => None,
            Store::Gguf(model) => Some(model.file()),
        }
    }

    /// Bytes of all tensors, as they are handed out.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.specs.iter().filter_map(TensorSpec::byte_length).sum()
    }

    /// Bytes of all tensors, as they lie in the files: in GGUF, fewer where they are quantized.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        match &self.store {
            Store::Safetensors { .. } => self.total_bytes(),
            Store::Gguf(model) => model.file().tensors().map(|view| view.bytes.len() as u64).sum(),
        }
    }

    /// Checks that the vocabulary is the one that texts are turned into tokens by, where the files of the weights hold one.
    ///
    /// # Errors
    /// [`Error::Gguf`] with the first token that is another.
    pub fn check_vocabulary(&self) -> Result<()> {
        self.gguf().map_or(Ok(()), GgufFile::check_vocabulary)
    }

    /// The tensor of a Hugging Face name, whatever the layout: BF16, F16 or F32, and U8 for blocks and scales.
    ///
    /// It is mapped, unless a GGUF file holds it another way: it is made then, whole.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] for a name that the model does not have; [`Error::Packed`] or [`Error::Quantized`] for blocks that stand
    /// for no numbers.
    pub fn tensor(&self, name: &str) -> Result<CheckpointTensor<'_>> {
        let missing = || Error::MissingTensor { tensor: name.to_owned(), path: self.path.clone() };
        let &index = self.by_name.get(name).ok_or_else(missing)?;
        let spec = &self.specs[index];
        let bytes = match &self.store {
            Store::Safetensors { files, places, .. } => {
                let place = &places[index];
                let whole = files[place.file].tensor(&place.stored)?;
                whole.bytes[place.range.clone()].into()
            }
            Store::Gguf(model) => model.tensor(index, spec)?,
        };
        Ok(CheckpointTensor { name: &spec.name, dtype: spec.dtype, shape: &spec.shape, bytes })
    }

    /// The file that holds the tensor of a Hugging Face name; the model's path for a name that it does not have.
    #[must_use]
    pub fn file_of(&self, name: &str) -> &Path {
        let Some(&index) = self.by_name.get(name) else { return &self.path };
        match &self.store {
            Store::Safetensors { files, places, .. } => files[places[index].file].path(),
            Store::Gguf(model) => model.file_of(index),
        }
    }

    /// True for a tensor whose values are quantized where they are stored, and handed out as the floats that they stand for.
    ///
    /// MXFP4 that is handed out as such is none of them.
    #[must_use]
    pub fn is_quantized(&self, name: &str) -> bool {
        match (&self.store, self.by_name.get(name)) {
            (Store::Gguf(model), Some(&index)) => model.is_quantized(index),
            _ => false,
        }
    }

    /// Has the system read the matrix of an expert ahead, if there is such an expert.
    pub(crate) fn prefetch_expert(&self, layer: usize, projection: Projection, expert: usize) {
        if layer >= self.config.num_hidden_layers || expert >= self.config.num_local_experts {
            return;
        }
        match &self.store {
            Store::Safetensors { files, .. } => {
                // What cannot be read is reported when it is asked for.
                let Ok(matrix) = self.expert(layer, projection, expert) else { return };
                let (ExpertMatrix::Float { values: bytes, .. } | ExpertMatrix::Mxfp4 { blocks: bytes, .. }) = &matrix;
                files.iter().for_each(|file| file.prefetch(bytes));
            }
            Store::Gguf(model) => model.prefetch_expert(layer, projection, expert),
        }
    }

    /// Takes these bytes of a tensor out of this process's memory, where the system counts what was read; they stay readable.
    ///
    /// Bytes that were made of those in a file are none of them, and stay where they are.
    pub(crate) fn release(&self, bytes: &[u8]) {
        match &self.store {
            Store::Safetensors { files, .. } => files.iter().for_each(|file| file.release(bytes)),
            Store::Gguf(model) => model.file().release(bytes),
        }
    }

    /// The experts' matrices of a layer, all of them: see [`Checkpoint::expert`] for one at a time.
    ///
    /// # Errors
    /// [`Error::NoSuch`] for a layer that the model does not have, and those of [`Checkpoint::tensor`].
    pub fn experts(&self, layer: usize, projection: Projection) -> Result<ExpertWeights<'_>> {
        self.check_index("layer", layer, self.config.num_hidden_layers)?;
        let name = projection.tensor_name(layer);
        Ok(match self.storage {
            ExpertStorage::Float(_) => ExpertWeights::Float(self.tensor(&name)?),
            ExpertStorage::Mxfp4 => {
                ExpertWeights::Mxfp4 { blocks: self.tensor(&format!("{name}_blocks"))?, scales: self.tensor(&format!("{name}_scales"))? }
            }
        })
    }

    /// The matrix of one expert: mapped, or made of what a GGUF file holds.
    ///
    /// # Errors
    /// [`Error::NoSuch`] for a layer or expert that the model does not have; [`Error::Packed`] for blocks that stand for no numbers, as
    /// far as they had to be looked at.
    pub fn expert(&self, layer: usize, projection: Projection, expert: usize) -> Result<ExpertMatrix<'_>> {
        self.check_index("layer", layer, self.config.num_hidden_layers)?;
        self.check_index("expert", expert, self.config.num_local_experts)?;
        if let Store::Gguf(model) = &self.store {
            return model.expert(layer, projection, expert);
        }
        Ok(match self.experts(layer, projection)? {
            ExpertWeights::Float(tensor) => ExpertMatrix::Float { dtype: tensor.dtype, values: self.part(tensor.bytes, expert) },
            ExpertWeights::Mxfp4 { blocks, scales } => {
                ExpertMatrix::Mxfp4 { blocks: self.part(blocks.bytes, expert), scales: self.part(scales.bytes, expert) }
            }
        })
    }

    /// What belongs to an expert of the bytes of all.
    fn part<'a>(&self, bytes: Cow<'a, [u8]>, expert: usize) -> Cow<'a, [u8]> {
        let length = bytes.len() / self.config.num_local_experts;
        let range = expert * length..(expert + 1) * length;
        match bytes {
            Cow::Borrowed(bytes) => bytes[range].into(),
            Cow::Owned(bytes) => bytes[range].to_vec().into(),
        }
    }

    fn check_index(&self, what: &'static str, index: usize, count: usize) -> Result<()> {
        if index < count { Ok(()) } else { Err(Error::NoSuch { what, index, count }) }
    }

    /// The matrix of one MXFP4 expert in the layout of plain experts, unpacked with the threads of the current rayon pool.
    ///
    /// # Shapes
    /// bf16 [in, out]; every value is exact.
    ///
    /// # Errors
    /// [`Error::NoSuch`] for a layer or expert that the model does not have, [`Error::NotPacked`] for plain experts,
    /// [`Error::Packed`] for bytes that stand for no number.
    pub fn unpack_expert(&self, layer: usize, projection: Projection, expert: usize) -> Result<Vec<bf16>> {
        let ExpertMatrix::Mxfp4 { blocks, scales } = self.expert(layer, projection, expert)? else {
            return Err(Error::NotPacked { path: self.path.clone() });
        };
        let [input, output] = projection.dims(&self.config);
        let mut values = vec![bf16::ZERO; input * output];
        unpack_transposed(&blocks, &scales, output, &mut values).map_err(|source| {
            let tensor = format!("{}_scales", projection.tensor_name(layer));
            Error::Packed { path: self.file_of(&tensor).to_owned(), tensor, expert, source }
        })?;
        Ok(values)
    }
}

fn by_name(specs: &[TensorSpec]) -> HashMap<String, usize> {
    specs.iter().enumerate().map(|(index, spec)| (spec.name.clone(), index)).collect()
}

/// The directory with the files, and the config.
fn locate(directory: &Path) -> Result<(PathBuf, Config)> {
    let original = directory.join("original");
    let is_original_only = Shards::are_in(&original) && original.join("config.json").exists() && !Shards::are_in(directory);
    let home = if is_original_only { original } else { directory.to_owned() };
    let path = home.join("config.json");
    if !path.exists() {
        return Err(Error::NoConfig { path: directory.to_owned() });
    }
    let config = Config::read_file(&path)?;
    Ok((home, config))
}

/// The type of `view`, when its place takes it.
fn checked_dtype(spec: &TensorSpec, view: TensorView<'_>, path: &Path) -> Result<Dtype> {
    let (fits, expected) = match spec.dtype {
        Dtype::U8 => (view.dtype == Dtype::U8, "U8"),
        _ => (view.dtype.is_weight(), "BF16, F16 or F32"),
    };
    if fits {
        return Ok(view.dtype);
    }
    Err(Error::WrongDtype { tensor: view.name.to_owned(), path: path.to_owned(), expected, found: view.dtype })
}
