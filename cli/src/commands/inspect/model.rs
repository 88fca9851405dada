//! A model: its sizes, and its tensors by what they do.

use std::path::{Path, PathBuf};

use ft_formats::checkpoint::{Checkpoint, Config, ExpertStorage};
use ft_formats::safetensors::TensorSpec;
use ft_trainer::run::plan::parameters;
use serde::Serialize;
use serde_json::Value;

use crate::error::Result;
use crate::terminal::Palette;
use crate::units;

/// Classes of tensors: name, and a part of the names of its tensors. The first that fits counts.
const CLASSES: [(&str, &[&str]); 6] = [
    ("embedding", &["embed_tokens"]),
    ("attention", &[".self_attn."]),
    ("router", &[".mlp.router."]),
    ("experts", &[".mlp.experts."]),
    ("norms", &["norm.weight"]),
    ("lm_head", &["lm_head"]),
];

#[derive(Debug, Serialize)]
pub(super) struct Model {
    path: PathBuf,
    parameters: u64,
    active_parameters: u64,
    bytes: u64,
    files: usize,
    experts: &'static str,
    classes: Vec<Class>,
    config: Value,
}

#[derive(Debug, Serialize)]
struct Class {
    name: &'static str,
    tensors: usize,
    parameters: u64,
    bytes: u64,
    dtypes: Vec<&'static str>,
}

impl Model {
    /// Opens the model, which checks every tensor against the config, and sums up.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let config = checkpoint.config();
        let classes: Vec<Class> = CLASSES.iter().map(|(name, parts)| class(name, parts, checkpoint.specs())).collect();
        Ok(Self {
            path: path.to_owned(),
            parameters: parameters(config),
            active_parameters: active_parameters(config, &classes),
            bytes: checkpoint.total_bytes(),
            files: checkpoint.files().len(),
            experts: match checkpoint.expert_storage() {
                ExpertStorage::Mxfp4 => "mxfp4",
                ExpertStorage::Float(dtype) => dtype.name(),
            },
            config: config.to_json(),
            classes,
        })
    }

    pub(super) fn words(&self, palette: Palette) -> String {
        let size = |key: &str| self.config.get(key).map(Value::to_string).unwrap_or_default();
        let mut text = format!(
            "{} {}\n{} parameters, {} of them active for a token; {} in {}; experts in {}\n\n",
            palette.heading("model"),
            self.path.display(),
            units::parameters(self.parameters),
            units::parameters(self.active_parameters),
            units::bytes(self.bytes),
            units::counted(self.files, "file"),
            self.experts,
        );
        text += &format!(
            "{} layers of width {}; {} query and {} key-value heads of {}; {} experts of width {}, {} for a token\n\
             vocabulary {}, window {}, {} positions\n\n",
            size("num_hidden_layers"),
            size("hidden_size"),
            size("num_attention_heads"),
            size("num_key_value_heads"),
            size("head_dim"),
            size("num_local_experts"),
            size("intermediate_size"),
            size("num_experts_per_tok"),
            size("vocab_size"),
            size("sliding_window"),
            size("max_position_embeddings"),
        );
        text += &palette.heading(&format!("{:<12}{:>8}{:>16}{:>12}  {}", "tensors", "count", "parameters", "bytes", "types"));
        for class in &self.classes {
            text += &format!(
                "\n{:<12}{:>8}{:>16}{:>12}  {}",
                class.name,
                class.tensors,
                units::whole(class.parameters),
                units::bytes(class.bytes),
                class.dtypes.join(", ")
            );
        }
        text
    }
}

fn class(name: &'static str, parts: &[&str], specs: &[TensorSpec]) -> Class {
    let is_in = |spec: &&TensorSpec| {
        let first = CLASSES.iter().find(|(_, parts)| parts.iter().any(|part| spec.name.contains(part)));
        first.is_some_and(|(_, found)| *found == parts)
    };
    let mut class = Class { name, tensors: 0, parameters: 0, bytes: 0, dtypes: Vec::new() };
    for spec in specs.iter().filter(is_in) {
        class.tensors += 1;
        class.parameters += elements(spec);
        class.bytes += spec.byte_length().unwrap_or(0);
        let dtype = if is_packed(spec) { "MXFP4" } else { spec.dtype.name() };
        if !class.dtypes.contains(&dtype) {
            class.dtypes.push(dtype);
        }
    }
    class
}

fn is_packed(spec: &TensorSpec) -> bool {
    spec.name.ends_with("_blocks") || spec.name.ends_with("_scales")
}

/// Parameters in a tensor: two in a byte of blocks, none in scales.
fn elements(spec: &TensorSpec) -> u64 {
    let count = spec.shape.iter().product::<usize>() as u64;
    match spec.name.as_str() {
        name if name.ends_with("_blocks") => 2 * count,
        name if name.ends_with("_scales") => 0,
        _ => count,
    }
}

/// Parameters that take part in one token: all but the experts that are not chosen.
fn active_parameters(config: &Config, classes: &[Class]) -> u64 {
    let experts = classes.iter().find(|class| class.name == "experts").map_or(0, |class| class.parameters);
    let idle =
        experts / config.num_local_experts.max(1) as u64 * config.num_local_experts.saturating_sub(config.num_experts_per_token) as u64;
    parameters(config).saturating_sub(idle)
}

#[cfg(test)]
mod tests {
    use ft_formats::checkpoint::tensor_specs;
    use ft_formats::dtype::Dtype;

    use super::*;

    #[test]
    fn every_tensor_is_in_one_class() {
        let config = Config::gpt_oss_20b();
        for storage in [ExpertStorage::Mxfp4, ExpertStorage::Float(Dtype::Bf16)] {
            let specs = tensor_specs(&config, storage);
            let classes: Vec<Class> = CLASSES.iter().map(|(name, parts)| class(name, parts, &specs)).collect();
            assert_eq!(classes.iter().map(|class| class.tensors).sum::<usize>(), specs.len());
            assert_eq!(classes.iter().map(|class| class.parameters).sum::<u64>(), parameters(&config));
            // 3.6 billion active parameters: model card of gpt-oss, table 1, where the embedding is not counted.
            let embedding = 201_088 * 2880;
            let active = active_parameters(&config, &classes) - embedding;
            assert!((3_550_000_000..3_650_000_000).contains(&active), "{active}");
        }
    }
}
