//! `ft merge`: an adapter folded into the weights of its model, and what storing them cost.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ft_formats::merge::{Merge, MergeTarget};
use ft_formats::peft::AdapterConfig;

use crate::commands::quantize::{decibels, report_path};
use crate::conversion::{Outcome, check_bound, report_text, words};
use crate::disk::check_room;
use crate::error::{Error, Result};
use crate::json;
use crate::progress::ByteProgress;
use crate::report_file::ReportFile;
use crate::terminal::Terminal;
use crate::units::parse_bytes;

/// Fold a LoRA adapter into its model, and say what it cost in accuracy
///
/// Takes adapters by ft and by PEFT, of attention, experts, router and lm_head. The update is computed in f32, added and rounded once. What the
/// adapter does not touch is byte for byte that of the model, single experts too. Experts in MXFP4 stay in it: each block takes, of the scale
/// that it had, the standard one and the next larger one, that with the least squared error.
///
/// The result appears when it is complete and has passed the gate of --fail-below.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft merge models/gpt-oss-20b runs/coding/adapter models/20b-coding --report report.html
  ft merge models/gpt-oss-20b runs/coding/adapter models/20b-coding-bf16 --to bf16
  ft merge models/20b-bf16 runs/coding/adapter models/20b-coding --to mxfp4 --hint-from models/gpt-oss-20b

Exit code 1 when the gate fails: the figures are printed all the same, but neither the model nor a report is written.

JSON: {\"version\": 1, \"target\", \"adapter\": {\"path\", \"base_model\", \"changed_tensors\", \"kept_tensors\", \"changed_experts\", \"kept_experts\"},
\"total\": {\"sqnr_db\" (null when exact), ...}, \"tensors\": [{\"name\", ...}], ...}, as that of `ft quantize`")]
pub(crate) struct Arguments {
    /// The model directory
    model: PathBuf,
    /// The adapter's directory
    adapter: PathBuf,
    /// Where the result goes; must not exist, or be empty
    out: PathBuf,
    /// How the experts are stored; all other weights keep their type
    #[arg(long, value_enum, default_value_t = Target::Keep)]
    to: Target,
    /// An MXFP4 model whose scales blocks start from: usually the one that a bf16 model was unpacked from
    #[arg(long, value_name = "MODEL")]
    hint_from: Option<PathBuf>,
    /// Bytes of a file of tensors at most, like 500MB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "5GB")]
    shard_size: u64,
    /// Write the report to this file, too: a page for .html, JSON for .json; may be given several times
    #[arg(long, value_name = "FILE", value_parser = report_path)]
    report: Vec<PathBuf>,
    /// Fail when a tensor's signal is less than this many dB above the error
    #[arg(long, value_name = "DB", value_parser = decibels, allow_negative_numbers = true)]
    fail_below: Option<f64>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// As in the model
    Keep,
    /// Four bits an element, as published
    Mxfp4,
    /// 16 bits an element
    Bf16,
}

/// Merge, print, judge, publish.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let reports: Vec<ReportFile<'_>> = arguments.report.iter().map(|path| ReportFile::prepare(path)).collect::<Result<_>>()?;
    let request = merge(arguments)?;
    check_room(&arguments.out, request.target_bytes()?)?;
    note_base(arguments, terminal)?;
    let mut progress = ByteProgress::new(format!("merging {}", arguments.model.display()), terminal);
    let merged = request.run(&mut |done, total| progress.set(done, total))?;
    progress.finish();
    let outcome = Outcome::new(merged.report(), None);
    if arguments.json {
        json::print(&outcome, terminal)?;
    } else {
        terminal.print(&words(merged.report(), None, terminal.stdout.palette))?;
    }
    check_bound(merged.report(), arguments.fail_below)?;
    let pages: Vec<String> = arguments.report.iter().map(|path| report_text(path, merged.report(), &outcome)).collect::<Result<_>>()?;
    merged.publish()?;
    reports.into_iter().zip(pages).try_for_each(|(report, text)| report.publish_text(&text))
}

fn merge(arguments: &Arguments) -> Result<Merge<'_>> {
    let to = match arguments.to {
        Target::Keep => MergeTarget::Keep,
        Target::Mxfp4 => MergeTarget::Mxfp4,
        Target::Bf16 => MergeTarget::Bf16,
    };
    if arguments.hint_from.is_some() && to != MergeTarget::Mxfp4 {
        return Err(Error::NoEffect { argument: "--hint-from", reason: "only `--to mxfp4` starts from given scales" });
    }
    Ok(Merge {
        model: &arguments.model,
        adapter: &arguments.adapter,
        target: &arguments.out,
        to,
        hints_from: arguments.hint_from.as_deref(),
        max_shard_bytes: arguments.shard_size,
    })
}

/// Says so when the adapter names another model than the one it is merged into; which may well be the same by another name.
fn note_base(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let config = AdapterConfig::read(&arguments.adapter)?;
    if let Some(base) = config.base_model.filter(|base| !is_same_place(Path::new(base), &arguments.model)) {
        terminal.note(&format!("{} says that it was made for {base}", arguments.adapter.display()));
    }
    Ok(())
}

fn is_same_place(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
