//! What a requantization or a merge cost, as a page that needs nothing beside it: no network, no font, no script.
//!
//! The order is that of its readers' questions: what was done, whether the result is good, where it is not, and what the words mean.

mod largest_codes;
mod number;
mod plot;
mod summary;
mod table;
#[cfg(test)]
mod tests;

use ft_formats::checkpoint::Projection;
use ft_formats::peft::AdapterTarget;
use ft_formats::report::ConversionReport;
use ft_quant::Accuracy;

use largest_codes::UNITS;
use number::{Level, changed_codes_fraction, changed_scales_fraction, clipped_fraction, flushed_fraction, largest_code_fraction};
use plot::{LayerPlot, legend};

use crate::page::number::percent;

/// Colours, and how the page folds on a phone and on paper.
const STYLE: &str = concat!(include_str!("page/base.css"), include_str!("accuracy_page/style.css"));

/// Sorts the tables; they are complete without it.
const SCRIPT: &str = include_str!("accuracy_page/sort.js");

/// Each measure with its formula.
const MEANING: &str = include_str!("accuracy_page/meaning.html");

/// The whole page, UTF-8.
pub(crate) fn render(report: &ConversionReport) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\"/>\n\
         <title>Accuracy of {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n{}</header>\n{}{}{}{MEANING}\
         <footer><p>Written by ft {}.</p></footer>\n</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        summary::title(report),
        summary::head(report),
        summary::verdict(report),
        plots(report),
        tables(report),
        env!("CARGO_PKG_VERSION"),
    )
}

/// What is drawn by layer: the matrices of the experts.
struct ExpertTensor {
    layer: usize,
    projection: Projection,
    accuracy: Accuracy,
}

fn expert_tensors(report: &ConversionReport) -> Vec<ExpertTensor> {
    let tensors = report.tensors.iter().filter_map(|tensor| match tensor.weight {
        AdapterTarget::Experts { layer, projection } => Some(ExpertTensor { layer, projection, accuracy: tensor.accuracy }),
        _ => None,
    });
    tensors.collect()
}

fn plots(report: &ConversionReport) -> String {
    let tensors = &expert_tensors(report);
    if tensors.is_empty() && !report.tensors.is_empty() {
        return String::new();
    }
    let total = tensors.iter().fold(Accuracy::default(), |total, tensor| total + tensor.accuracy);
    let heading = if tensors.len() == report.tensors.len() { "By layer" } else { "Experts by layer" };
    let is_exact = |tensor: &ExpertTensor| Level::of(&tensor.accuracy) == Level::Exact;
    let levels = LayerPlot::of_levels(tensors).map(|plot| plot.draw("Signal to quantization noise by layer, in dB"));
    let mut text = figure(
        "wide",
        "Signal to quantization noise",
        if tensors.iter().any(is_exact) {
            "In dB, by layer; more is better. Exact tensors stand above the axis."
        } else {
            "In dB, by layer; more is better."
        },
        levels.as_deref().unwrap_or(if tensors.iter().all(is_exact) {
            "<p class=\"none\">Every tensor is exact.</p>"
        } else {
            "<p class=\"none\">No tensor has an error that can be measured against it.</p>"
        }),
    );
    let mut has_series = levels.is_some();
    let mut share = |name: &str, what: &str, none: &str, fraction: fn(&Accuracy) -> f64| {
        let drawing = LayerPlot::of_shares(tensors, fraction).map(|plot| plot.draw(&format!("{name} by layer, in percent")));
        has_series |= drawing.is_some();
        let caption = format!("{what}, by layer; {} in all.", percent(fraction(&total)));
        text += &figure("half", name, &caption, &drawing.unwrap_or_else(|| format!("<p class=\"none\">{none}</p>")));
    };
    if total.blocks() > 0 {
        share("Clipped", "Elements beyond 6 units, stored as 6", "No element was clipped.", clipped_fraction);
    }
    share("Flushed to zero", "Elements stored as zero that were not", "No element was flushed to zero.", flushed_fraction);
    if total.compared_blocks > 0 {
        share("Changed codes", "Elements whose code differs from the one before", "No code changed.", changed_codes_fraction);
        share("Changed scales", "Blocks whose scale differs from the one before", "No scale changed.", changed_scales_fraction);
    }
    if total.blocks() > 0 {
        let caption = format!(
            "Blocks by what their largest element became, in units of their scale. {} lie at {} units, {} at {}. \
             A stronger colour is more of a layer's blocks.",
            percent(largest_code_fraction(&total, 7)),
            UNITS[7],
            percent(largest_code_fraction(&total, 6)),
            UNITS[6],
        );
        text += &figure("wide", "Largest code of the blocks", &caption, &largest_codes::draw(tensors, &total));
    }
    let legend = if has_series { legend() } else { String::new() };
    format!(
        "<section aria-labelledby=\"layers\">\n<h2 id=\"layers\">{heading}</h2>\n{legend}<div class=\"plots\">\n{text}</div>\n</section>\n"
    )
}

/// A plot with its caption, over the whole width of the page or half of it.
fn figure(width: &str, name: &str, caption: &str, drawing: &str) -> String {
    format!("<figure class=\"{width}\">\n<figcaption><h3>{name}</h3><p>{caption}</p></figcaption>\n{drawing}\n</figure>\n")
}

fn tables(report: &ConversionReport) -> String {
    let mut text = table::measures(report);
    if report.total().blocks() > 0 {
        text += &table::codes(report);
    }
    format!(
        "<section aria-labelledby=\"tensors\">\n<h2 id=\"tensors\">By tensor</h2>\n<p>In a checkpoint, \
         <code>gate_up_proj</code> of layer 3 is <code>model.layers.3.mlp.experts.gate_up_proj</code>, with the endings \
         <code>_blocks</code> and <code>_scales</code> in MXFP4.</p>\n{text}</section>\n"
    )
}
