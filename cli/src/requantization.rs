//! A requantization, in words and for scripts.

use std::path::Path;

use ft_formats::checkpoint::ExpertStorage;
use ft_formats::requantize::{ExpertTarget, RequantizationReport, ScaleSource};
use ft_quant::Accuracy;
use ft_quant::mxfp4::{Packing, Rounding, ScaleRule};
use ft_trainer::evaluation::Evaluation;
use serde::Serialize;

use crate::evaluation;
use crate::terminal::Palette;
use crate::units::{bytes, duration, percent};

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome<'a> {
    source: &'a Path,
    target: &'a Path,
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
    pub(crate) fn new(report: &'a RequantizationReport, evaluation: Option<&'a Evaluation>) -> Self {
        let packing = effective_packing(report);
        let tensors = report.tensors.iter().map(|tensor| Tensor { name: tensor.name(), measures: Measures::of(&tensor.accuracy) });
        Self {
            source: &report.source,
            target: &report.target,
            from: storage_name(report.from),
            to: storage_name(report.to.storage()),
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
pub(crate) fn effective_packing(report: &RequantizationReport) -> Option<Packing> {
    match (report.to, &report.scales) {
        (ExpertTarget::Bf16, _) => None,
        (ExpertTarget::Mxfp4(Packing { rule: ScaleRule::Hint, rounding }), ScaleSource::Values) => {
            Some(Packing { rule: ScaleRule::Even, rounding })
        }
        (ExpertTarget::Mxfp4(packing), _) => Some(packing),
    }
}

fn scales_from(report: &RequantizationReport) -> Option<&Path> {
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

/// A table with a row for each tensor, and what was done.
pub(crate) fn words(report: &RequantizationReport, evaluation: Option<&Evaluation>, palette: Palette) -> String {
    let mut text = table(report, palette);
    text += "\n\n";
    text += &summary(report);
    if let Some(evaluation) = evaluation {
        text += "\n\n";
        text += &evaluation::words(evaluation, palette);
    }
    text
}

fn summary(report: &RequantizationReport) -> String {
    let mut text = format!(
        "{}, {} of {} experts, to {} of {}",
        report.source.display(),
        bytes(report.source_bytes),
        storage_name(report.from),
        bytes(report.target_bytes),
        storage_name(report.to.storage())
    );
    if let Some(packing) = effective_packing(report) {
        text += &format!(" by `{}`", rule_name(packing.rule));
        match scales_from(report) {
            Some(path) => text += &format!(", from the scales of {}", path.display()),
            None if matches!(report.to, ExpertTarget::Mxfp4(Packing { rule: ScaleRule::Hint, .. })) => {
                text += " (`hint` had no scales to start from: --hint-from names a model that has)";
            }
            None => {}
        }
    }
    text + &format!(", in {}", duration(report.seconds))
}

const HEADINGS: [&str; 9] = ["", "SQNR", "relative", "largest", "cosine", "clipped", "to zero", "codes", "scales"];
const SECOND_HEADINGS: [&str; 9] = ["", "dB", "error", "error", "", "", "", "changed", "changed"];

fn table(report: &RequantizationReport, palette: Palette) -> String {
    let mut rows: Vec<[String; 9]> = vec![HEADINGS.map(str::to_owned), SECOND_HEADINGS.map(str::to_owned)];
    rows.extend(report.tensors.iter().map(|tensor| row(format!("layer {} {}", tensor.layer, tensor.projection.name()), &tensor.accuracy)));
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
    use ft_formats::requantize::TensorReport;

    use super::*;

    fn report(to: ExpertTarget, scales: ScaleSource, accuracy: Accuracy) -> RequantizationReport {
        RequantizationReport {
            source: PathBuf::from("source"),
            target: PathBuf::from("target"),
            from: ExpertStorage::Float(Dtype::F16),
            to,
            scales,
            tensors: vec![TensorReport { layer: 7, projection: Projection::Down, accuracy }],
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
    }
}
