//! `ft inspect`: what is in a model, an adapter, a run, or a file of tensors.

mod adapter;
mod gguf;
mod model;
mod run;
mod tensors;

use std::path::{Path, PathBuf};

use clap::Args;
use ft_formats::gguf::GgufFile;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::json;
use crate::terminal::Terminal;

/// Say what is in a model, an adapter, a run, or a GGUF or safetensors file
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft inspect models/nano
  ft inspect runs/quickstart
  ft inspect runs/quickstart/adapter --json
  ft inspect models/nano/model.safetensors
  ft inspect models/nano.gguf")]
pub(crate) struct Arguments {
    /// A directory, or a GGUF or safetensors file
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Found {
    Model(model::Model),
    Adapter(adapter::Adapter),
    Run(run::Run),
    Safetensors(tensors::TensorFile),
    Gguf(gguf::Gguf),
}

/// Recognise, read, print.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let found = look(&arguments.path)?;
    if arguments.json {
        return json::print(&found, terminal);
    }
    let palette = terminal.stdout.palette;
    terminal.print(&match &found {
        Found::Model(model) => model.words(palette),
        Found::Adapter(adapter) => adapter.words(palette),
        Found::Run(run) => run.words(palette),
        Found::Safetensors(file) => file.words(palette),
        Found::Gguf(file) => file.words(palette),
    })
}

fn look(path: &Path) -> Result<Found> {
    let has = |name: &str| path.join(name).exists();
    if !path.exists() {
        return Err(Error::Nothing { path: path.to_owned() });
    }
    if path.is_file() && GgufFile::is_at(path)? {
        return Ok(Found::Gguf(gguf::Gguf::read(path)?));
    }
    if path.is_file() {
        return Ok(Found::Safetensors(tensors::TensorFile::read(path)?));
    }
    if has("config.json") || has("original/config.json") {
        Ok(Found::Model(model::Model::read(path)?))
    } else if has("adapter_config.json") {
        Ok(Found::Adapter(adapter::Adapter::read(path)?))
    } else if has("metrics.jsonl") || has("checkpoints") {
        Ok(Found::Run(run::Run::read(path)?))
    } else if GgufFile::is_at(path)? {
        Ok(Found::Gguf(gguf::Gguf::read(path)?))
    } else {
        Err(Error::Unrecognised { path: path.to_owned() })
    }
}
