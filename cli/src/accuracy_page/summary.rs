//! The head of the page: what was converted, how, and what it cost in all.

use std::path::Path;

use ft_formats::checkpoint::ExpertStorage;
use ft_formats::report::{ConversionReport, ScaleSource};
use ft_quant::Accuracy;
use ft_quant::mxfp4::{Rounding, ScaleRule};

use super::number::{Level, changed_codes_fraction, changed_scales_fraction, clipped_fraction, cosine, flushed_fraction};
use crate::conversion::{changes, effective_packing, rule_name, storage_name};
use crate::page::escape::{escape, path};
use crate::page::number::{fraction, number, percent, relative};
use crate::units::{bytes, counted, duration, parameters, whole};

/// The name of the result.
pub(super) fn title(report: &ConversionReport) -> String {
    let name = report.target.file_name().map_or_else(|| report.target.display().to_string(), |name| name.to_string_lossy().into_owned());
    escape(&name)
}

/// From what to what, and how.
pub(super) fn head(report: &ConversionReport) -> String {
    let total = report.total();
    let (from, to) = (display_name(report.from), display_name(report.to));
    let size = fraction(report.target_bytes, report.source_bytes);
    let size = if size > 0.0 { format!(", {} of the source", relative(size)) } else { String::new() };
    let mut rows = vec![
        ("source", format!("{}<br/>experts in {from}, {}", path(&report.source), bytes(report.source_bytes))),
        ("result", format!("{}<br/>experts in {to}, {}{size}", path(&report.target), bytes(report.target_bytes))),
    ];
    if let Some(adapter) = &report.adapter {
        let base = adapter.base_model.as_ref().map_or(String::new(), |base| format!(", made for {}", path(Path::new(base))));
        rows.push(("adapter", format!("{}{base}<br/>{}", path(&adapter.path), changes(adapter))));
    }
    let (verb, conversion) = match &report.adapter {
        Some(_) if report.from == report.to => ("merged", String::new()),
        Some(_) => ("merged", format!(", experts from {from} to {to}")),
        None => ("converted", format!(", from {from} to {to}")),
    };
    rows.push((
        verb,
        format!(
            "{} with {} weights{conversion}; all other tensors are byte for byte those of the source",
            counted(report.tensors.len(), "tensor"),
            parameters(total.elements)
        ),
    ));
    if let Some(packing) = effective_packing(report) {
        rows.push(("scales", format!("rule <code>{}</code>: {}<br/>{}", rule_name(packing.rule), rule_words(packing.rule), start(report))));
        rows.push(("rounding", rounding_words(packing.rounding).to_owned()));
    } else if matches!(report.from, ExpertStorage::Float(_)) {
        rows.push(("rounding", format!("to the nearest {to}, halfway to the even one")));
    }
    if total.compared_blocks > 0 {
        rows.push(("compared", format!("{} with {}", number_of(total.compared_blocks, "block"), compared_with(report))));
    }
    rows.push(("time", duration(report.seconds)));
    let rows: String = rows.into_iter().map(|(name, text)| format!("<div><dt>{name}</dt><dd>{text}</dd></div>\n")).collect();
    let kind = if report.adapter.is_some() { "merge" } else { "requantization" };
    format!("<p class=\"kind\">Accuracy of a {kind}</p>\n<h1>{}</h1>\n<dl class=\"facts\">\n{rows}</dl>\n", title(report))
}

/// What it cost: a sentence, and the main figures.
pub(super) fn verdict(report: &ConversionReport) -> String {
    let total = report.total();
    let level = Level::of(&total);
    let mut figures = Vec::new();
    let mut figure = |name: &str, value: &str, note: &str| {
        figures.push(format!("<div><dt>{name}</dt><dd><strong>{value}</strong> <span>{note}</span></dd></div>\n"));
    };
    let decibels = if let Level::Decibels(_) = level { format!("{} dB", level.text()) } else { level.text() };
    let counted = |count, name| if count == 0 { "none".to_owned() } else { number_of(count, name) };
    figure("SQNR", &decibels, "signal over error");
    figure("relative error", &relative(total.relative_error()), "error over signal");
    figure("cosine", &cosine(&total), "1 is the same direction");
    figure("largest error", &number(total.largest_error), &format!("of weights up to {}", number(total.largest_value)));
    if total.compared_blocks > 0 {
        figure("changed codes", &percent(changed_codes_fraction(&total)), &counted(total.changed_codes, "element"));
        figure("changed scales", &percent(changed_scales_fraction(&total)), &counted(total.changed_scales, "block"));
    }
    if total.blocks() > 0 {
        figure("clipped", &percent(clipped_fraction(&total)), &counted(total.clipped, "element"));
    }
    figure("flushed to zero", &percent(flushed_fraction(&total)), &counted(total.flushed, "element"));
    // One row, or two of the same length.
    let columns = if figures.len() > 6 { figures.len().div_ceil(2) } else { figures.len() };
    format!(
        "<section aria-labelledby=\"verdict\">\n<h2 id=\"verdict\">{}</h2>\n<dl class=\"figures\" style=\"--columns: {columns}\">\n{}</dl>\n\
         </section>\n",
        words(report, &total),
        figures.concat()
    )
}

fn words(report: &ConversionReport, total: &Accuracy) -> String {
    let exact = report.tensors.iter().filter(|tensor| Level::of(&tensor.accuracy) == Level::Exact).count();
    let worst = report.worst().map(|tensor| (tensor, Level::of(&tensor.accuracy)));
    let mut text = match (Level::of(total), worst) {
        (Level::Exact, _) if report.adapter.is_some() => {
            return "Exact: every weight of the result has the value that it has in the source, with its update.".to_owned();
        }
        (Level::Exact, _) => return "Exact: every weight of the result has the value that it has in the source.".to_owned(),
        (Level::Unmeasured, _) => "Weights changed, by what cannot be measured against them.".to_owned(),
        (level, Some((tensor, worst))) if report.tensors.len() > 1 => format!(
            "The weights stand {}&nbsp;dB above the error; in the worst tensor, {}, {}.",
            level.text(),
            tensor.weight.layer().map_or(String::new(), |layer| format!("layer&nbsp;{layer} "))
                + &format!("<code>{}</code>", tensor.weight.part_name()),
            if let Level::Decibels(_) = worst { format!("{}&nbsp;dB", worst.text()) } else { "below all measure".to_owned() },
        ),
        (level, _) => format!("The weights stand {}&nbsp;dB above the error.", level.text()),
    };
    if exact > 0 {
        text += &format!(" {exact} of {} {} exact.", counted(report.tensors.len(), "tensor"), if exact == 1 { "is" } else { "are" });
    }
    text
}

fn display_name(storage: ExpertStorage) -> &'static str {
    match storage {
        ExpertStorage::Mxfp4 => "MXFP4",
        ExpertStorage::Float(_) => storage_name(storage),
    }
}

fn rule_words(rule: ScaleRule) -> &'static str {
    match rule {
        ScaleRule::Hint => "of the given scale, the standard one and the next larger one, that with the smallest squared error",
        ScaleRule::Even => "the largest element, rounded to one bit of mantissa, lies in 3.5 to 7 units",
        ScaleRule::Mse => "of the standard scale and the next larger one, that with the smaller squared error",
        ScaleRule::Floor => "the largest element lies in 4 to 8 units; what is beyond 6 is clipped (OCP specification, llama.cpp)",
        ScaleRule::Rceil => "the largest element lies above 3 and up to 6 units; nothing is clipped (Triton, transformers)",
        _ => "as its documentation says",
    }
}

fn rounding_words(rounding: Rounding) -> &'static str {
    match rounding {
        Rounding::Even => "elements to the nearest code, halfway to the even one",
        Rounding::TowardZero => "elements to the nearest code, halfway toward zero, and every zero is positive (ggml)",
        _ => "elements to a code nearby",
    }
}

/// Whose scales were the start.
fn start(report: &ConversionReport) -> String {
    match &report.scales {
        ScaleSource::Model(model) => format!("starting from the scales of {}", path(model)),
        ScaleSource::Values => "chosen from the values alone".to_owned(),
    }
}

/// The model whose blocks were compared with the result's.
fn compared_with(report: &ConversionReport) -> String {
    match (&report.scales, report.from) {
        (_, ExpertStorage::Mxfp4) => "those of the source".to_owned(),
        (ScaleSource::Model(model), ExpertStorage::Float(_)) => format!("those of {}", path(model)),
        (ScaleSource::Values, ExpertStorage::Float(_)) => "those of another packing".to_owned(),
    }
}

fn number_of(count: u64, name: &str) -> String {
    format!("{} {name}{}", whole(count), if count == 1 { "" } else { "s" })
}
