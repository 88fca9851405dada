//! `ft verify`: whether a model in one form is the model that it was made of.

use std::path::PathBuf;

use clap::Args;

use crate::error::Result;
use crate::json;
use crate::terminal::Terminal;
use crate::verification::{Bounds, Outcome, verified, words};

/// Compare a model with the one that it was made of: every tensor, and what both answer
///
/// Takes model directories and GGUF files. Tensors are compared one by one as the numbers that a runtime computes with; then both models
/// run over a few conversations in harmony, in f32 and a layer at a time, so that a model larger than memory can be verified.
///
/// It passes when every tensor is as near as its type can be - exact, where the type holds all that the source's does - and what lost little or
/// nothing answers alike.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft verify exports/20b.gguf --against models/20b
  ft verify exports/20b-q4.gguf --against models/20b --fail-above-kl 0.05 --data data/heldout.jsonl
  ft verify models/20b-release --against models/20b --json

Exit code 1 when it does not pass; the figures are printed all the same.

JSON: {\"version\": 1, \"model\", \"source\", \"tensors\": {\"count\", \"exact\", \"worst\": {\"name\", \"expert\",
\"sqnr_db\"} or null}, \"prompts\",
\"kl_divergence\": {\"mean\", \"maximum\", ...}, \"same_top_fraction\", \"counted_tokens\"}")]
pub(crate) struct Arguments {
    /// The model in question: a directory or a GGUF file
    file: PathBuf,
    /// The model that it was made of
    #[arg(long, value_name = "MODEL")]
    against: PathBuf,
    /// Conversations for both to answer, instead of some short ones
    #[arg(long, num_args = 1.., value_name = "FILE")]
    data: Vec<String>,
    #[command(flatten)]
    bounds: Bounds,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Compare, print, judge.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let data = (!arguments.data.is_empty()).then_some(&arguments.data[..]);
    let verification = verified(&arguments.file, &arguments.against, data, terminal)?;
    if arguments.json {
        json::print(&Outcome::new(&arguments.file, &arguments.against, &verification), terminal)?;
    } else {
        terminal.print(&words(&arguments.file, &arguments.against, &verification, terminal.stdout.palette))?;
    }
    arguments.bounds.judge(&arguments.file, &verification)
}
