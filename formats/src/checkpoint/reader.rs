//! Reading a model: everything is checked against the config before the first tensor is handed out.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ft_quant::mxfp4::unpack_transposed;
use half::bf16;
use serde_json::Value;

use super::config;
use super::experts::ExpertWeights;
use super::layout::{Layout, foreign};
use super::shards::Shards;
use super::{Config, ConfigProblem, ExpertStorage, Projection, tensor_specs};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::safetensors::{SafetensorsFile, TensorSpec, TensorView};

/// A model on disk, memory-mapped.
///
/// Its files must not be shortened while it is open: a read past their new end would end the process.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    config_path: PathBuf,
    layout: Layout,
    storage: ExpertStorage,
    files: Vec<SafetensorsFile>,
    /// In the order of a forward pass, with the types found.
    specs: Vec<TensorSpec>,
    /// Beside `specs`.
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
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
    /// Opens the model in `directory`: in the Hugging Face layout, or in OpenAI's, there or in its subdirectory `original`.
    ///
    /// # Errors
    /// [`Error::NoConfig`] and [`Error::Config`] for the config, [`Error::Index`] and [`Error::Safetensors`] for the files, and
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`], [`Error::DuplicateTensor`], [`Error::WrongShape`],
    /// [`Error::WrongDtype`] or [`Error::UnsupportedLayout`] where the tensors are not those that the config asks for.
    pub fn open(directory: &Path) -> Result<Self> {
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
        let by_name: HashMap<String, usize> = specs.iter().enumerate().map(|(index, spec)| (spec.name.clone(), index)).collect();
        let storage = by_name.get(&name).map_or(storage, |&index| ExpertStorage::Float(specs[index].dtype));
        Ok(Self { path: directory.to_owned(), config, config_path: home_config, layout, storage, files, specs, places, by_name })
    }

    /// The directory, as given to [`Checkpoint::open`].
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
    /// this program knows nothing of it; that of OpenAI's layout is written anew.
    pub(super) fn config_json_as(&self, storage: ExpertStorage) -> Result<Value> {
        match self.layout {
            Layout::HuggingFace => config::with_storage(&self.config_path, storage),
            Layout::Original => {
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
        self.files.iter().map(SafetensorsFile::path)
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.places.iter().map(|place| place.range.len() as u64).sum()
    }

    /// The tensor of a Hugging Face name, whatever the layout: BF16, F16 or F32, and U8 for blocks and scales.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] for a name that the model does not have.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let missing = || Error::MissingTensor { tensor: name.to_owned(), path: self.path.clone() };
        let &index = self.by_name.get(name).ok_or_else(missing)?;
        let (spec, place) = (&self.specs[index], &self.places[index]);
        let whole = self.files[place.file].tensor(&place.stored)?;
        Ok(TensorView { name: &spec.name, dtype: spec.dtype, shape: &spec.shape, bytes: &whole.bytes[place.range.clone()] })
    }

    /// The file that holds the tensor of a Hugging Face name; the model's directory for a name that it does not have.
    #[must_use]
    pub fn file_of(&self, name: &str) -> &Path {
        self.by_name.get(name).map_or(&*self.path, |&index| self.files[self.places[index].file].path())
    }

    /// Has the system read these bytes of a tensor ahead.
    pub(crate) fn prefetch(&self, bytes: &[u8]) {
        self.files.iter().for_each(|file| file.prefetch(bytes));
    }

    /// Takes these bytes of a tensor out of this process's memory, where the system counts what was read; they stay readable.
    pub(crate) fn release(&self, bytes: &[u8]) {
        self.files.iter().for_each(|file| file.release(bytes));
    }

    /// The experts' matrices of a layer, as they are stored.
    ///
    /// # Errors
    /// [`Error::NoSuch`] for a layer that the model does not have.
    pub fn experts(&self, layer: usize, projection: Projection) -> Result<ExpertWeights<'_>> {
        let count = self.config.num_hidden_layers;
        if layer >= count {
            return Err(Error::NoSuch { what: "layer", index: layer, count });
        }
        let name = projection.tensor_name(layer);
        Ok(match self.storage {
            ExpertStorage::Float(_) => ExpertWeights::Float(self.tensor(&name)?),
            ExpertStorage::Mxfp4 => {
                ExpertWeights::Mxfp4 { blocks: self.tensor(&format!("{name}_blocks"))?, scales: self.tensor(&format!("{name}_scales"))? }
            }
        })
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
        let count = self.config.num_local_experts;
        if expert >= count {
            return Err(Error::NoSuch { what: "expert", index: expert, count });
        }
        let ExpertWeights::Mxfp4 { blocks, scales } = self.experts(layer, projection)? else {
            return Err(Error::NotPacked { path: self.path.clone() });
        };
        let [input, output] = projection.dims(&self.config);
        let of_expert = |bytes: &'_ [u8]| {
            let length = bytes.len() / count;
            expert * length..(expert + 1) * length
        };
        let (blocks, packed_scales) = (&blocks.bytes[of_expert(blocks.bytes)], &scales.bytes[of_expert(scales.bytes)]);
        let mut values = vec![bf16::ZERO; input * output];
        unpack_transposed(blocks, packed_scales, output, &mut values).map_err(|source| Error::Packed {
            tensor: scales.name.to_owned(),
            path: self.file_of(scales.name).to_owned(),
            expert,
            source,
        })?;
        Ok(values)
    }
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
