//! `adapter_config.json`.

use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::{AdapterPair, AdapterProblem, AdapterTarget, CONFIG};
use crate::error::{Error, Result};
use crate::json;

/// Bytes of a config at most.
const LIMIT_BYTES: u64 = 1 << 20;

/// What an adapter's config says of it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// The model that it was made for; a directory or an id of the Hub.
    pub base_model: Option<String>,
    /// `r`.
    pub rank: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// Scale by the root of the rank.
    pub use_rslora: bool,
    /// Modules that are adapted, by the end of their names; a single expression where the config has one.
    pub target_modules: Vec<String>,
    /// Parameters that are adapted, by the end of their names.
    pub target_parameters: Vec<String>,
    /// Other ranks, by an expression for the end of a name; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas, by an expression for the end of a name; the first that matches counts.
    pub alpha_pattern: Vec<(String, f64)>,
}

impl AdapterConfig {
    /// The config of an adapter that consists of `pairs`.
    ///
    /// Where the adapted layers are 0 to n, names without a layer stand for them; else each is named in full. A pair of another rank or
    /// scaling than `rank` and `alpha` give gets an entry in the patterns.
    #[must_use]
    pub fn for_pairs(base_model: &str, rank: usize, alpha: f64, use_rslora: bool, pairs: &[AdapterPair]) -> Self {
        let mut config = Self {
            base_model: Some(base_model.to_owned()),
            rank,
            alpha,
            use_rslora,
            target_modules: Vec::new(),
            target_parameters: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        };
        let layers: BTreeSet<usize> = pairs.iter().filter_map(|pair| pair.target.layer()).collect();
        let targets: BTreeSet<AdapterTarget> = pairs.iter().map(|pair| pair.target).collect();
        let kinds: BTreeSet<&str> = targets.iter().filter(|target| target.layer().is_some()).map(|target| target.local_key()).collect();
        let in_layers = targets.iter().filter(|target| target.layer().is_some()).count();
        let is_everywhere = layers.iter().copied().eq(0..layers.len()) && in_layers == kinds.len() * layers.len();
        for &target in &targets {
            let list = if target.is_parameter() { &mut config.target_parameters } else { &mut config.target_modules };
            let name = match target {
                AdapterTarget::Attention { projection, .. } if is_everywhere => projection.name().to_owned(),
                _ if is_everywhere => target.local_key().to_owned(),
                _ => target.key(),
            };
            if !list.contains(&name) {
                list.push(name);
            }
        }
        for pair in pairs {
            if pair.rank != rank {
                config.rank_pattern.push((pair.target.key(), pair.rank));
            }
            let pair_alpha = pair.scaling * divisor(pair.rank, use_rslora);
            if (pair_alpha - alpha).abs() > 1e-9 * alpha.abs() {
                config.alpha_pattern.push((pair.target.key(), pair_alpha));
            }
        }
        config
    }

    /// Reads the config in the adapter's `directory`.
    ///
    /// # Errors
    /// [`Error::Adapter`] with the key that is missing, wrong or not supported; [`Error::Io`], [`Error::Json`].
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(CONFIG);
        let object = json::read_object(&path, LIMIT_BYTES)?;
        parse(&object).map_err(|problem| Error::Adapter { path, problem })
    }

    /// The content of `adapter_config.json`: the keys that every version of PEFT since 0.17 knows.
    #[must_use]
    pub fn to_json(&self) -> Value {
        // PEFT declares alpha as an integer, and takes a float as well.
        let alpha = if self.alpha.fract() == 0.0 && self.alpha.abs() < 1e15 { json!(self.alpha as i64) } else { json!(self.alpha) };
        let rank_pattern: Map<String, Value> = self.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank))).collect();
        let alpha_pattern: Map<String, Value> = self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), json!(alpha))).collect();
        json!({
            "alpha_pattern": alpha_pattern,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": rank_pattern,
            "target_modules": self.target_modules,
            "target_parameters": (!self.target_parameters.is_empty()).then_some(&self.target_parameters),
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }

    /// Rank and scaling of a weight.
    ///
    /// # Errors
    /// A rank of 0, a scaling that is no number, or a pattern that is no expression.
    pub(super) fn rank_and_scaling(&self, target: AdapterTarget) -> Result<(usize, f64), AdapterProblem> {
        let key = target.key();
        let rank = matching("rank_pattern", &self.rank_pattern, &key)?.unwrap_or(self.rank);
        let alpha = matching("alpha_pattern", &self.alpha_pattern, &key)?.unwrap_or(self.alpha);
        if rank == 0 {
            return Err(AdapterProblem::RankZero { target: key });
        }
        let scaling = alpha / divisor(rank, self.use_rslora);
        if scaling.is_finite() { Ok((rank, scaling)) } else { Err(AdapterProblem::Scaling { target: key, found: scaling }) }
    }

    /// True when `target_parameters` names the parameter `key`. Source: PEFT `_inject_parameters`.
    pub(super) fn targets_parameter(&self, key: &str) -> bool {
        self.target_parameters
            .iter()
            .any(|target| key.strip_suffix(target.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
    }
}

/// What alpha is divided by. Source: PEFT `LoraLayer.update_layer`.
fn divisor(rank: usize, use_rslora: bool) -> f64 {
    let rank = rank as f64;
    if use_rslora { rank.sqrt() } else { rank }
}

/// The entry whose expression matches the end of `key`. Source: PEFT `utils/other.py`, `get_pattern_key`.
fn matching<T: Copy>(name: &'static str, patterns: &[(String, T)], key: &str) -> Result<Option<T>, AdapterProblem> {
    for (pattern, value) in patterns {
        let expression = Regex::new(&format!(r"^(.*\.)?({pattern})$"));
        let expression = expression.map_err(|_| AdapterProblem::Pattern { key: name, pattern: pattern.clone() })?;
        if expression.is_match(key) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn parse(object: &Map<String, Value>) -> Result<AdapterConfig, AdapterProblem> {
    let value = |key: &str| object.get(key).filter(|value| !value.is_null());
    let wrong = |key: &str, expected, found: &Value| {
        let found: String = found.to_string().chars().take(80).collect();
        AdapterProblem::WrongType { key: key.to_owned(), expected, found }
    };
    let boolean = |key: &str| value(key).map_or(Ok(false), |found| found.as_bool().ok_or_else(|| wrong(key, "true or false", found)));
    match value("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(other) => return Err(AdapterProblem::Unsupported { key: "peft_type", found: other.to_string(), supported: "\"LORA\"" }),
        None => return Err(AdapterProblem::MissingKey { key: "peft_type" }),
    }
    for key in ["use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "alora_invocation_tokens"] {
        if let Some(found) = value(key).filter(|found| *found != &Value::Bool(false)) {
            return Err(AdapterProblem::Unsupported { key, found: found.to_string(), supported: "an adapter without it" });
        }
    }
    for key in ["modules_to_save", "trainable_token_indices", "layer_replication", "megatron_config", "loftq_config"] {
        let is_empty = |found: &Value| match found {
            Value::Array(list) => list.is_empty(),
            Value::Object(entries) => entries.is_empty(),
            _ => false,
        };
        if let Some(found) = value(key).filter(|found| !is_empty(found)) {
            return Err(AdapterProblem::Unsupported { key, found: found.to_string(), supported: "an adapter without it" });
        }
    }
    if let Some(found) = value("bias").filter(|found| found.as_str() != Some("none")) {
        return Err(AdapterProblem::Unsupported { key: "bias", found: found.to_string(), supported: "\"none\"" });
    }
    let count = |key: &str, found: &Value| {
        let count = found.as_u64().and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| wrong(key, "a whole number, not negative", found))
    };
    let number = |key: &str, found: &Value| found.as_f64().ok_or_else(|| wrong(key, "a number", found));
    let names = |key: &str| match value(key) {
        None => Ok(Vec::new()),
        Some(Value::String(name)) => Ok(vec![name.clone()]),
        Some(found) => {
            let list = found.as_array().and_then(|list| list.iter().map(|item| item.as_str().map(str::to_owned)).collect());
            list.ok_or_else(|| wrong(key, "a list of strings", found))
        }
    };
    let entries = |key: &str| match value(key) {
        None => Ok(Vec::new()),
        Some(Value::Object(entries)) => Ok(entries.iter().collect()),
        Some(found) => Err(wrong(key, "an object", found)),
    };
    let rank = count("r", value("r").ok_or(AdapterProblem::MissingKey { key: "r" })?)?;
    if rank == 0 {
        return Err(AdapterProblem::RankZero { target: "r".to_owned() });
    }
    let alpha = number("lora_alpha", value("lora_alpha").ok_or(AdapterProblem::MissingKey { key: "lora_alpha" })?)?;
    Ok(AdapterConfig {
        base_model: match value("base_model_name_or_path") {
            None => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(found) => return Err(wrong("base_model_name_or_path", "a string", found)),
        },
        rank,
        alpha,
        use_rslora: boolean("use_rslora")?,
        target_modules: names("target_modules")?,
        target_parameters: names("target_parameters")?,
        rank_pattern: entries("rank_pattern")?
            .into_iter()
            .map(|(pattern, found)| Ok((pattern.clone(), count("rank_pattern", found)?)))
            .collect::<Result<_, _>>()?,
        alpha_pattern: entries("alpha_pattern")?
            .into_iter()
            .map(|(pattern, found)| Ok((pattern.clone(), number("alpha_pattern", found)?)))
            .collect::<Result<_, _>>()?,
    })
}
