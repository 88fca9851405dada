//! What was exported, in words and for scripts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ft_trainer::verification::Verification;
use serde::Serialize;

use super::Arguments;
use super::target::{Experts, Target};
use crate::terminal::Palette;
use crate::units::{bytes, counted, duration};
use crate::verification::{Figures, figures};

/// What was written.
#[derive(Debug)]
pub(super) struct Exported {
    pub(super) files: Vec<PathBuf>,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    /// Tensors of each type, where the target has types of its own.
    pub(super) types: BTreeMap<&'static str, usize>,
    pub(super) verification: Option<Verification>,
    /// What to do with it next.
    pub(super) next: String,
}

impl Exported {
    /// Files that are there, made since `started`; nothing is known of their types or of a verification yet.
    pub(super) fn new(files: Vec<PathBuf>, started: Instant, next: String) -> Self {
        let bytes = files.iter().filter_map(|file| fs::metadata(file).ok()).map(|status| status.len()).sum();
        Self { files, bytes, seconds: started.elapsed().as_secs_f64(), types: BTreeMap::new(), verification: None, next }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Outcome<'a> {
    source: &'a Path,
    target: &'a Path,
    to: String,
    files: &'a [PathBuf],
    bytes: u64,
    seconds: f64,
    types: &'a BTreeMap<&'static str, usize>,
    verification: Option<Figures<'a>>,
}

impl<'a> Outcome<'a> {
    pub(super) fn new(arguments: &'a Arguments, exported: &'a Exported) -> Self {
        Self {
            source: &arguments.model,
            target: &arguments.out,
            to: name(arguments.to),
            files: &exported.files,
            bytes: exported.bytes,
            seconds: exported.seconds,
            types: &exported.types,
            verification: exported.verification.as_ref().map(Figures::of),
        }
    }
}

fn name(target: Target) -> String {
    match target {
        Target::Gguf(to) => format!("gguf:{}", to.name().to_lowercase()),
        Target::Ollama(to) => format!("ollama:{}", to.name().to_lowercase()),
        Target::Safetensors(None) => "safetensors".to_owned(),
        Target::Safetensors(Some(Experts::Mxfp4)) => "safetensors:mxfp4".to_owned(),
        Target::Safetensors(Some(Experts::Bf16)) => "safetensors:bf16".to_owned(),
        Target::OpenAi => "openai".to_owned(),
        Target::Peft => "peft".to_owned(),
        Target::GgufLora(tensor_type) => format!("gguf-lora:{}", tensor_type.name().to_lowercase()),
    }
}

/// The files, what was found when they were read back, and the next step.
pub(super) fn words(arguments: &Arguments, exported: &Exported, palette: Palette) -> String {
    let mut lines = Vec::new();
    match &exported.files[..] {
        [file] => lines.push(format!("{}  {}", palette.heading("written"), file.display())),
        files => lines.push(format!("{}  {} in {}", palette.heading("written"), counted(files.len(), "file"), place(files).display())),
    }
    let types: Vec<String> = exported.types.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let types = if types.is_empty() { String::new() } else { format!(", {}", types.join(", ")) };
    lines.push(format!("           {}{types}, in {}", bytes(exported.bytes), duration(exported.seconds)));
    match &exported.verification {
        Some(verification) => lines.push(figures(verification)),
        None if arguments.no_verify => lines.push("not verified: `ft verify` does it later".to_owned()),
        None => {}
    }
    lines.push(format!("{}  {}", palette.heading("next"), exported.next));
    lines.join("\n")
}

fn place(files: &[PathBuf]) -> &Path {
    files.first().and_then(|file| file.parent()).unwrap_or(Path::new("."))
}
