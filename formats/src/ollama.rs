//! The Modelfile with which Ollama takes a GGUF of ours, or a GGUF adapter on a model that it has.
//!
//! Ollama reads gpt-oss' channels (thinking, answer, tool calls) when the family is gpt-oss and the Go template of the Modelfile holds both
//! `<|start|>` and `<|end|>`; newer versions without one take the Jinja template out of the GGUF.
//! There is no `PARAMETER stop`: generation ends at `<|return|>` and `<|call|>`, which the GGUF names, and must run past `<|end|>`, which
//! stands between analysis and answer.
//! Source: ollama `server/routes.go` `shouldUseHarmony`, `parser/parser.go`; `template/template.go`.
//!
//! The template renders as [`crate::harmony`] does, as far as Ollama lets it: functions come with their properties sorted by name and without
//! titles, defaults and nested objects; arguments with their keys sorted; a description of several lines has one `//`. As in
//! [`crate::template`] there is no date, and analysis is gone once an answer stands after it. `think: false` becomes the level low, since gpt-oss
//! always thinks.

use thiserror::Error;

/// The template in Ollama's terms, for Go's `text/template` with Ollama's functions `json` and `toTypeScriptType`.
///
/// Source of variables and functions: ollama `template/template.go`, `api/types.go`.
pub const OLLAMA_TEMPLATE: &str = include_str!("ollama/harmony.gotmpl");

/// Sampling of gpt-oss: the distribution as it is. Source: Modelfile of `gpt-oss` in Ollama's library.
const PARAMETERS: [(&str, &str); 3] = [("temperature", "1.0"), ("top_k", "0"), ("top_p", "1.0")];

/// What a Modelfile names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modelfile {
    /// Name of the model in Ollama, for the instructions in its comments.
    pub name: String,
    /// The weights: a GGUF beside the Modelfile (`./NAME.gguf`), or with an adapter the name of a model that Ollama has (`gpt-oss:20b`).
    pub from: String,
    /// A GGUF adapter beside the Modelfile (`./adapter.gguf`).
    pub adapter: Option<String>,
}

/// A name that a Modelfile cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} of a Modelfile must be a name on one line, with no quotation mark and no blank at its ends, not {found:?}")]
pub struct ModelfileError {
    /// What it was to be.
    pub what: &'static str,
    /// The name.
    pub found: String,
}

impl Modelfile {
    /// The Modelfile.
    ///
    /// # Errors
    /// [`ModelfileError`] for a name that is empty, of several lines, quoted, or with a blank at an end: Ollama would read another.
    pub fn text(&self) -> Result<String, ModelfileError> {
        let name = checked("the name", &self.name)?;
        let mut text = format!(
            "# A gpt-oss model for Ollama 0.11.5 or newer, written by ft. In this folder:\n#\n#   ollama create {name} -f Modelfile\n\
             #   ollama run {name}\n\nFROM {}\n",
            checked("FROM", &self.from)?
        );
        if let Some(adapter) = &self.adapter {
            text += &format!("ADAPTER {}\n", checked("ADAPTER", adapter)?);
        }
        text += &format!("\nTEMPLATE \"\"\"{OLLAMA_TEMPLATE}\"\"\"\n\n");
        for (parameter, value) in PARAMETERS {
            text += &format!("PARAMETER {parameter} {value}\n");
        }
        Ok(text)
    }
}

fn checked<'n>(what: &'static str, name: &'n str) -> Result<&'n str, ModelfileError> {
    let is_plain = !name.is_empty() && name.trim() == name && !name.contains(|character: char| character == '"' || character.is_control());
    if is_plain { Ok(name) } else { Err(ModelfileError { what, found: name.to_owned() }) }
}

#[cfg(test)]
#[path = "ollama/go_template.rs"]
mod go_template;

#[cfg(test)]
mod tests;
