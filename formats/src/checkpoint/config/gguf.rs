//! The config that the metadata of a GGUF file spells.
//!
//! What it cannot say is that of the published models: constants of the activation, an exact ramp of YaRN, layers that slide in turn.
//!
//! Source: gguf 0.19.0 `constants.py`, `Keys`; llama.cpp `src/models/openai-moe.cpp`, `src/llama-model.cpp` (`load_hparams`).

use super::validate::{LIMIT_LAYERS, LIMIT_SIZE};
use super::{Config, ConfigProblem, LayerType, YarnScaling};
use crate::error::{Error, Result};
use crate::gguf::{ARCHITECTURE, Array, GgufFile, GgufProblem, OLLAMA_ARCHITECTURE, Value};

/// Reads and checks the config of the model in `file`; its experts are taken for plain ones.
///
/// # Errors
/// [`Error::Gguf`] with the key that is missing, wrong, or says what this program does not compute; [`Error::Config`] for numbers that
/// make no model.
pub(in crate::checkpoint) fn of_gguf(file: &GgufFile) -> Result<Config> {
    let in_file = |problem| Error::Gguf { path: file.main_file().to_owned(), problem };
    let keys = Keys::of(file).map_err(in_file)?;
    let num_hidden_layers = keys.required("block_count").map_err(in_file)?;
    let vocab_size = file.tensor("token_embd.weight")?.shape[0];
    // Before anything of that length is made.
    let config = if !(1..=LIMIT_LAYERS).contains(&num_hidden_layers) {
        let found = num_hidden_layers.to_string();
        Err(ConfigProblem::OutOfRange { key: "num_hidden_layers", expected: "1 to 4096", found })
    } else {
        let config = keys.config(num_hidden_layers, vocab_size).map_err(in_file)?;
        config.validate().map(|()| config)
    };
    config.map_err(|problem| Error::Config { path: file.main_file().to_owned(), problem })
}

/// The model's own keys, read by type.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'static str,
}

impl<'a> Keys<'a> {
    fn of(file: &'a GgufFile) -> Result<Self, GgufProblem> {
        let key = "general.architecture";
        let found = match file.get(key) {
            Some(Value::String(found)) => found.as_str(),
            Some(other) => return Err(wrong_type(key, "a string", other)),
            None => return Err(GgufProblem::MissingKey { key: key.to_owned() }),
        };
        match file.get("general.type").map(|kind| kind.as_str().unwrap_or_default()) {
            None | Some("model") => {}
            Some(other) => return Err(GgufProblem::Kind { found: other.to_owned() }),
        }
        let architecture = [ARCHITECTURE, OLLAMA_ARCHITECTURE].into_iter().find(|known| *known == found);
        architecture.map(|architecture| Self { file, architecture }).ok_or_else(|| GgufProblem::Architecture { found: found.to_owned() })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn read<T>(&self, name: &str, expected: &'static str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, GgufProblem> {
        let key = self.key(name);
        let Some(value) = self.file.get(&key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong_type(&key, expected, value))
    }

    fn count(&self, name: &str) -> Result<Option<usize>, GgufProblem> {
        // What no model reaches is refused as too large, not as of another type.
        let count = |value: &Value| value.as_u64().map(|count| usize::try_from(count).unwrap_or(usize::MAX).min(LIMIT_SIZE + 1));
        self.read(name, "a whole number, not negative", count)
    }

    fn float(&self, name: &str) -> Result<Option<f64>, GgufProblem> {
        self.read(name, "a float", decimal)
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, GgufProblem> {
        self.read(name, "a string", Value::as_str)
    }

    fn required(&self, name: &str) -> Result<usize, GgufProblem> {
        self.count(name)?.ok_or_else(|| self.missing(name))
    }

    fn required_float(&self, name: &str) -> Result<f64, GgufProblem> {
        self.float(name)?.ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> GgufProblem {
        GgufProblem::MissingKey { key: self.key(name) }
    }

    fn unsupported(&self, name: &str, found: &str, supported: &'static str) -> GgufProblem {
        GgufProblem::Unsupported { key: self.key(name), found: found.to_owned(), supported }
    }

    /// Refuses a number other than `only`.
    fn fixed(&self, name: &str, only: f64, supported: &'static str) -> Result<(), GgufProblem> {
        match self.float(name)? {
            Some(found) if found != only => Err(self.unsupported(name, &found.to_string(), supported)),
            _ => Ok(()),
        }
    }

    fn config(&self, num_hidden_layers: usize, vocab_size: usize) -> Result<Config, GgufProblem> {
        let published = Config::gpt_oss_20b();
        let hidden_size = self.required("embedding_length")?;
        let num_attention_heads = self.required("attention.head_count")?;
        let max_position_embeddings = self.required("context_length")?;
        let head_dim = self.count("attention.key_length")?.unwrap_or_else(|| hidden_size / num_attention_heads.max(1));
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(found) = self.count(name)?.filter(|found| *found != head_dim) {
                return Err(self.unsupported(name, &found.to_string(), "the length of keys"));
            }
        }
        let rope_theta = self.required_float("rope.freq_base")?;
        self.fixed("rope.freq_base_swa", rope_theta, "that of `rope.freq_base`")?;
        // A small vocabulary does not reach the published ids.
        let is_token = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < vocab_size);
        Ok(Config {
            vocab_size,
            hidden_size,
            intermediate_size: self.intermediate_size()?,
            num_hidden_layers,
            num_local_experts: self.required("expert_count")?,
            num_experts_per_token: self.required("expert_used_count")?,
            num_attention_heads,
            num_key_value_heads: self.count("attention.head_count_kv")?.unwrap_or(num_attention_heads),
            head_dim,
            layer_types: self.layer_types(num_hidden_layers)?,
            sliding_window: self.required("attention.sliding_window")?,
            rms_norm_eps: self.required_float("attention.layer_norm_rms_epsilon")?,
            rope_theta,
            rope_scaling: self.rope_scaling(max_position_embeddings)?,
            max_position_embeddings,
            eos_token_id: self.eos_token_ids()?.unwrap_or_else(|| published.eos_token_id.iter().copied().filter(is_token).collect()),
            pad_token_id: self.token_id("tokenizer.ggml.padding_token_id")?.or(published.pad_token_id.filter(is_token)),
            has_mxfp4_experts: false,
            ..published
        })
    }

    /// Ollama's own files do not have the key, and tell by the tensors.
    fn intermediate_size(&self) -> Result<usize, GgufProblem> {
        if let Some(size) = self.count("expert_feed_forward_length")? {
            return Ok(size);
        }
        let rows = self.file.find("blk.0.ffn_gate_exps.weight").and_then(|view| view.shape.get(1));
        rows.copied().filter(|_| self.architecture == OLLAMA_ARCHITECTURE).ok_or_else(|| self.missing("expert_feed_forward_length"))
    }

    fn layer_types(&self, num_hidden_layers: usize) -> Result<Vec<LayerType>, GgufProblem> {
        let name = "attention.sliding_window_pattern";
        let of = |slides: bool| if slides { LayerType::SlidingAttention } else { LayerType::FullAttention };
        match self.file.get(&self.key(name)) {
            None => Ok(LayerType::alternating(num_hidden_layers)),
            Some(Value::Array(Array::Bool(slides))) if slides.len() == num_hidden_layers => Ok(slides.iter().copied().map(of).collect()),
            Some(Value::Array(Array::Bool(slides))) => {
                Err(self.unsupported(name, &format!("of {} layers", slides.len()), "one of as many layers as the model has"))
            }
            // The last of so many layers is full, and 0 makes all of them slide. Source: llama.cpp `llama_hparams::set_swa_pattern`.
            Some(value) => match value.as_u64() {
                Some(period) => {
                    let slides = |layer: usize| period == 0 || layer as u64 % period < period - 1;
                    Ok((0..num_hidden_layers).map(slides).map(of).collect())
                }
                None => Err(wrong_type(&self.key(name), "a whole number or an array of bools", value)),
            },
        }
    }

    fn rope_scaling(&self, max_position_embeddings: usize) -> Result<Option<YarnScaling>, GgufProblem> {
        let factor = self.float("rope.scaling.factor")?;
        let is_yarn = match self.text("rope.scaling.type")? {
            Some("yarn") => true,
            Some("none") => false,
            Some(other) => return Err(self.unsupported("rope.scaling.type", other, "\"yarn\" or \"none\"")),
            // llama.cpp takes a bare factor for linear scaling, Ollama's own files mean YaRN.
            None if self.architecture == OLLAMA_ARCHITECTURE => factor.is_some(),
            None if factor.is_some_and(|factor| factor != 1.0) => {
                return Err(self.unsupported("rope.scaling.type", "missing", "\"yarn\" or \"none\""));
            }
            None => false,
        };
        if !is_yarn {
            return Ok(None);
        }
        for name in ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"] {
            self.fixed(name, 1.0, "1")?;
        }
        Ok(Some(YarnScaling {
            factor: factor.ok_or_else(|| self.missing("rope.scaling.factor"))?,
            beta_fast: self.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: self.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            truncate: false,
            original_max_position_embeddings: self.count("rope.scaling.original_context_length")?.unwrap_or(max_position_embeddings),
        }))
    }

    /// The ids that end a text: Ollama lists several, llama.cpp names one and knows the others by their spelling.
    fn eos_token_ids(&self) -> Result<Option<Vec<u32>>, GgufProblem> {
        let key = "tokenizer.ggml.eos_token_ids";
        match self.file.get(key) {
            None => Ok(self.token_id("tokenizer.ggml.eos_token_id")?.map(|id| vec![id])),
            Some(Value::Array(Array::U32(ids))) => Ok(Some(ids.clone())),
            Some(value @ Value::Array(Array::I32(ids))) => {
                let ids: Option<Vec<u32>> = ids.iter().map(|&id| u32::try_from(id).ok()).collect();
                ids.map(Some).ok_or_else(|| wrong_type(key, "an array of token ids", value))
            }
            Some(value) => Err(wrong_type(key, "an array of token ids", value)),
        }
    }

    fn token_id(&self, key: &str) -> Result<Option<u32>, GgufProblem> {
        let Some(value) = self.file.get(key) else { return Ok(None) };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(Some).ok_or_else(|| wrong_type(key, "a token id", value))
    }
}

fn wrong_type(key: &str, expected: &'static str, found: &Value) -> GgufProblem {
    GgufProblem::WrongType { key: key.to_owned(), expected, found: found.value_type() }
}

/// A float; one of single precision by its shortest decimal, which is what the writer had.
fn decimal(value: &Value) -> Option<f64> {
    match value {
        Value::F32(value) => value.to_string().parse().ok(),
        Value::F64(value) => Some(*value),
        _ => None,
    }
}
