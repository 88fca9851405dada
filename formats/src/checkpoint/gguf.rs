//! A GGUF file as a checkpoint: its tensors by their Hugging Face names, in the shapes and layouts that these have.
//!
//! Plain floats are handed out as they lie in the file. Quantized weights become f32. The experts' matrices are put together from
//! those of gate and up: in MXFP4 byte for byte as OpenAI published them, else as plain floats [in, out].

#[cfg(test)]
mod malformed;
#[cfg(test)]
mod tests;
mod values;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use ft_quant::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};

use super::config::of_gguf;
use super::experts::ExpertMatrix;
use super::shards::Shards;
use super::{Config, ExpertStorage, Projection, tensor_specs};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, GgufProblem, GgufTensor, GgufView, Held, TensorType, gguf_tensors};
use crate::safetensors::TensorSpec;

/// A model in a GGUF file, or in several.
#[derive(Debug)]
pub(super) struct GgufModel {
    file: GgufFile,
    storage: ExpertStorage,
    num_experts: usize,
    /// Beside the model's specs.
    places: Vec<Place>,
    /// Of each layer, by [`Projection`].
    layers: Vec<[Parts; 2]>,
}

/// Where the values of a tensor are.
#[derive(Debug)]
enum Place {
    /// In the tensor of this name.
    Whole(String),
    /// In those of a projection.
    Experts { layer: usize, projection: Projection, held: HeldByExperts },
}

/// What of a projection a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeldByExperts {
    Floats,
    Blocks,
    Scales,
    Biases,
}

/// The tensors that make up a projection: one, or those of gate and up, whose outputs take turns in a checkpoint.
#[derive(Debug, Default)]
struct Parts {
    weights: Vec<String>,
    biases: Vec<String>,
    /// Inputs of the matrix.
    inputs: usize,
    /// Type of its elements, where they are plain.
    dtype: Option<Dtype>,
}

/// True for a GGUF file, and for a directory with such files and no model in another format.
pub(super) fn is_gguf(path: &Path) -> Result<bool> {
    Ok(!Shards::are_in(path) && !Shards::are_in(&path.join("original")) && GgufFile::is_at(path)?)
}

impl GgufModel {
    /// Opens the model: it, its config, and its tensors in the order of a forward pass with the types that they are handed out in.
    pub(super) fn open(path: &Path) -> Result<(Self, Config, Vec<TensorSpec>)> {
        let file = GgufFile::open(path)?;
        let mut config = of_gguf(&file)?;
        if let Some(fused) = file.tensors().find(|view| is_fused(view.name)) {
            let layout = "projections that are fused";
            return Err(Error::UnsupportedLayout { path: file.file_of(fused.name).to_owned(), layout, tensor: fused.name.to_owned() });
        }
        let mut used = HashSet::new();
        let mut found = Vec::new();
        for tensor in gguf_tensors(&config) {
            let view = checked(&file, &tensor)?;
            used.insert(view.name);
            found.push((tensor.held, view));
        }
        if let Some(other) = file.tensors().find(|view| !used.contains(view.name)) {
            return Err(Error::UnexpectedTensor { tensor: other.name.to_owned(), path: file.file_of(other.name).to_owned() });
        }
        let layers = parts(&found, config.num_hidden_layers);
        let of_experts = || found.iter().filter(|(held, _)| matches!(held, Held::Experts { .. }));
        config.has_mxfp4_experts = of_experts().all(|(_, view)| view.tensor_type == TensorType::Mxfp4);
        let storage = match layers.first().and_then(|[gate_up, _]| gate_up.dtype) {
            _ if config.has_mxfp4_experts => ExpertStorage::Mxfp4,
            dtype => ExpertStorage::Float(dtype.unwrap_or(Dtype::F32)),
        };
        let mut specs = tensor_specs(&config, storage);
        let mut by_name = places(&found);
        let missing = |name: &str| Error::MissingTensor { tensor: name.to_owned(), path: file.main_file().to_owned() };
        let places = specs.iter().map(|spec| by_name.remove(&spec.name).ok_or_else(|| missing(&spec.name))).collect::<Result<Vec<_>>>()?;
        for (spec, place) in specs.iter_mut().zip(&places) {
            spec.dtype = match place {
                Place::Whole(tensor) => held_dtype([file.tensor(tensor)?.tensor_type]),
                Place::Experts { layer, projection, held: HeldByExperts::Floats } => {
                    layers[*layer][*projection as usize].dtype.unwrap_or(Dtype::F32)
                }
                Place::Experts { layer, projection, held: HeldByExperts::Biases } => {
                    let names = &layers[*layer][*projection as usize].biases;
                    held_dtype(names.iter().filter_map(|name| file.find(name)).map(|view| view.tensor_type))
                }
                Place::Experts { .. } => Dtype::U8,
            };
        }
        drop(found);
        Ok((Self { file, storage, num_experts: config.num_local_experts, places, layers }, config, specs))
    }

    pub(super) fn file(&self) -> &GgufFile {
        &self.file
    }

    pub(super) fn storage(&self) -> ExpertStorage {
        self.storage
    }

    /// The file that holds the tensor with this index among the specs.
    pub(super) fn file_of(&self, index: usize) -> &Path {
        self.file.file_of(&self.names(index)[0])
    }

    /// True when the tensor with this index among the specs is made of others than floats, and is not in MXFP4 to its user either.
    pub(super) fn is_quantized(&self, index: usize) -> bool {
        let is_plain = |name: &String| self.file.find(name).is_some_and(|view| view.tensor_type.float_dtype().is_some());
        let is_packed = matches!(self.places[index], Place::Experts { held: HeldByExperts::Blocks | HeldByExperts::Scales, .. });
        !is_packed && !self.names(index).iter().all(is_plain)
    }

    /// The tensors of the file that make up the one with this index among the specs.
    fn names(&self, index: usize) -> &[String] {
        match &self.places[index] {
            Place::Whole(tensor) => std::slice::from_ref(tensor),
            Place::Experts { layer, projection, held } => {
                let parts = &self.layers[*layer][*projection as usize];
                if *held == HeldByExperts::Biases { &parts.biases } else { &parts.weights }
            }
        }
    }

    /// The bytes of `spec`, which has this index among the specs.
    pub(super) fn tensor(&self, index: usize, spec: &TensorSpec) -> Result<Cow<'_, [u8]>> {
        match &self.places[index] {
            Place::Whole(tensor) => self.values(&self.file.tensor(tensor)?, None, spec.dtype),
            Place::Experts { layer, projection, held: HeldByExperts::Biases } => {
                let views = self.views(&self.layers[*layer][*projection as usize].biases)?;
                if let [only] = &views[..] {
                    return self.values(only, None, spec.dtype);
                }
                let parts = views.iter().map(|view| self.values(view, None, spec.dtype)).collect::<Result<Vec<_>>>()?;
                Ok(values::taken_in_turn(&parts, spec.dtype.size()).into())
            }
            Place::Experts { layer, projection, held } => {
                let mut bytes = Vec::new();
                for expert in 0..self.num_experts {
                    match (self.expert(*layer, *projection, expert)?, held) {
                        (ExpertMatrix::Float { values, .. }, _) => bytes.extend_from_slice(&values),
                        (ExpertMatrix::Mxfp4 { scales, .. }, HeldByExperts::Scales) => bytes.extend_from_slice(&scales),
                        (ExpertMatrix::Mxfp4 { blocks, .. }, _) => bytes.extend_from_slice(&blocks),
                    }
                }
                Ok(bytes.into())
            }
        }
    }

    /// The matrix of an expert; `layer` and `expert` are of the model.
    pub(super) fn expert(&self, layer: usize, projection: Projection, expert: usize) -> Result<ExpertMatrix<'_>> {
        let parts = &self.layers[layer][projection as usize];
        let views = self.views(&parts.weights)?;
        let of_expert: Vec<&[u8]> = views.iter().map(|view| slice(view.bytes, expert, self.num_experts)).collect();
        let matrix = if self.storage == ExpertStorage::Mxfp4 {
            let num_blocks = of_expert.iter().map(|bytes| bytes.len()).sum::<usize>() / (BLOCK_BYTES + 1);
            let (mut blocks, mut scales) = (vec![0; num_blocks * BLOCK_BYTES], vec![0; num_blocks]);
            values::packed(&of_expert, parts.inputs / BLOCK_ELEMENTS, &mut blocks, &mut scales)
                .map_err(|(part, source)| self.unreadable(&views[part], Some(expert), source))?;
            ExpertMatrix::Mxfp4 { blocks: blocks.into(), scales: scales.into() }
        } else {
            let dtype = parts.dtype.unwrap_or(Dtype::F32);
            let of_parts = views.iter().zip(&of_expert).map(|(view, &bytes)| GgufView { bytes, ..*view });
            let decoded = of_parts.map(|view| self.values(&view, Some(expert), dtype)).collect::<Result<Vec<_>>>()?;
            ExpertMatrix::Float { dtype, values: values::transposed(&decoded, parts.inputs, dtype.size()).into() }
        };
        // What was read is read again from the system's cache if it is asked for.
        of_expert.iter().for_each(|bytes| self.file.release(bytes));
        Ok(matrix)
    }

    /// Has the system read the matrix of an expert ahead.
    pub(super) fn prefetch_expert(&self, layer: usize, projection: Projection, expert: usize) {
        for view in self.layers[layer][projection as usize].weights.iter().filter_map(|name| self.file.find(name)) {
            self.file.prefetch(slice(view.bytes, expert, self.num_experts));
        }
    }

    fn views(&self, names: &[String]) -> Result<Vec<GgufView<'_>>> {
        names.iter().map(|name| self.file.tensor(name)).collect()
    }

    /// The values in `view`, of one expert or of all, as `dtype`: theirs, or f32.
    fn values<'a>(&self, view: &GgufView<'a>, expert: Option<usize>, dtype: Dtype) -> Result<Cow<'a, [u8]>> {
        if view.tensor_type.float_dtype() == Some(dtype) {
            return Ok(view.bytes.into());
        }
        let values = values::to_f32(view.tensor_type, view.bytes).map_err(|source| self.unreadable(view, expert, source))?;
        self.file.release(view.bytes);
        Ok(values.into())
    }

    fn unreadable(&self, view: &GgufView<'_>, expert: Option<usize>, source: ft_quant::Error) -> Error {
        let (tensor, path) = (view.name.to_owned(), self.file.file_of(view.name).to_owned());
        match expert {
            Some(expert) => Error::Packed { tensor, path, expert, source },
            None => Error::Quantized { tensor, path, source },
        }
    }
}

/// The part of an expert in what holds those of all.
fn slice(bytes: &[u8], expert: usize, num_experts: usize) -> &[u8] {
    let length = bytes.len() / num_experts;
    &bytes[expert * length..(expert + 1) * length]
}

/// True for projections that llama.cpp can keep in one tensor and that the files of gpt-oss keep apart.
fn is_fused(name: &str) -> bool {
    [".ffn_gate_up_exps.", ".attn_qkv."].iter().any(|part| name.contains(part))
}

/// `tensor` as it is in the file, where it may have the name that Ollama gave it.
fn checked<'a>(file: &'a GgufFile, tensor: &GgufTensor) -> Result<GgufView<'a>> {
    let other = ollama_name(&tensor.name);
    let view = match file.find(&tensor.name).or_else(|| file.find(&other?)) {
        Some(view) => view,
        None => return Err(Error::MissingTensor { tensor: tensor.name.clone(), path: file.main_file().to_owned() }),
    };
    let path = file.file_of(view.name);
    if view.shape != tensor.shape {
        return Err(Error::WrongShape {
            tensor: view.name.to_owned(),
            path: path.to_owned(),
            expected: tensor.shape.clone(),
            found: view.shape.to_vec(),
        });
    }
    if view.tensor_type.float_dtype().is_none() && view.tensor_type.block_type().is_none() {
        let problem = GgufProblem::Undecodable { tensor: view.name.to_owned(), tensor_type: view.tensor_type };
        return Err(Error::Gguf { path: path.to_owned(), problem });
    }
    Ok(view)
}

/// What Ollama called a tensor in its own files. Source: ollama `llama/compat/llama-ollama-compat.cpp`, `handle_gptoss`.
fn ollama_name(name: &str) -> Option<String> {
    let (block, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let part = match part {
        "attn_output.weight" => "attn_out.weight",
        "attn_output.bias" => "attn_out.bias",
        "attn_sinks.weight" => "attn_sinks",
        "post_attention_norm.weight" => "ffn_norm.weight",
        _ => return None,
    };
    Some(format!("blk.{block}.{part}"))
}

/// The experts' tensors by layer and projection; those of the gate come first.
fn parts(found: &[(Held, GgufView<'_>)], num_layers: usize) -> Vec<[Parts; 2]> {
    let mut layers: Vec<[Parts; 2]> = (0..num_layers).map(|_| Default::default()).collect();
    for (held, view) in found {
        match held {
            Held::Experts { layer, projection, .. } => {
                let parts = &mut layers[*layer][*projection as usize];
                parts.inputs = view.shape.last().copied().unwrap_or(0);
                let dtype = held_dtype([view.tensor_type]);
                parts.dtype = Some(if parts.weights.is_empty() || parts.dtype == Some(dtype) { dtype } else { Dtype::F32 });
                parts.weights.push(view.name.to_owned());
            }
            Held::ExpertBiases { layer, projection, .. } => layers[*layer][*projection as usize].biases.push(view.name.to_owned()),
            Held::Whole(_) => {}
        }
    }
    layers
}

/// Where each tensor of a checkpoint is, by its Hugging Face name.
fn places(found: &[(Held, GgufView<'_>)]) -> HashMap<String, Place> {
    let mut places = HashMap::new();
    for (held, view) in found {
        match held {
            Held::Whole(name) => {
                places.insert(name.clone(), Place::Whole(view.name.to_owned()));
            }
            &Held::Experts { layer, projection, .. } => {
                for (ending, held) in [("", HeldByExperts::Floats), ("_blocks", HeldByExperts::Blocks), ("_scales", HeldByExperts::Scales)]
                {
                    let name = format!("{}{ending}", projection.tensor_name(layer));
                    places.insert(name, Place::Experts { layer, projection, held });
                }
            }
            &Held::ExpertBiases { layer, projection, .. } => {
                let name = format!("{}_bias", projection.tensor_name(layer));
                places.insert(name, Place::Experts { layer, projection, held: HeldByExperts::Biases });
            }
        }
    }
    places
}

/// The type that values are handed out in: theirs if they are plain floats of one type, else f32.
fn held_dtype(types: impl IntoIterator<Item = TensorType>) -> Dtype {
    let mut dtypes = types.into_iter().map(TensorType::float_dtype);
    let first = dtypes.next().flatten();
    if dtypes.all(|dtype| dtype == first) { first.unwrap_or(Dtype::F32) } else { Dtype::F32 }
}
