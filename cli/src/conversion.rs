//! What a requantization or a merge did, in words and for scripts.

use std::path::Path;

use ft_formats::checkpoint::ExpertStorage;
use ft_formats::peft::AdapterTarget;
use ft_formats::report::{AdapterReport, ConversionReport, ScaleSource};
use ft_quant::Accuracy;
use ft_quant::mxfp4::{Packing, Rounding, ScaleRule};
use ft_trainer::evaluation::Evaluation;
use serde::Serialize;

use crate::accuracy_page;
use crate::error::{Error, Result};
use crate::evaluation;
use crate::json;
use crate::terminal::Palette;
use crate::units::{bytes, counted, duration, percent};

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome<'a> {
    source: &'a Path,
    target: &'a Path,
    /// What a merge did.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<Adapter<'a>>,
    from: &'static str,
    to: &'static str,
    /// The rule that chose the scales; none for plain experts.
    scale: Option<&'static str>,
    rounding: Option<&'static str>,
    /// The model whose scales were the start.
    scales_from: Option<&'a Path>,
    source_bytes: u64,
    target_bytes: u64,
    seconds: f64,
    total: Measures,
    tensors: Vec<Tensor>,
    evaluation: Option<&'a Evaluation>,
}

#[derive(Debug, Serialize)]
struct Adapter<'a> {
    path: &'a Path,
    base_model: Option<&'a str>,
    changed_tensors: usize,
    kept_tensors: usize,
    changed_experts: usize,
    kept_experts: usize,
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    #[serde(flatten)]
    measures: Measures,
}

/// The measures of a tensor; fractions are of its elements or blocks.
#[derive(Debug, Serialize)]
struct Measures {
    elements: u64,
    blocks: u64,
    /// None when nothing was lost.
    sqnr_db: Option<f64>,
    relative_error: f64,
    cosine: f64,
    maximum_error: f64,
    maximum_value: f64,
    clipped_fraction: f64,
    flushed_fraction: f64,
    /// None when there was nothing to compare with.
    changed_codes_fraction: Option<f64>,
    changed_scales_fraction: Option<f64>,
    /// Blocks by the code, 0 to 7, of their largest element.
    largest_codes: [u64; 8],
}

impl<'a> Outcome<'a> {
    pub(crate) fn new(report: &'a ConversionReport, evaluation: Option<&'a Evaluation>) -> Self {
        let packing = effective_packing(report);
        let tensors = report.tensors.iter().map(|tensor| Tensor { name: tensor.name(), measures: Measures::of(&tensor.accuracy) });
        Self {
            source: &report.source,
            target: &report.target,
            adapter: report.adapter.as_ref().map(Adapter::of),
            from: storage_name(report.from),
            to: storage_name(report.to),
            scale: packing.map(|packing| rule_name(packing.rule)),
            rounding: packing.map(|packing| rounding_name(packing.rounding)),
            scales_from: scales_from(report),
            source_bytes: report.source_bytes,
            target_bytes: report.target_bytes,
            seconds: report.seconds,
            total: Measures::of(&report.total()),
            tensors: tensors.collect(),
            evaluation,
        }
    }
}

impl<'a> Adapter<'a> {
    fn of(report: &'a AdapterReport) -> Self {
        Self {
            path: &report.path,
            base_model: report.base_model.as_deref(),
            changed_tensors: report.changed_tensors,
            kept_tensors: report.kept_tensors,
            changed_experts: report.changed_experts,
            kept_experts: report.kept_experts,
        }
    }
}

impl Measures {
    fn of(accuracy: &Accuracy) -> Self {
        let compared_elements = accuracy.compared_blocks * ft_quant::mxfp4::BLOCK_ELEMENTS as u64;
        let compared = |count: u64, whole: u64| (whole > 0).then(|| fraction(count, whole));
        Self {
            elements: accuracy.elements,
            blocks: accuracy.blocks(),
            sqnr_db: accuracy.sqnr_db(),
            relative_error: accuracy.relative_error(),
            cosine: accuracy.cosine(),
            maximum_error: accuracy.largest_error,
            maximum_value: accuracy.largest_value,
            clipped_fraction: fraction(accuracy.clipped, accuracy.elements),
            flushed_fraction: fraction(accuracy.flushed, accuracy.elements),
            changed_codes_fraction: compared(accuracy.changed_codes, compared_elements),
            changed_scales_fraction: compared(accuracy.changed_scales, accuracy.compared_blocks),
            largest_codes: accuracy.largest_codes,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of elements are far below 2^53")]
fn fraction(count: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { count as f64 / whole as f64 }
}

/// How the blocks were packed: the rule `hint` is `even` where there was nothing to start from.
pub(crate) fn effective_packing(report: &ConversionReport) -> Option<Packing> {
    match (report.packing?, &report.scales) {
        (Packing { rule: ScaleRule::Hint, rounding }, ScaleSource::Values) => Some(Packing { rule: ScaleRule::Even, rounding }),
        (packing, _) => Some(packing),
    }
}

fn scales_from(report: &ConversionReport) -> Option<&Path> {
    match &report.scales {
        ScaleSource::Model(path) => Some(path),
        ScaleSource::Values => None,
    }
}

pub(crate) fn storage_name(storage: ExpertStorage) -> &'static str {
    match storage {
        ExpertStorage::Mxfp4 => "mxfp4",
        ExpertStorage::Float(dtype) => match dtype.torch_name() {
            Some("float16") => "f16",
            Some("float32") => "f32",
            _ => "bf16",
        },
    }
}

pub(crate) fn rule_name(rule: ScaleRule) -> &'static str {
    match rule {
        ScaleRule::Hint => "hint",
        ScaleRule::Even => "even",
        ScaleRule::Mse => "mse",
        ScaleRule::Floor => "floor",
        ScaleRule::Rceil => "rceil",
        _ => "another",
    }
}

fn rounding_name(rounding: Rounding) -> &'static str {
    match rounding {
        Rounding::Even => "even",
        _ => "ggml",
    }
}

/// A weight in words: `layer 3 gate_up_proj`.
pub(crate) fn weight_name(weight: AdapterTarget) -> String {
    match weight.layer() {
        Some(layer) => format!("layer {layer} {}", weight.part_name()),
        None => weight.part_name().to_owned(),
    }
}

/// Fails when the signal of a tensor is less than `bound_db` above the error.
pub(crate) fn check_bound(report: &ConversionReport, bound_db: Option<f64>) -> Result<()> {
    let worst = report.worst().and_then(|tensor| Some((tensor, tensor.accuracy.sqnr_db()?)));
    match (bound_db, worst) {
        (Some(bound_db), Some((tensor, found_db))) if found_db < bound_db => {
            Err(Error::AccuracyBelowBound { tensor: tensor.name(), found_db, bound_db })
        }
        _ => Ok(()),
    }
}

/// The content of a report file: a page or JSON, by the ending of its name.
pub(crate) fn report_text(path: &Path, report: &ConversionReport, outcome: &Outcome<'_>) -> Result<String> {
    if path.extension().is_some_and(|ending| ending == "html") {
        return Ok(accuracy_page::render(report));
    }
    Ok(json::text(outcome)? + "\n")
}

/// A table with a row for each tensor, and what was done.
pub(crate) fn words(report: &ConversionReport, evaluation: Option<&Evaluation>, palette: Palette) -> String {
    let mut text = table(report, palette);
    text += "\n\n";
    text += &summary(report);
    if let Some(evaluation) = evaluation {
        text += "\n\n";
        text += &evaluation::words(evaluation, palette);
    }
    text
}

fn summary(report: &ConversionReport) -> String {
    let verb = report.adapter.as_ref().map_or("to".to_owned(), |adapter| format!("merged with {} into", adapter.path.display()));
    let mut text = format!(
        "{}, {} of {} experts, {verb} {} of {}",
        report.source.display(),
        bytes(report.source_bytes),
        storage_name(report.from),
        bytes(report.target_bytes),
        storage_name(report.to)
    );
    if let Some(packing) = effective_packing(report) {
        text += &format!(" by `{}`", rule_name(packing.rule));
        match scales_from(report) {
            Some(path) => text += &format!(", from the scales of {}", path.display()),
            None if report.packing.is_some_and(|packing| packing.rule == ScaleRule::Hint) => {
                text += " (`hint` had no scales to start from: --hint-from names a model that has)";
            }
            None => {}
        }
    }
    text += &format!(", in {}", duration(report.seconds));
    if let Some(adapter) = &report.adapter {
        text += &format!("\n{}", changes(adapter));
    }
    text
}

/// How much of the model an adapter changed.
pub(crate) fn changes(adapter: &AdapterReport) -> String {
    format!(
        "the adapter changes {} of {} and {} of {}",
        adapter.changed_tensors,
        counted(adapter.changed_tensors + adapter.kept_tensors, "tensor"),
        adapter.changed_experts,
        counted(adapter.changed_experts + adapter.kept_experts, "expert"),
    )
}

const HEADINGS: [&str; 9] = ["", "SQNR", "relative", "largest", "cosine", "clipped", "to zero", "codes", "scales"];
const SECOND_HEADINGS: [&str; 9] = ["", "dB", "error", "error", "", "", "", "changed", "changed"];

fn table(report: &ConversionReport, palette: Palette) -> String {
    let mut rows: Vec<[String; 9]> = vec![HEADINGS.map(str::to_owned), SECOND_HEADINGS.map(str::to_owned)];
    rows.extend(report.tensors.iter().map(|tensor| row(weight_name(tensor.weight), &tensor.accuracy)));
    rows.push(row("all".to_owned(), &report.total()));
    let widths: [usize; 9] = std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let last = rows.len() - 1;
    let lines = rows.iter().enumerate().map(|(index, row)| {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            line += &format!("  {cell:>width$}");
        }
        let line = line.trim_end();
        if index < 2 || index == last { palette.heading(line) } else { line.to_owned() }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn scientific(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.2e}") }
}

fn row(name: String, accuracy: &Accuracy) -> [String; 9] {
    let measures = Measures::of(accuracy);
    let compared = |fraction: Option<f64>| fraction.map_or("-".to_owned(), percent);
    [
        name,
        measures.sqnr_db.map_or("exact".to_owned(), |decibels| format!("{decibels:.2}")),
        scientific(measures.relative_error),
        scientific(measures.maximum_error),
        format!("{:.6}", measures.cosine),
        percent(measures.clipped_fraction),
        percent(measures.flushed_fraction),
        compared(measures.changed_codes_fraction),
        compared(measures.changed_scales_fraction),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use ft_formats::checkpoint::Projection;
    use ft_formats::dtype::Dtype;
    use ft_formats::report::TensorReport;
    use ft_formats::requantize::ExpertTarget;

    use super::*;

    fn report(to: ExpertTarget, scales: ScaleSource, accuracy: Accuracy) -> ConversionReport {
        ConversionReport {
            source: PathBuf::from("source"),
            target: PathBuf::from("target"),
            adapter: None,
            from: ExpertStorage::Float(Dtype::F16),
            to: to.storage(),
            packing: to.packing(),
            scales,
            tensors: vec![TensorReport { weight: AdapterTarget::Experts { layer: 7, projection: Projection::Down }, accuracy }],
            source_bytes: 4_000_000_000,
            target_bytes: 1_100_000_000,
            seconds: 12.0,
        }
    }

    fn noisy() -> Accuracy {
        Accuracy {
            elements: 3200,
            signal: 100.0,
            noise: 1.0,
            packed_signal: 100.0,
            product: 99.5,
            largest_error: 0.25,
            largest_value: 2.0,
            clipped: 32,
            flushed: 1,
            largest_codes: [0, 0, 0, 0, 0, 0, 60, 40],
            compared_blocks: 100,
            changed_codes: 16,
            changed_scales: 100,
        }
    }

    #[test]
    fn a_row_has_every_measure() {
        let report = report(ExpertTarget::Mxfp4(ScaleRule::Hint.into()), ScaleSource::Model(PathBuf::from("base")), noisy());
        let text = words(&report, None, Palette::plain());
        let row: Vec<&str> = text.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(row, ["layer", "7", "down_proj", "20.00", "1.00e-1", "2.50e-1", "0.995000", "1.00%", "0.03%", "0.50%", "100.0%"]);
        assert!(text.ends_with("source, 4.0 GB of f16 experts, to 1.1 GB of mxfp4 by `hint`, from the scales of base, in 12 s"), "{text}");
    }

    #[test]
    fn what_lost_nothing_is_exact_and_hints_without_a_start_are_even() {
        let exact = Accuracy { noise: 0.0, compared_blocks: 0, changed_codes: 0, changed_scales: 0, ..noisy() };
        let report = report(ExpertTarget::Mxfp4(ScaleRule::Hint.into()), ScaleSource::Values, exact);
        let text = words(&report, None, Palette::plain());
        assert!(text.contains("exact") && text.contains("by `even` (`hint` had no scales to start from"), "{text}");
        let json = serde_json::to_value(Outcome::new(&report, None)).unwrap();
        assert_eq!((&json["scale"], &json["total"]["sqnr_db"]), (&"even".into(), &serde_json::Value::Null));
        assert_eq!(json["tensors"][0]["changed_codes_fraction"], serde_json::Value::Null);
        assert_eq!(json["tensors"][0]["name"], "model.layers.7.mlp.experts.down_proj");
        assert_eq!(json["total"]["largest_codes"][6], 60);
        assert!(json.get("adapter").is_none());
    }

    #[test]
    fn a_merge_says_what_the_adapter_changes() {
        let to = ExpertTarget::Mxfp4(ScaleRule::Hint.into());
        let head = TensorReport { weight: AdapterTarget::LmHead, accuracy: Accuracy { compared_blocks: 0, ..noisy() } };
        let mut report = report(to, ScaleSource::Model(PathBuf::from("source")), noisy());
        report.tensors.push(head);
        report.adapter = Some(AdapterReport {
            path: PathBuf::from("adapter"),
            base_model: Some("base".to_owned()),
            changed_tensors: 1,
            kept_tensors: 458,
            changed_experts: 3,
            kept_experts: 765,
        });
        let text = words(&report, None, Palette::plain());
        assert!(text.lines().nth(3).unwrap().starts_with("lm_head "), "{text}");
        let end = "experts, merged with adapter into 1.1 GB of mxfp4 by `hint`, from the scales of source, in 12 s\n\
                   the adapter changes 1 of 459 tensors and 3 of 768 experts";
        assert!(text.ends_with(end), "{text}");
        let json = serde_json::to_value(Outcome::new(&report, None)).unwrap();
        assert_eq!((&json["adapter"]["base_model"], &json["adapter"]["kept_experts"]), (&"base".into(), &765.into()));
        assert_eq!(json["tensors"][1]["name"], "lm_head.weight");
        // Its layer 7 and the head are equally bad, and the first is named.
        let error = check_bound(&report, Some(25.0)).unwrap_err();
        assert!(matches!(error, Error::AccuracyBelowBound { tensor, .. } if tensor == "model.layers.7.mlp.experts.down_proj"));
        check_bound(&report, Some(15.0)).unwrap();
    }
}
