//! Writing a model in the Hugging Face layout: tensor by tensor, whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::config::original_json;
use super::generation_config::generation_config;
use super::layout::Layout;
use super::shards::{INDEX, index_json, shard_name};
use super::{Checkpoint, Config, ExpertStorage, tensor_specs};
use crate::error::{Error, InFile, Result};
use crate::gguf::{GgufFile, Value};
use crate::output::{PartialDirectory, write_synced};
use crate::safetensors::{SafetensorsWriter, TensorSpec};
use crate::stream::TensorSink;
use crate::template::CHAT_TEMPLATE_FILE;
use crate::template::{CHAT_TEMPLATE, without_generation_marks};
use crate::tokenizer::{write_chat_template, write_tokenizer_files};

/// Name of the config.
const CONFIG: &str = "config.json";

/// Files of a model that do not depend on its weights.
const COMPANIONS: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", CHAT_TEMPLATE_FILE, "generation_config.json"];

/// How the names of weights end, whatever wrote them.
const WEIGHT_ENDINGS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx"];

/// A model directory that is whole and synced, under a hidden name until it is published; it leaves nothing when it is dropped before.
#[derive(Debug)]
pub struct SealedCheckpoint {
    directory: PartialDirectory,
}

impl SealedCheckpoint {
    /// Where it is meanwhile: a model like any other.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes it appear under its name, which it gives.
    ///
    /// # Errors
    /// [`Error::Exists`] when something was put in its place meanwhile, [`Error::Io`].
    pub fn publish(self) -> Result<PathBuf> {
        let target = self.directory.target().to_owned();
        self.directory.finish()?;
        Ok(target)
    }
}

/// A model directory in the making; it appears under its name when it is finished, and leaves nothing when it is dropped before.
#[derive(Debug)]
pub struct CheckpointWriter {
    // Before `directory`, so that a drop closes the files first.
    shards: Vec<SafetensorsWriter>,
    directory: PartialDirectory,
    config: Config,
    /// The content of `config.json`.
    json: Json,
    specs: Vec<TensorSpec>,
    /// Index of the shard of each tensor.
    by_tensor: HashMap<String, usize>,
    /// In OpenAI's layout, the name there of each tensor.
    original: Option<HashMap<String, String>>,
}

impl CheckpointWriter {
    /// Begins a model of `config` with experts stored as `storage`, in files of at most `max_shard_bytes` of tensors unless a
    /// single tensor has more. `directory` must not exist, or be empty; its parents are made.
    ///
    /// # Errors
    /// [`Error::Setting`] for a config that makes no model, [`Error::Exists`], [`Error::Io`].
    pub fn create(directory: &Path, config: &Config, storage: ExpertStorage, max_shard_bytes: u64) -> Result<Self> {
        Self::begin(directory, config, storage, max_shard_bytes, None)
    }

    /// As [`CheckpointWriter::create`], but a model that is already in `directory` stays until this one takes its place.
    ///
    /// # Errors
    /// As [`CheckpointWriter::create`]; [`Error::Exists`] for a directory that holds something else than a model.
    pub fn replace(directory: &Path, config: &Config, storage: ExpertStorage, max_shard_bytes: u64) -> Result<Self> {
        Self::begin(directory, config, storage, max_shard_bytes, Some(CONFIG))
    }

    fn begin(
        directory: &Path,
        config: &Config,
        storage: ExpertStorage,
        max_shard_bytes: u64,
        replaced: Option<&'static str>,
    ) -> Result<Self> {
        let mut config = config.clone();
        config.has_mxfp4_experts = storage == ExpertStorage::Mxfp4;
        // The published MXFP4 models name no type; for the others it tells a reader in what to compute.
        config.dtype = match storage {
            ExpertStorage::Mxfp4 => None,
            ExpertStorage::Float(dtype) => Some(dtype),
        };
        config.validate().map_err(Error::Setting)?;
        let specs = tensor_specs(&config, storage);
        let json = config.to_json();
        Self::of_specs(directory, config, json, specs, max_shard_bytes, replaced)
    }

    /// Begins a copy of `source` with its experts stored as `storage`. All other tensors keep their types, `config.json` keeps what it
    /// says but for the storage of the experts, and the files beside the weights (tokenizer, template, licence) are copied at once.
    ///
    /// For a model in GGUF, all of these are written anew, from what its file says.
    ///
    /// # Errors
    /// As [`CheckpointWriter::create`]; [`Error::Config`] when the sizes of `source` do not allow MXFP4; [`Error::Gguf`] for a model with
    /// another vocabulary, whose tokenizer this program cannot write.
    pub fn restored(directory: &Path, source: &Checkpoint, storage: ExpertStorage, max_shard_bytes: u64) -> Result<Self> {
        let specs = source.specs_as(storage)?;
        let config = Config { has_mxfp4_experts: storage == ExpertStorage::Mxfp4, ..source.config().clone() };
        let json = source.config_json_as(storage)?;
        let writer = Self::of_specs(directory, config, json, specs, max_shard_bytes, None)?;
        match source.gguf() {
            None => copy_all_but_weights(source.path(), writer.partial_path())?,
            Some(file) => writer.unpack_companions(file)?,
        }
        Ok(writer)
    }

    /// Begins a copy of `source` in OpenAI's layout, which takes tensors by their Hugging Face names all the same: in pieces, and queries,
    /// keys and values in this order.
    ///
    /// # Errors
    /// As [`CheckpointWriter::create`]; [`Error::NotPacked`] for plain experts, which that layout does not have; [`Error::NotIn`] for a config
    /// that it has no words for; [`Error::WrongDtype`] for a key or value of another type than the query.
    pub fn original(directory: &Path, source: &Checkpoint, max_shard_bytes: u64) -> Result<Self> {
        if source.expert_storage() != ExpertStorage::Mxfp4 {
            return Err(Error::NotPacked { path: source.path().to_owned() });
        }
        let config = source.config().clone();
        let json = original_json(&config).map_err(|(key, found, supported)| Error::NotIn {
            format: "OpenAI's layout",
            path: source.path().to_owned(),
            key,
            found,
            supported,
        })?;
        let (mut specs, mut names) = (Vec::<TensorSpec>::new(), HashMap::new());
        for spec in source.specs() {
            let stored = Layout::Original.stored(spec, &config);
            match specs.iter().find(|known| known.name == stored.name) {
                Some(known) if known.dtype != spec.dtype => {
                    let (tensor, path) = (spec.name.clone(), source.file_of(&spec.name).to_owned());
                    return Err(Error::WrongDtype { tensor, path, expected: known.dtype.name(), found: spec.dtype });
                }
                Some(_) => {}
                None => specs.push(TensorSpec { name: stored.name.clone(), dtype: spec.dtype, shape: stored.shape }),
            }
            names.insert(spec.name.clone(), stored.name);
        }
        let mut writer = Self::of_specs(directory, config, json, specs, max_shard_bytes, None)?;
        writer.original = Some(names);
        Ok(writer)
    }

    fn of_specs(
        directory: &Path,
        config: Config,
        json: Json,
        specs: Vec<TensorSpec>,
        max_shard_bytes: u64,
        replaced: Option<&'static str>,
    ) -> Result<Self> {
        let groups = grouped(&specs, max_shard_bytes)?;
        let directory = PartialDirectory::create(directory, replaced)?;
        let (mut shards, mut by_tensor) = (Vec::new(), HashMap::new());
        for (index, group) in groups.iter().enumerate() {
            let path = directory.path().join(shard_name(index + 1, groups.len()));
            shards.push(SafetensorsWriter::create(&path, group, &BTreeMap::new())?);
            by_tensor.extend(group.iter().map(|spec| (spec.name.clone(), index)));
        }
        Ok(Self { shards, directory, config, json, specs, by_tensor, original: None })
    }

    /// The tensors that it takes, in the order of a forward pass; they can be written in any order.
    #[must_use]
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.specs.iter().filter_map(TensorSpec::byte_length).sum()
    }

    /// Where the files are until [`CheckpointWriter::finish`]; more can be put there, synced.
    #[must_use]
    pub fn partial_path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes the whole of a tensor.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::UnknownTensor`] or [`Error::WrittenLength`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (shard, stored) = self.place(name)?;
        shard.write(stored, bytes)
    }

    /// Writes the next bytes of a tensor that comes in pieces.
    ///
    /// # Errors
    /// As [`CheckpointWriter::write`].
    pub fn write_chunk(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (shard, stored) = self.place(name)?;
        shard.write_chunk(stored, bytes)
    }

    /// Copies the tokenizer, template and generation config of `source`, as far as it has them; those of a model in GGUF are written anew.
    /// Beside a tokenizer without a template goes [`crate::template::CHAT_TEMPLATE`], in which every model of ours is trained.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Tokenizer`]; [`Error::Gguf`] for a model in GGUF with another vocabulary.
    pub fn copy_companions(&mut self, source: &Checkpoint) -> Result<()> {
        if let Some(file) = source.gguf() {
            return self.unpack_companions(file);
        }
        let source = source.path();
        let present = COMPANIONS.into_iter().filter(|name| source.join(name).is_file());
        present.into_iter().try_for_each(|name| copy_synced(&source.join(name), &self.directory.path().join(name)))?;
        let has_tokenizer = self.directory.path().join("tokenizer.json").exists();
        if has_tokenizer && !has_template(self.directory.path())? {
            write_chat_template(self.directory.path())?;
        }
        Ok(())
    }

    /// Writes the tokenizer of gpt-oss, which is that of the model in `file`, and the chat template in it.
    fn unpack_companions(&self, file: &GgufFile) -> Result<()> {
        file.check_vocabulary()?;
        let directory = self.directory.path();
        write_tokenizer_files(directory)?;
        match file.get("tokenizer.chat_template").and_then(Value::as_str) {
            // Ours, which is there by now, with its marks: GGUF files have it without.
            Some(template) if template == without_generation_marks(CHAT_TEMPLATE) => Ok(()),
            Some(template) => write_synced(&directory.join("chat_template.jinja"), template.as_bytes()),
            None => Ok(()),
        }
    }

    /// Writes the tokenizer of gpt-oss, and the chat template.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn write_tokenizer(&mut self) -> Result<()> {
        Ok(write_tokenizer_files(self.directory.path())?)
    }

    /// Adds index, config and generation config, and makes the directory appear under its name.
    ///
    /// # Errors
    /// As [`CheckpointWriter::seal`] and [`SealedCheckpoint::publish`].
    pub fn finish(self) -> Result<PathBuf> {
        self.seal()?.publish()
    }

    /// Adds index, config and generation config; all that is left to do then is to publish it.
    ///
    /// # Errors
    /// [`Error::WrittenLength`] for the first tensor that is not whole, [`Error::Io`].
    pub fn seal(self) -> Result<SealedCheckpoint> {
        let total_bytes = self.total_bytes();
        let Self { shards, directory, config, json, by_tensor, original, .. } = self;
        let count = shards.len();
        for shard in shards {
            shard.finish()?;
        }
        if count > 1 {
            let weight_map = by_tensor.into_iter().map(|(name, index)| (name, shard_name(index + 1, count))).collect();
            write_json(&directory.path().join(INDEX), &index_json(&weight_map, total_bytes))?;
        }
        write_json(&directory.path().join(CONFIG), &json)?;
        let generation = directory.path().join("generation_config.json");
        if original.is_none() && !generation.exists() {
            write_json(&generation, &generation_config(&config))?;
        }
        Ok(SealedCheckpoint { directory })
    }

    /// The file of a tensor, and its name there.
    fn place<'n>(&'n mut self, name: &'n str) -> Result<(&'n mut SafetensorsWriter, &'n str)> {
        let stored = match &self.original {
            Some(names) => names.get(name).map(String::as_str),
            None => Some(name),
        };
        match stored.and_then(|stored| Some((self.by_tensor.get(stored)?, stored))) {
            Some((&index, stored)) => Ok((&mut self.shards[index], stored)),
            None => Err(Error::UnknownTensor { tensor: name.to_owned(), path: self.directory.target().to_owned() }),
        }
    }
}

impl TensorSink for CheckpointWriter {
    fn partial_path(&self) -> &Path {
        Self::partial_path(self)
    }

    fn write_chunk(&mut self, tensor: &str, bytes: &[u8]) -> Result<()> {
        Self::write_chunk(self, tensor, bytes)
    }
}

/// Copies what lies beside the weights: tokenizer, template, licence, model card. Folders, hidden files and weights of any kind stay.
fn copy_all_but_weights(from: &Path, to: &Path) -> Result<()> {
    let mut names: Vec<_> = Vec::new();
    for entry in fs::read_dir(from).in_file("read", from)? {
        names.push(entry.in_file("read", from)?.file_name());
    }
    names.sort();
    for name in names {
        let Some(text) = name.to_str() else { continue };
        let ending = text.rsplit_once('.').map_or("", |(_, ending)| ending);
        let is_weights = WEIGHT_ENDINGS.contains(&ending) || text.ends_with(".index.json");
        if !is_weights && text != CONFIG && !text.starts_with('.') && from.join(text).is_file() {
            copy_synced(&from.join(text), &to.join(text))?;
        }
    }
    Ok(())
}

/// Whether the model in `directory` has a chat template: a file, or a text in its tokenizer's config.
fn has_template(directory: &Path) -> Result<bool> {
    if directory.join(CHAT_TEMPLATE_FILE).exists() {
        return Ok(true);
    }
    let path = directory.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(false);
    }
    let text = fs::read(&path).in_file("read", &path)?;
    // One that is no JSON is its own trouble: it was copied as it stands.
    let content: Json = serde_json::from_slice(&text).unwrap_or_default();
    Ok(content.get("chat_template").is_some_and(|template| !template.is_null()))
}

fn copy_synced(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).and_then(|_| fs::File::open(to)?.sync_all()).in_file("copy", from)
}

/// `specs` in order, cut into shards.
fn grouped(specs: &[TensorSpec], max_shard_bytes: u64) -> Result<Vec<Vec<TensorSpec>>> {
    let mut groups: Vec<Vec<TensorSpec>> = Vec::new();
    let mut room = 0;
    for spec in specs {
        let too_large = || Error::TensorTooLarge { tensor: spec.name.clone(), shape: spec.shape.clone(), dtype: spec.dtype };
        let bytes = spec.byte_length().ok_or_else(too_large)?;
        match groups.last_mut() {
            Some(group) if bytes <= room => group.push(spec.clone()),
            _ => {
                groups.push(vec![spec.clone()]);
                room = max_shard_bytes.max(bytes);
            }
        }
        room -= bytes;
    }
    Ok(groups)
}

fn write_json(path: &Path, value: &Json) -> Result<()> {
    write_synced(path, format!("{value:#}\n").as_bytes())
}
