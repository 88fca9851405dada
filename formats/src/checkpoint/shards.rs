//! The files that hold a model's tensors: one, or several with an index.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Error, Hint, Result};
use crate::json;
use crate::safetensors::SafetensorsFile;

/// Name of the file of a model that is not sharded.
pub(super) const SINGLE: &str = "model.safetensors";

/// Name of the index of a model that is.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Bytes of an index at most; that of the 120b model has 60 KB.
const LIMIT_BYTES: u64 = 64 << 20;

/// What can be wrong with the index of a model's shards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexProblem {
    /// A directory without tensors.
    #[error("it holds no model weights (`model.safetensors` or `model.safetensors.index.json`)")]
    NoWeights,
    /// No map from tensors to files, or one of another shape.
    #[error("`weight_map` is not an object of tensor names and file names")]
    NoWeightMap,
    /// A file name that leads elsewhere.
    #[error("`weight_map` names the file {file:?}, which is not a plain name of a safetensors file")]
    FileName {
        /// The name.
        file: String,
    },
    /// A file that is not there.
    #[error("`weight_map` names the file `{file}`, which is not there")]
    MissingFile {
        /// The name.
        file: String,
    },
    /// A tensor that is not in the file that it is said to be in.
    #[error("`weight_map` says that `{tensor}` is in `{file}`, but it is not")]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The file.
        file: String,
    },
    /// A tensor that the index does not know, or sees elsewhere.
    #[error("`{file}` holds `{tensor}`, which `weight_map` does not say")]
    UnlistedTensor {
        /// The tensor.
        tensor: String,
        /// The file.
        file: String,
    },
}

impl Hint for IndexProblem {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoWeights => Some("only safetensors files are read; pickled `.bin` and `.pt` files are not".to_owned()),
            Self::MissingFile { .. } => Some("the model is incomplete: copy or download the file".to_owned()),
            Self::FileName { .. } => Some("shards lie beside their index".to_owned()),
            _ => Some("the shards and their index belong to different models: copy or download them again".to_owned()),
        }
    }
}

/// Opened shards, and where each tensor is.
#[derive(Debug)]
pub(super) struct Shards {
    pub(super) files: Vec<SafetensorsFile>,
    /// Index of the file of each tensor, by the name in the file.
    pub(super) by_tensor: HashMap<String, usize>,
}

impl Shards {
    /// True when `directory` has a model's files under their usual names.
    pub(super) fn are_in(directory: &Path) -> bool {
        directory.join(SINGLE).exists() || directory.join(INDEX).exists()
    }

    /// Opens the shards in `directory`, each checked against the index.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        // transformers, too, takes the single file where both are there.
        let single = directory.join(SINGLE);
        let index = directory.join(INDEX);
        if single.exists() {
            return Self::collect(vec![SafetensorsFile::open(&single)?]);
        }
        if !index.exists() {
            let problem = IndexProblem::NoWeights;
            return Err(Error::Index { path: directory.to_owned(), problem });
        }
        let malformed = |problem| Error::Index { path: index.clone(), problem };
        let weight_map = weight_map(&index)?;
        let mut names: Vec<&str> = weight_map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for file in &names {
            if !is_plain(file) {
                return Err(malformed(IndexProblem::FileName { file: (*file).to_owned() }));
            }
            let path = directory.join(file);
            if !path.exists() {
                return Err(malformed(IndexProblem::MissingFile { file: (*file).to_owned() }));
            }
            files.push(SafetensorsFile::open(&path)?);
        }
        let shards = Self::collect(files)?;
        for (tensor, file) in &weight_map {
            if shards.by_tensor.get(tensor).map(|&index| names[index]) != Some(file) {
                return Err(malformed(IndexProblem::MissingTensor { tensor: tensor.clone(), file: file.clone() }));
            }
        }
        if let Some((tensor, &index)) = shards.by_tensor.iter().find(|(tensor, _)| !weight_map.contains_key(*tensor)) {
            return Err(malformed(IndexProblem::UnlistedTensor { tensor: tensor.clone(), file: names[index].to_owned() }));
        }
        Ok(shards)
    }

    fn collect(files: Vec<SafetensorsFile>) -> Result<Self> {
        let mut by_tensor = HashMap::new();
        for (index, file) in files.iter().enumerate() {
            for view in file.tensors() {
                if by_tensor.insert(view.name.to_owned(), index).is_some() {
                    return Err(Error::DuplicateTensor { tensor: view.name.to_owned(), path: file.path().to_owned() });
                }
            }
        }
        Ok(Self { files, by_tensor })
    }
}

fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let object = json::read_object(index, LIMIT_BYTES)?;
    let problem = || Error::Index { path: PathBuf::from(index), problem: IndexProblem::NoWeightMap };
    let Some(Value::Object(entries)) = object.get("weight_map") else { return Err(problem()) };
    entries.iter().map(|(tensor, file)| Ok((tensor.clone(), file.as_str().ok_or_else(problem)?.to_owned()))).collect()
}

/// True for a file name that stays in its directory.
///
/// Links are followed: the Hub's own cache is made of them.
fn is_plain(file: &str) -> bool {
    let stem = file.strip_suffix(".safetensors");
    stem.is_some_and(|stem| !stem.is_empty()) && !file.contains(['/', '\\', '\0']) && !file.starts_with('.')
}

/// Name of shard `number` of `count`, counted from 1; a single one has a name of its own.
pub(super) fn shard_name(number: usize, count: usize) -> String {
    if count == 1 { SINGLE.to_owned() } else { format!("model-{number:05}-of-{count:05}.safetensors") }
}

/// The content of an index.
pub(super) fn index_json(weight_map: &BTreeMap<String, String>, total_bytes: u64) -> Value {
    json!({"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
}
