//! `ft export`: a model for a runtime, verified against the one that it was made of.

mod adapter;
mod card;
mod gguf;
mod outcome;
mod safetensors;
mod target;

use std::path::{Path, PathBuf};

use clap::Args;
use ft_trainer::verification::Verification;

use crate::error::{Error, Result};
use crate::json;
use crate::terminal::Terminal;
use crate::units::parse_bytes;
use crate::verification::{Bounds, verified};
use outcome::{Outcome, words};
use target::Target;

/// Write a model for llama.cpp, LM Studio, Ollama, transformers, vLLM or OpenAI's own code, and verify what was written
///
/// What is written: `gguf` a GGUF file of the weights as they are, MXFP4 experts byte for byte; `gguf:TYPE` one of another type: f32, bf16, f16,
/// q8_0, mxfp4 (experts in MXFP4, all else in q8_0, as ggml-org publishes it), or the mixes of llama-quantize: q6_k, q5_k_m, q5_k_s, q4_k_m,
/// q4_k_s, q5_1, q5_0, q4_0. `ollama` and `ollama:TYPE` a folder with a GGUF file and a Modelfile. `safetensors` a model directory with the
/// experts as they are, `safetensors:mxfp4` or `safetensors:bf16` with them so. `openai` OpenAI's own layout. `gguf-lora` a LoRA adapter for
/// llama.cpp, that of experts included; `gguf-lora:f16` or `:bf16` at half the size. `ollama` of an adapter a folder with it and a Modelfile, `peft`
/// one in PEFT's usual layout.
///
/// Before it appears, what was written is read back and compared with MODEL as by `ft verify`: tensors one by one, and what both answer.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft export models/20b exports/20b.gguf --to gguf
  ft export models/20b exports/20b-q4.gguf --to gguf:q4_k_m --split-size 4GB
  ft export models/20b exports/20b-ollama --to ollama
  ft export exports/20b.gguf models/20b-again --to safetensors
  ft export models/20b exports/20b-openai --to openai
  ft export runs/coding/adapter exports/coding.gguf --to gguf-lora --base models/gpt-oss-20b

Exit code 1 when the verification fails: nothing is written then.

JSON: {\"version\": 1, \"source\", \"target\", \"to\", \"files\": [...], \"bytes\", \"seconds\", \"types\": {\"MXFP4\": 72, ...},
\"verification\": {\"tensors\", \"kl_divergence\", ...} or null}")]
pub(crate) struct Arguments {
    /// The model: a directory or a GGUF file; for gguf-lora, peft and ollama also an adapter's directory
    model: PathBuf,
    /// Where the result goes: for gguf a file that ends in .gguf, or a folder for it and a model card; else a folder
    out: PathBuf,
    /// What is written
    #[arg(long, value_name = "TARGET", value_parser = target::parse)]
    to: Target,
    /// The model that an adapter changes [default: the one that it names]
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// The adapter, where MODEL is the model that it changes
    #[arg(long, value_name = "DIR", conflicts_with = "base")]
    adapter: Option<PathBuf>,
    /// Bytes of tensors in a file at most, like 4GB [default: one file, and 5GB for safetensors and openai]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    split_size: Option<u64>,
    /// Name of the model in the file and its card [default: that of its directory]
    #[arg(long)]
    name: Option<String>,
    /// Write without reading back
    #[arg(long)]
    no_verify: bool,
    #[command(flatten)]
    bounds: Bounds,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

/// Write, verify, publish, print.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    check(arguments)?;
    let exported = match arguments.to {
        Target::Gguf(to) => gguf::export(arguments, to, false, terminal),
        Target::Ollama(_) if adapter::is_meant(arguments) => adapter::export_for_ollama(arguments),
        Target::Ollama(to) => gguf::export(arguments, to, true, terminal),
        Target::Safetensors(storage) => safetensors::export(arguments, storage, terminal),
        Target::OpenAi => safetensors::export_original(arguments, terminal),
        Target::GgufLora(tensor_type) => adapter::export(arguments, tensor_type, terminal),
        Target::Peft => adapter::export_peft(arguments),
    }?;
    if arguments.json {
        return json::print(&Outcome::new(arguments, &exported), terminal);
    }
    terminal.print(&words(arguments, &exported, terminal.stdout.palette))
}

/// The name of the model.
fn model_name(arguments: &Arguments) -> String {
    arguments.name.clone().unwrap_or_else(|| name_of(&arguments.model))
}

/// The name of a directory, or of a file without its ending; of a run's `model` or `adapter` that of the run.
fn name_of(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let path = if path.extension().is_some_and(|ending| ending == "gguf") { path.with_extension("") } else { path };
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let is_of_run = path.parent().is_some_and(|run| run.join("metrics.jsonl").exists());
    let named = if is_of_run { path.parent().and_then(last) } else { last(&path) };
    named.unwrap_or_else(|| "model".to_owned())
}

/// A name as part of a file's name.
fn in_file_name(name: &str) -> String {
    name.replace(['/', ' '], "-")
}

/// A name as Ollama has them.
fn in_ollama(name: &str) -> String {
    name.to_lowercase().replace(' ', "-")
}

/// What was written compared with what it was made of, unless that is not wanted; it has to pass.
fn verify(arguments: &Arguments, written: &Path, terminal: &Terminal) -> Result<Option<Verification>> {
    if arguments.no_verify {
        return Ok(None);
    }
    let verification = verified(written, &arguments.model, None, terminal)?;
    arguments.bounds.judge(&arguments.out, &verification)?;
    Ok(Some(verification))
}

/// Refuses what would have no effect.
fn check(arguments: &Arguments) -> Result<()> {
    let is_adapter = match arguments.to {
        Target::GgufLora(_) | Target::Peft => true,
        Target::Ollama(_) => adapter::is_meant(arguments),
        _ => false,
    };
    let no_effect = |argument, reason| Err(Error::NoEffect { argument, reason });
    if arguments.no_verify && arguments.bounds.are_given() {
        return no_effect("--no-verify", "--fail-below and --fail-above-kl judge the verification");
    }
    match arguments {
        Arguments { base: Some(_), .. } if !is_adapter => no_effect("--base", "it belongs to an adapter"),
        Arguments { adapter: Some(_), .. } if !is_adapter => {
            no_effect("--adapter", "`ft merge` folds it into its model, which can be exported then")
        }
        Arguments { split_size: Some(_), .. } if is_adapter => no_effect("--split-size", "an adapter is one file"),
        _ => Ok(()),
    }
}
