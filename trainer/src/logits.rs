//! The logits of given tokens, to a file: what other programs compare with.

use std::collections::BTreeMap;
use std::path::Path;

use ft_formats::checkpoint::Checkpoint;
use ft_formats::dtype::Dtype;
use ft_formats::safetensors::{SafetensorsWriter, TensorSpec};
use serde::Deserialize;

use crate::adapters::lora::Adapter;
use crate::error::Result;
use crate::model::PackedTokens;
use crate::model::weights::{Placement, load};
use crate::recipe::TrainingDtype;
use crate::torch::device::best;
use crate::torch::ops::{to_f32_vec, without_graph};

/// Token ids of one sequence, or of several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum TokensInput {
    /// `[1, 2, 3]`.
    One(Vec<u32>),
    /// `[[1, 2, 3], [4]]`.
    Several(Vec<Vec<u32>>),
}

/// Where the logits come from and go to.
#[derive(Debug)]
pub struct LogitsRequest<'a> {
    /// The model directory.
    pub model: &'a Path,
    /// An adapter on top of it.
    pub adapter: Option<&'a Path>,
    /// The sequences.
    pub tokens: &'a TokensInput,
    /// The safetensors file.
    pub output: &'a Path,
    /// Type of weights and activations.
    pub dtype: TrainingDtype,
}

/// Writes `logits` f32 [sequence, vocabulary], or `logits.0`, `logits.1`, ... for several sequences.
///
/// # Errors
/// Those of the readers, the forward pass and the writer; the file appears whole or not at all.
pub fn write_logits(request: &LogitsRequest<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<TensorSpec>> {
    let checkpoint = Checkpoint::open(request.model)?;
    let total = checkpoint.total_bytes();
    let placement = Placement::frozen(request.dtype.into(), best());
    let mut model = load(&checkpoint, placement, &mut |bytes| progress(bytes, total))?;
    if let Some(path) = request.adapter {
        Adapter::from_peft(&mut model, checkpoint.config(), path)?;
    }
    let sequences: Vec<(String, &[u32])> = match request.tokens {
        TokensInput::One(ids) => vec![("logits".to_owned(), ids)],
        TokensInput::Several(all) => all.iter().enumerate().map(|(index, ids)| (format!("logits.{index}"), &ids[..])).collect(),
    };
    let vocabulary = checkpoint.config().vocab_size;
    let specs: Vec<TensorSpec> = sequences
        .iter()
        .map(|(name, ids)| TensorSpec { name: name.clone(), dtype: Dtype::F32, shape: vec![ids.len(), vocabulary] })
        .collect();
    let mut writer = SafetensorsWriter::create(request.output, &specs, &BTreeMap::new())?;
    for (name, ids) in sequences {
        let tokens = PackedTokens::from_sequences([ids], model.device)?;
        let logits = without_graph(|| model.logits(&tokens))?;
        writer.write(&name, bytemuck::cast_slice(&to_f32_vec(&logits)?))?;
    }
    writer.finish()?;
    Ok(specs)
}
