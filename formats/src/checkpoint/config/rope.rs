//! The stretching of rotary periods, in its two spellings.

use serde_json::{Map, Value, json};

use super::ConfigProblem;
use super::read::Keys;

/// YaRN: low frequencies are stretched by `factor`, high ones are kept, with a ramp between them. Source: arXiv 2309.00071.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnScaling {
    /// How much longer the context is than the original one.
    pub factor: f64,
    /// Turns over the original context above which a frequency is kept.
    pub beta_fast: f64,
    /// Turns over the original context below which a frequency is stretched in full.
    pub beta_slow: f64,
    /// The ends of the ramp are rounded outwards to whole pairs.
    pub truncate: bool,
    /// Positions of the original context.
    pub original_max_position_embeddings: usize,
}

impl YarnScaling {
    /// That of the published models, which is transformers' default too.
    #[must_use]
    pub fn published() -> Self {
        Self { factor: 32.0, beta_fast: 32.0, beta_slow: 1.0, truncate: false, original_max_position_embeddings: 4096 }
    }

    /// Factor of sines and cosines. Source: arXiv 2309.00071, equation 22.
    #[must_use]
    pub fn concentration(&self) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * self.factor.ln() + 1.0 }
    }

    pub(super) fn to_json(self) -> Value {
        json!({
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "factor": self.factor,
            "original_max_position_embeddings": self.original_max_position_embeddings,
            "rope_type": "yarn",
            "truncate": self.truncate,
        })
    }
}

/// `rope_theta` and the scaling, from `rope_scaling` + `rope_theta` or from `rope_parameters`.
///
/// Where neither says anything, the published scaling holds, as in transformers. Source: transformers 5.17
/// `configuration_gpt_oss.py` `__post_init__`, `modeling_rope_utils.py` `convert_rope_params_to_dict`.
pub(super) fn parse(keys: Keys<'_>, max_position_embeddings: usize) -> Result<(f64, Option<YarnScaling>), ConfigProblem> {
    let theta = keys.float("rope_theta")?;
    let scaling = keys.object("rope_scaling")?.map(|inner| section(inner, "rope_scaling", max_position_embeddings)).transpose()?;
    let parameters = keys.object("rope_parameters")?.map(|inner| section(inner, "rope_parameters", max_position_embeddings)).transpose()?;
    if let (Some(left), Some(right)) = (&scaling, &parameters)
        && left.yarn != right.yarn
    {
        return Err(ConfigProblem::Contradiction {
            key: "rope_scaling",
            found: describe(left.yarn),
            other: "`rope_parameters`",
            other_found: describe(right.yarn),
        });
    }
    let mut thetas = [theta, scaling.as_ref().and_then(|section| section.theta), parameters.as_ref().and_then(|section| section.theta)]
        .into_iter()
        .flatten();
    let first = thetas.next();
    if let (Some(first), Some(other)) = (first, thetas.find(|other| Some(*other) != first)) {
        return Err(ConfigProblem::Contradiction {
            key: "rope_theta",
            found: first.to_string(),
            other: "that of `rope_parameters`",
            other_found: other.to_string(),
        });
    }
    let yarn = parameters.or(scaling).map_or_else(|| Some(YarnScaling::published()), |section| section.yarn);
    Ok((first.unwrap_or(150_000.0), yarn)) // Source of the default: transformers `GptOssConfig.default_theta`.
}

fn describe(yarn: Option<YarnScaling>) -> String {
    yarn.map_or_else(|| "plain".to_owned(), |yarn| yarn.to_json().to_string())
}

struct Section {
    theta: Option<f64>,
    yarn: Option<YarnScaling>,
}

fn section(object: &Map<String, Value>, name: &'static str, max_position_embeddings: usize) -> Result<Section, ConfigProblem> {
    let keys = Keys::inside(object, name);
    if let Some((key, value)) = object.iter().find(|(_, value)| value.is_object()) {
        return Err(keys.unsupported(key, value, "one set of rope parameters for all layers"));
    }
    let theta = keys.float("rope_theta")?;
    if keys.float("partial_rotary_factor")?.is_some_and(|fraction| fraction != 1.0) {
        return Err(keys.unsupported("partial_rotary_factor", &object["partial_rotary_factor"], "1"));
    }
    let spelled = if object.contains_key("rope_type") { "rope_type" } else { "type" };
    let yarn = match keys.text(spelled)? {
        None | Some("default") => None,
        Some("yarn") => Some(YarnScaling {
            factor: keys.float("factor")?.ok_or(ConfigProblem::Missing { key: "rope_scaling.factor" })?,
            beta_fast: keys.float("beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.float("beta_slow")?.unwrap_or(1.0),
            truncate: keys.boolean("truncate")?.unwrap_or(true),
            original_max_position_embeddings: keys.count("original_max_position_embeddings")?.unwrap_or(max_position_embeddings),
        }),
        Some(other) => return Err(keys.unsupported(spelled, &other.into(), "\"yarn\" or \"default\"")),
    };
    if let Some(yarn) = yarn {
        for key in ["mscale", "mscale_all_dim"] {
            if keys.float(key)?.is_some() {
                return Err(keys.unsupported(key, &object[key], "YaRN without it"));
            }
        }
        if keys.float("attention_factor")?.is_some_and(|factor| (factor - yarn.concentration()).abs() > 1e-9) {
            return Err(keys.unsupported("attention_factor", &object["attention_factor"], "0.1 ln(factor) + 1"));
        }
    }
    Ok(Section { theta, yarn })
}
