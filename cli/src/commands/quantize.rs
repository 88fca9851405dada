//! `ft quantize`: a checkpoint with its experts stored another way, and what that cost.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ft_formats::report::ConversionReport;
use ft_formats::requantize::{ExpertTarget, Requantization, Requantized};
use ft_quant::Codec;
use ft_quant::cuda::Gpu;
use ft_quant::mxfp4::{Packing, Rounding, ScaleRule};
use ft_trainer::evaluation::{Evaluation, EvaluationData, EvaluationRequest, Held, evaluate};

use crate::arguments::ComputeDtype;
use crate::commands::eval;
use crate::conversion::{Outcome, check_bound, report_text, words};
use crate::disk::check_room;
use crate::error::{Error, Result};
use crate::evaluation::Watcher;
use crate::json;
use crate::progress::ByteProgress;
use crate::report_file::ReportFile;
use crate::terminal::Terminal;
use crate::units::parse_bytes;

/// Store a checkpoint's experts in MXFP4 or as bf16, and say what it cost in accuracy
///
/// All tensors but the experts' matrices are copied byte for byte. Scales are chosen per block. `hint` starts from those of the source, or
/// of --hint-from, and takes the best of that scale, the standard one and the next larger one by squared error: weights that did not change
/// keep their bytes. Without scales to start from it is `even`. `floor` is the rule of the OCP specification and of llama.cpp, `rceil` that
/// of Triton and transformers.
///
/// The result appears when it is complete and has passed the gates: --fail-below for the weights of each tensor, --fail-above-kl for what
/// the model answers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft quantize models/20b-tuned models/20b-release --to mxfp4 --hint-from models/gpt-oss-20b --report report.html
  ft quantize models/gpt-oss-20b models/20b-bf16 --to bf16
  ft quantize models/20b-tuned models/20b-release --to mxfp4 --fail-below 18 \\
      --fail-above-kl 0.02 --data data/heldout.jsonl

Exit code 1 when a gate fails: the figures are printed all the same, but neither the model nor a report is written.

JSON: {\"version\": 1, \"target\", \"total\": {\"sqnr_db\" (null when exact), \"relative_error\", \"maximum_error\", \"cosine\",
\"changed_codes_fraction\", \"changed_scales_fraction\", \"clipped_fraction\", \"largest_codes\", ...}, \"tensors\": [{\"name\", ...}], ...}")]
pub(crate) struct Arguments {
    /// The model: a directory, or a GGUF file
    model: PathBuf,
    /// Where the result goes; must not exist, or be empty
    out: PathBuf,
    /// How the experts are stored
    #[arg(long, value_enum)]
    to: Target,
    /// How a block's scale is chosen [default: hint]
    #[arg(long, value_enum)]
    scale: Option<Scale>,
    /// What becomes of elements halfway between two codes [default: even]
    #[arg(long, value_enum)]
    rounding: Option<ElementRounding>,
    /// An MXFP4 model whose scales `hint` starts from: usually the one that this one was trained from
    #[arg(long, value_name = "MODEL")]
    hint_from: Option<PathBuf>,
    /// Where the arithmetic is done; the bytes are the same
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
    /// Bytes of a file of tensors at most, like 500MB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "5GB")]
    shard_size: u64,
    /// Write the report to this file, too: a page for .html, JSON for .json; may be given several times
    #[arg(long, value_name = "FILE", value_parser = report_path)]
    report: Vec<PathBuf>,
    /// Fail when a tensor's signal is less than this many dB above the error
    #[arg(long, value_name = "DB", value_parser = decibels, allow_negative_numbers = true)]
    fail_below: Option<f64>,
    /// Fail when the result's mean KL divergence from the source is above this many nats on the conversations of --data
    #[arg(long, value_name = "NATS", value_parser = eval::bound, requires = "data", allow_negative_numbers = true)]
    fail_above_kl: Option<f64>,
    /// Conversations on which the result is compared with the source, as by `ft eval`
    #[arg(long, num_args = 1.., value_name = "FILE")]
    data: Vec<String>,
    /// Conversations read, the first ones
    #[arg(long, value_name = "N", requires = "data")]
    limit: Option<NonZeroUsize>,
    /// Type of weights and activations for that comparison
    #[arg(long, value_enum, requires = "data", default_value_t = ComputeDtype::F32)]
    dtype: ComputeDtype,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Four bits an element, as published
    Mxfp4,
    /// 16 bits an element
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scale {
    /// The least error of a given scale and two others; keeps the bytes of what did not change
    Hint,
    /// Rounds the largest element's mantissa to one bit first
    Even,
    /// The least error of the two scales that can have it
    Mse,
    /// As in the OCP specification and llama.cpp: large elements may be clipped
    Floor,
    /// As in Triton and transformers: nothing is clipped
    Rceil,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ElementRounding {
    /// To the even code
    Even,
    /// Toward zero, as ggml does; every zero is positive
    Ggml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The cores of this machine
    Cpu,
    /// The first NVIDIA GPU
    Cuda,
}

impl Device {
    fn codec(self) -> Result<Codec> {
        match self {
            Self::Cpu => Ok(Codec::Cpu),
            Self::Cuda => Gpu::open(0).map(|gpu| Codec::Cuda(Box::new(gpu))).map_err(|source| Error::NoGpu { source }),
        }
    }
}

/// A bound in dB.
pub(crate) fn decibels(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|value| value.is_finite()).ok_or_else(|| "a number of decibels".to_owned())
}

/// A file whose ending says what it is.
pub(crate) fn report_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("html" | "json") => Ok(path),
        _ => Err("a file that ends in .html or .json".to_owned()),
    }
}

/// Convert, compare, print, judge, publish.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let reports: Vec<ReportFile<'_>> = arguments.report.iter().map(|path| ReportFile::prepare(path)).collect::<Result<_>>()?;
    let request = requantization(arguments)?;
    let codec = arguments.device.codec()?;
    check_room(&arguments.out, request.target_bytes()?)?;
    let mut progress = ByteProgress::new(format!("converting {}", arguments.model.display()), terminal);
    let converted = request.run(&codec, &mut |done, total| progress.set(done, total))?;
    progress.finish();
    let evaluation = (!arguments.data.is_empty()).then(|| compare(arguments, &converted, terminal)).transpose()?;
    let outcome = Outcome::new(converted.report(), evaluation.as_ref());
    if arguments.json {
        json::print(&outcome, terminal)?;
    } else {
        terminal.print(&words(converted.report(), evaluation.as_ref(), terminal.stdout.palette))?;
    }
    judge(arguments, converted.report(), evaluation.as_ref())?;
    let pages: Vec<String> = arguments.report.iter().map(|path| report_text(path, converted.report(), &outcome)).collect::<Result<_>>()?;
    converted.publish()?;
    reports.into_iter().zip(pages).try_for_each(|(report, text)| report.publish_text(&text))
}

fn requantization(arguments: &Arguments) -> Result<Requantization<'_>> {
    let to = match arguments.to {
        Target::Mxfp4 => ExpertTarget::Mxfp4(packing(arguments)),
        Target::Bf16 => {
            let given = [
                ("--scale", arguments.scale.is_some()),
                ("--rounding", arguments.rounding.is_some()),
                ("--hint-from", arguments.hint_from.is_some()),
            ];
            match given.into_iter().find(|(_, is_given)| *is_given) {
                Some((argument, _)) => return Err(Error::NoEffect { argument, reason: "with `--to bf16` there are no scales to choose" }),
                None => ExpertTarget::Bf16,
            }
        }
    };
    if arguments.hint_from.is_some() && !matches!(arguments.scale, None | Some(Scale::Hint)) {
        return Err(Error::NoEffect { argument: "--hint-from", reason: "only `--scale hint` starts from given scales" });
    }
    Ok(Requantization {
        source: &arguments.model,
        target: &arguments.out,
        to,
        hints_from: arguments.hint_from.as_deref(),
        max_shard_bytes: arguments.shard_size,
    })
}

fn packing(arguments: &Arguments) -> Packing {
    let rule = match arguments.scale.unwrap_or(Scale::Hint) {
        Scale::Hint => ScaleRule::Hint,
        Scale::Even => ScaleRule::Even,
        Scale::Mse => ScaleRule::Mse,
        Scale::Floor => ScaleRule::Floor,
        Scale::Rceil => ScaleRule::Rceil,
    };
    let rounding = match arguments.rounding.unwrap_or(ElementRounding::Even) {
        ElementRounding::Even => Rounding::Even,
        ElementRounding::Ggml => Rounding::TowardZero,
    };
    Packing { rule, rounding }
}

/// Compares what the result answers with what the source does.
fn compare(arguments: &Arguments, converted: &Requantized, terminal: &Terminal) -> Result<Evaluation> {
    let request = EvaluationRequest {
        model: converted.path(),
        adapter: None,
        reference: Some(&arguments.model),
        data: EvaluationData::Files(&arguments.data),
        max_tokens: None,
        limit: arguments.limit.map(NonZeroUsize::get),
        dtype: arguments.dtype.into(),
        held: Held::Whole,
    };
    let mut watcher = Watcher::new(terminal);
    let mut evaluation = evaluate(&request, &mut |progress| watcher.advance(&progress))?;
    watcher.finish();
    // Where it was meanwhile is nobody's business.
    evaluation.model.clone_from(&arguments.out);
    Ok(evaluation)
}

/// The gates.
fn judge(arguments: &Arguments, report: &ConversionReport, evaluation: Option<&Evaluation>) -> Result<()> {
    check_bound(report, arguments.fail_below)?;
    evaluation.map_or(Ok(()), |evaluation| eval::check_bound(evaluation, arguments.fail_above_kl))
}
