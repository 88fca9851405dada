//! What the largest element of each block became: bars for all blocks, and a map with a row for each code and a column for each layer.

use ft_formats::checkpoint::Projection;
use ft_quant::Accuracy;

use super::ExpertTensor;
use super::number::largest_code_fraction;
use super::plot::{layer_labels, layers, place};
use crate::page::number::percent;

/// Units of each magnitude code. Source: OCP MX 1.0, section 5.3.3.
pub(super) const UNITS: [&str; 8] = ["0", "0.5", "1", "1.5", "2", "3", "4", "6"];

/// Height of a bar, and of a row of a map.
const ROW: f64 = 24.0;

/// Room below the rows for the layers' numbers.
const BOTTOM: f64 = 24.0;

/// Length of the longest bar in percent of the width; its share stands after it.
const LONGEST: f64 = 78.0;

/// The bars, and a map for each of a layer's matrices.
pub(super) fn draw(tensors: &[ExpertTensor], total: &Accuracy) -> String {
    let mut text = format!("<div class=\"codes\"><div><h4>All blocks</h4>{}</div>", bars(total));
    for projection in Projection::ALL {
        let of_projection: Vec<&ExpertTensor> = tensors.iter().filter(|tensor| tensor.projection == projection).collect();
        if !of_projection.is_empty() {
            let map = map(&of_projection, &layers(tensors), projection);
            text += &format!("<div><h4>By layer, <code>{}</code></h4>{map}</div>", projection.name());
        }
    }
    text + "</div>"
}

fn bars(total: &Accuracy) -> String {
    let most = (0..UNITS.len()).map(|code| largest_code_fraction(total, code)).fold(0.0, f64::max);
    let mut area = String::new();
    let mut words = Vec::new();
    for (row, code) in codes().enumerate() {
        let share = largest_code_fraction(total, code);
        let y = top(row);
        let length = if most > 0.0 { share / most * LONGEST } else { 0.0 };
        area += &format!("<rect class=\"bar\" x=\"0\" y=\"{:.1}\" width=\"{length:.3}%\" height=\"{:.1}\"/>", y + 3.0, ROW - 6.0);
        area += &format!("<text x=\"{length:.3}%\" y=\"{:.1}\" dx=\"6\">{}</text>", y + ROW / 2.0 + 4.0, percent(share));
        words.push(format!("{} units {}", UNITS[code], percent(share)));
    }
    framed(&area, &format!("Shares of the blocks by their largest element: {}", words.join(", ")))
}

fn map(tensors: &[&ExpertTensor], layers: &[usize], projection: Projection) -> String {
    let width = place(0, layers.len()) * 2.0;
    let mut area = String::new();
    for tensor in tensors {
        let column = layers.partition_point(|&layer| layer < tensor.layer);
        for (row, code) in codes().enumerate() {
            let share = largest_code_fraction(&tensor.accuracy, code);
            area += &format!(
                "<rect class=\"cell\" x=\"{:.3}%\" y=\"{:.1}\" width=\"{width:.3}%\" height=\"{ROW}\" fill-opacity=\"{:.3}\">\
                 <title>layer {} {}, {} units: {}</title></rect>",
                place(column, layers.len()) - width / 2.0,
                top(row),
                opacity(share),
                tensor.layer,
                projection.name(),
                UNITS[code],
                percent(share),
            );
        }
    }
    area += &layer_labels(layers, top(UNITS.len()) + BOTTOM - 6.0);
    framed(&area, &format!("Shares of the blocks of {} by layer and largest element; the last table has the numbers", projection.name()))
}

/// A drawing with the codes at its side.
fn framed(area: &str, label: &str) -> String {
    let height = top(UNITS.len()) + BOTTOM;
    let side: String = codes()
        .enumerate()
        .map(|(row, code)| format!("<text x=\"54\" y=\"{:.1}\">{}</text>", top(row) + ROW / 2.0 + 4.0, UNITS[code]))
        .collect();
    format!(
        "<div class=\"plot\" role=\"img\" aria-label=\"{label}\">\
         <svg class=\"side\" width=\"60\" height=\"{height}\" aria-hidden=\"true\">{side}\
         <text x=\"54\" y=\"14\">units</text></svg>\
         <svg class=\"area\" width=\"100%\" height=\"{height}\" aria-hidden=\"true\">{area}</svg></div>"
    )
}

/// The codes, the largest first.
fn codes() -> impl Iterator<Item = usize> {
    (0..UNITS.len()).rev()
}

/// Where a row begins, below the word above the codes.
#[expect(clippy::cast_precision_loss, reason = "there are eight rows")]
fn top(row: usize) -> f64 {
    20.0 + ROW * row as f64
}

/// How dark a cell is; the least share that is not 0 can still be told from 0.
pub(super) fn opacity(share: f64) -> f64 {
    if share > 0.0 { 0.08 + 0.92 * share } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_say_every_share() {
        let total = Accuracy { largest_codes: [1, 0, 0, 0, 0, 0, 51, 48], ..Accuracy::default() };
        let text = bars(&total);
        assert!(text.contains("6 units 48.0%, 4 units 51.0%, 3 units 0%, 2 units 0%"), "{text}");
        assert!(text.contains("0 units 1.00%") && text.contains("width=\"78.000%\""), "{text}");
    }

    #[test]
    fn what_is_rare_is_not_invisible() {
        assert_eq!([opacity(0.0), opacity(1.0)], [0.0, 1.0]);
        assert!(opacity(1e-9) >= 0.08);
    }
}
