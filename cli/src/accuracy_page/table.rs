//! Every measure of every tensor, the worst first.

use ft_formats::report::{ConversionReport, TensorReport};
use ft_quant::Accuracy;

use super::largest_codes::{UNITS, opacity};
use super::number::{
    Level, changed_codes_fraction, changed_scales_fraction, clipped_fraction, cosine, flushed_fraction, largest_code_fraction,
};
use crate::conversion::weight_name;
use crate::page::number::{number, percent, relative};
use crate::units::parameters;

/// A measure: what stands in its cells, and what they are sorted by.
struct Column {
    heading: &'static str,
    text: fn(&Accuracy) -> String,
    order: fn(&Accuracy) -> f64,
}

const FIRST_COLUMNS: [Column; 5] = [
    Column { heading: "SQNR, dB", text: |sums| Level::of(sums).text(), order: |sums| Level::of(sums).order() },
    Column { heading: "relative error", text: |sums| relative(sums.relative_error()), order: Accuracy::relative_error },
    Column { heading: "cosine", text: cosine, order: Accuracy::cosine },
    Column { heading: "largest error", text: |sums| number(sums.largest_error), order: |sums| sums.largest_error },
    Column { heading: "largest value", text: |sums| number(sums.largest_value), order: |sums| sums.largest_value },
];
const CLIPPED: Column = Column { heading: "clipped", text: |sums| percent(clipped_fraction(sums)), order: clipped_fraction };
const FLUSHED: Column = Column { heading: "flushed to zero", text: |sums| percent(flushed_fraction(sums)), order: flushed_fraction };
const CHANGED: [Column; 2] = [
    Column { heading: "changed codes", text: |sums| compared(sums, changed_codes_fraction), order: changed_codes_fraction },
    Column { heading: "changed scales", text: |sums| compared(sums, changed_scales_fraction), order: changed_scales_fraction },
];
#[expect(clippy::cast_precision_loss, reason = "rows are sorted by it")]
const ELEMENTS: Column = Column { heading: "elements", text: |sums| parameters(sums.elements), order: |sums| sums.elements as f64 };

fn compared(sums: &Accuracy, fraction: fn(&Accuracy) -> f64) -> String {
    if sums.compared_blocks == 0 { "-".to_owned() } else { percent(fraction(sums)) }
}

/// A row for each tensor, with the measures that the report has.
pub(super) fn measures(report: &ConversionReport) -> String {
    let total = report.total();
    let mut columns: Vec<Column> = FIRST_COLUMNS.into();
    if total.blocks() > 0 {
        columns.push(CLIPPED);
    }
    columns.push(FLUSHED);
    if total.compared_blocks > 0 {
        columns.extend(CHANGED);
    }
    columns.push(ELEMENTS);
    let headings: Vec<String> = columns.iter().map(|column| column.heading.to_owned()).collect();
    let cells = |sums: &Accuracy| -> String { columns.iter().map(|column| cell("", &(column.text)(sums), (column.order)(sums))).collect() };
    table("Measures of each tensor, worst first", &headings, report, &|_| true, &cells)
}

/// A row for each tensor that has blocks, with the share of its blocks for each code of the largest element.
pub(super) fn codes(report: &ConversionReport) -> String {
    let headings: Vec<String> = UNITS.iter().map(|units| format!("{units} units")).collect();
    let cells = |sums: &Accuracy| -> String {
        let shares = (0..UNITS.len()).map(|code| largest_code_fraction(sums, code));
        shares.map(|share| cell(&format!(" class=\"share\" style=\"--share: {:.3}\"", opacity(share)), &percent(share), share)).collect()
    };
    let has_blocks = |sums: &Accuracy| sums.blocks() > 0;
    table("Blocks by the code of their largest element, in units of their scale", &headings, report, &has_blocks, &cells)
}

fn table(
    caption: &str,
    headings: &[String],
    report: &ConversionReport,
    is_shown: &dyn Fn(&Accuracy) -> bool,
    cells: &dyn Fn(&Accuracy) -> String,
) -> String {
    let worst = report.worst();
    let mut tensors: Vec<(usize, &TensorReport)> =
        report.tensors.iter().enumerate().filter(|(_, tensor)| is_shown(&tensor.accuracy)).collect();
    tensors.sort_by(|(_, left), (_, right)| Level::of(&left.accuracy).order().total_cmp(&Level::of(&right.accuracy).order()));
    let headings: String = headings.iter().map(|heading| format!("<th scope=\"col\">{heading}</th>")).collect();
    let row = |(index, tensor): (usize, &TensorReport)| {
        let (class, mark) = if Some(tensor) == worst { (" class=\"worst\"", " <span class=\"badge\">worst</span>") } else { ("", "") };
        format!(
            "<tr{class}><th scope=\"row\" data-order=\"{index}\">{}{mark}</th>{}</tr>\n",
            weight_name(tensor.weight),
            cells(&tensor.accuracy)
        )
    };
    format!(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\">\n<table class=\"sortable\">\n\
         <caption>{caption}</caption>\n<thead><tr><th scope=\"col\">tensor</th>{headings}</tr></thead>\n<tbody>\n{}</tbody>\n\
         <tfoot><tr><th scope=\"row\">all</th>{}</tr></tfoot>\n</table>\n</div>\n",
        tensors.into_iter().map(row).collect::<String>(),
        cells(&report.total())
    )
}

fn cell(attributes: &str, text: &str, order: f64) -> String {
    let order = if order.is_finite() { order } else { 0.0 };
    format!("<td{attributes} data-order=\"{order:e}\">{text}</td>")
}
