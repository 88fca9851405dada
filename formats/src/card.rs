//! The model card of an export: `README.md` with the front matter that the Hub reads, and what a user needs to run it.

mod runtimes;
mod yaml;

use std::fmt::Write;

use serde_json::Value;

/// What the card stands beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CardKind {
    /// A model directory in the Hugging Face layout.
    Safetensors,
    /// A model directory in OpenAI's own layout.
    OpenAi,
    /// A GGUF of this file name.
    Gguf {
        /// The file.
        file: String,
    },
    /// A GGUF of this file name with a Modelfile beside it.
    Ollama {
        /// The file.
        file: String,
    },
    /// A GGUF adapter of this file name.
    GgufAdapter {
        /// The file.
        file: String,
    },
    /// An adapter directory in PEFT's format.
    PeftAdapter,
}

impl CardKind {
    fn is_adapter(&self) -> bool {
        matches!(self, Self::GgufAdapter { .. } | Self::PeftAdapter)
    }
}

/// What is said about an export. Everything but `name` and `kind` may be left out.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// Its name, on one line.
    pub name: String,
    /// What it is.
    pub kind: CardKind,
    /// The model that it was made from: a Hub id, or any other name.
    pub base_model: Option<String>,
    /// The recipe of the run, as TOML.
    pub recipe: Option<String>,
    /// Fingerprint of the training data.
    pub data_fingerprint: Option<String>,
    /// The last figures of the run.
    pub metrics: Option<TrainingFigures>,
    /// What quantization cost.
    pub quantization: Option<QuantizationFigures>,
}

/// The last figures of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TrainingFigures {
    /// Steps done.
    pub steps: Option<u64>,
    /// Loss of the last step, in nats per token.
    pub loss: Option<f64>,
    /// Loss of the last evaluation, in nats per token.
    pub validation_loss: Option<f64>,
}

impl TrainingFigures {
    /// The last figures in the lines of a `metrics.jsonl`; nothing where no line holds any. A line that is no JSON (a run that was cut off
    /// leaves half a line) is passed over.
    #[must_use]
    pub fn last_of(metrics_jsonl: &str) -> Option<TrainingFigures> {
        let mut figures = TrainingFigures::default();
        for line in metrics_jsonl.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if let Some(loss) = line.get("loss").and_then(Value::as_f64) {
                figures.loss = Some(loss);
                figures.steps = line.get("step").and_then(Value::as_u64).or(figures.steps);
            }
            if let Some(loss) = line.get("validation_loss").and_then(Value::as_f64) {
                figures.validation_loss = Some(loss);
            }
        }
        (figures != TrainingFigures::default()).then_some(figures)
    }
}

/// What quantization cost, over the weights that it changed.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizationFigures {
    /// How the experts were stored, for instance `bf16`.
    pub from: String,
    /// How the weights are stored, for instance `mxfp4` or `Q4_K_M`.
    pub to: String,
    /// Signal to quantization noise, in dB; nothing where nothing was lost.
    pub signal_to_noise_db: Option<f64>,
    /// Root mean square of the error over that of the weights, as a fraction.
    pub relative_error: f64,
    /// The tensor with the most noise, and its signal to noise in dB.
    pub worst: Option<(String, f64)>,
}

impl ModelCard {
    /// The card, in Markdown.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.front_matter();
        let base = self.base_model.as_deref().map(one_line);
        let made = match &self.kind {
            CardKind::Safetensors => "A gpt-oss model in the Hugging Face layout",
            CardKind::OpenAi => "A gpt-oss model in OpenAI's layout",
            CardKind::Gguf { .. } => "A gpt-oss model as GGUF",
            CardKind::Ollama { .. } => "A gpt-oss model for Ollama",
            CardKind::GgufAdapter { .. } => "A LoRA adapter for gpt-oss as GGUF",
            CardKind::PeftAdapter => "A LoRA adapter for gpt-oss in PEFT's format",
        };
        text += &format!("\n# {}\n\n{made}", one_line(&self.name));
        if let Some(base) = &base {
            text += &format!(", made from {}", code(base));
        }
        text += ". It speaks harmony, the conversation format of gpt-oss, and is meant to be used with it.\n";
        text += &runtimes::section(&self.kind, &one_line(&self.name), base.as_deref());
        text += &self.training();
        text += &self.cost();
        text
    }

    fn front_matter(&self) -> String {
        let mut tags = vec!["gpt-oss"];
        if self.kind.is_adapter() {
            tags.push("lora");
        }
        let library = match self.kind {
            CardKind::Safetensors => Some("transformers"),
            CardKind::PeftAdapter => Some("peft"),
            CardKind::Gguf { .. } | CardKind::Ollama { .. } | CardKind::GgufAdapter { .. } => {
                tags.push("gguf");
                Some("gguf")
            }
            CardKind::OpenAi => None,
        };
        let mut text = "---\nlicense: apache-2.0\n".to_owned();
        // The Hub refuses a card whose base model is not the id of a repository.
        if let Some(base) = self.base_model.as_deref().filter(|base| is_hub_id(base)) {
            text += &format!("base_model: {}\n", yaml::scalar(base));
            if self.kind.is_adapter() {
                text += "base_model_relation: adapter\n";
            }
        }
        text += "pipeline_tag: text-generation\n";
        if let Some(library) = library {
            text += &format!("library_name: {library}\n");
        }
        text += &format!("model_name: {}\ntags:\n", yaml::scalar(&one_line(&self.name)));
        for tag in tags {
            text += &format!("- {tag}\n");
        }
        text + "---\n"
    }

    fn training(&self) -> String {
        if self.recipe.is_none() && self.data_fingerprint.is_none() && self.metrics.is_none() {
            return String::new();
        }
        let mut text = "\n## Training\n\nTrained with ft, each token weighed by its harmony channel.\n".to_owned();
        let mut rows = Vec::new();
        if let Some(figures) = &self.metrics {
            rows.extend(figures.steps.map(|steps| ("steps", steps.to_string())));
            rows.extend(figures.loss.map(|loss| ("loss of the last step", format!("{loss:.4}"))));
            rows.extend(figures.validation_loss.map(|loss| ("validation loss", format!("{loss:.4}"))));
        }
        rows.extend(self.data_fingerprint.as_deref().map(|fingerprint| ("fingerprint of the data", code(&one_line(fingerprint)))));
        text += &table(&rows);
        if let Some(recipe) = &self.recipe {
            text += &format!("\nThe recipe:\n\n{}", fenced("toml", recipe));
        }
        text
    }

    fn cost(&self) -> String {
        let Some(figures) = &self.quantization else {
            return String::new();
        };
        let decibels = |value: f64| format!("{value:.2} dB");
        let mut rows = vec![("stored as", format!("{}, made of experts in {}", one_line(&figures.to), one_line(&figures.from)))];
        rows.push(("signal to noise", figures.signal_to_noise_db.map_or_else(|| "exact".to_owned(), decibels)));
        rows.push(("relative error", format!("{:.4}%", figures.relative_error * 100.0)));
        if let Some((tensor, noise)) = &figures.worst {
            rows.push(("worst tensor", format!("{}, {}", code(&one_line(tensor)), decibels(*noise))));
        }
        format!("\n## Quantization\n\nWhat storing the weights otherwise cost, over those that it changed.\n{}", table(&rows))
    }
}

fn table(rows: &[(&str, String)]) -> String {
    let mut text = String::new();
    if !rows.is_empty() {
        text += "\n| | |\n| --- | --- |\n";
    }
    for (name, value) in rows {
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {name} | {} |", value.replace('|', "\\|"));
    }
    text
}

/// `text` as inline code, whatever backticks are in it.
fn code(text: &str) -> String {
    let fence = "`".repeat(longest_run_of_backticks(text) + 1);
    if fence.len() == 1 { format!("`{text}`") } else { format!("{fence} {text} {fence}") }
}

/// `text` as a block of code, whatever backticks are in it.
fn fenced(language: &str, text: &str) -> String {
    let fence = "`".repeat(longest_run_of_backticks(text).max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

fn longest_run_of_backticks(text: &str) -> usize {
    text.split(|character| character != '`').map(str::len).max().unwrap_or(0)
}

/// `text` with a blank for every control character: a name that cannot end its line.
fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect::<String>().trim().to_owned()
}

/// Whether `name` can be a repository of the Hub: `owner/name`. Source: huggingface_hub `utils/_validators.py` `validate_repo_id`.
fn is_hub_id(name: &str) -> bool {
    let is_part = |part: &str| {
        let is_allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        !part.is_empty() && part.chars().all(is_allowed) && !part.starts_with(['-', '.']) && !part.ends_with(['-', '.'])
    };
    let is_shaped = name.split_once('/').is_some_and(|(owner, repository)| is_part(owner) && is_part(repository));
    is_shaped && name.len() <= 96 && !name.contains("--") && !name.contains("..")
}

#[cfg(test)]
mod tests;
