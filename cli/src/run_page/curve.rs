//! A figure over the steps, as a plot: single values faint, a line through them, marks, and bounds.
//!
//! The lines stand in a drawing of their own that is stretched to the width there is, with strokes that keep their width; text and marks
//! keep their size beside it.

use serde_json::{Value, json};

use super::metrics::Range;
use crate::page::axis::Axis;
use crate::page::number::number;
use crate::units::whole;

/// Height of a plot.
const HEIGHT: f64 = 210.0;

/// Room above the axis.
const TOP: f64 = 10.0;

/// Room for the numbers of the steps.
const BOTTOM: f64 = 26.0;

/// Width of the drawing of lines, in its own units.
const WIDTH: f64 = 1000.0;

/// What is drawn.
pub(super) struct Curve {
    /// A name that no other plot of the page has, of letters.
    pub(super) id: &'static str,
    /// What the plot shows, for those who do not see it.
    pub(super) label: String,
    /// What follows the numbers of the axis.
    pub(super) unit: &'static str,
    pub(super) axis: Axis,
    /// What single values are called where they are pointed at.
    pub(super) value_name: &'static str,
    /// (last step, lowest, highest, mean) of the steps of each bucket.
    pub(super) points: Vec<Point>,
    /// What the line is called, and its height at each point.
    pub(super) line: Option<(&'static str, Vec<f64>)>,
    /// Marks: what they are called, and (step, height) of each.
    pub(super) marks: Option<(&'static str, Vec<(u64, f64)>)>,
    /// Heights with a name.
    pub(super) bounds: Vec<(String, f64)>,
}

/// A figure over some steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) step: u64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) mean: f64,
    /// How many values it stands for.
    pub(super) count: u32,
}

impl Point {
    /// The point of a bucket that ends at `step`, with values times `factor`.
    pub(super) fn of(step: u64, range: Range, factor: f64) -> Option<Self> {
        let mean = range.mean()?;
        Some(Self { step, low: range.low * factor, high: range.high * factor, mean: mean * factor, count: range.count() })
    }
}

/// Exponential smoothing of the means, each counting with its values, corrected for the values that are not there before the first.
/// `memory` is the number of values after which one counts 1/e.
///
/// Source: D. P. Kingma and J. Ba, Adam, section 3, on the correction.
pub(super) fn smoothed(points: &[Point], memory: f64) -> Vec<f64> {
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|point| {
            let keep = (-f64::from(point.count) / memory).exp();
            sum = keep * sum + (1.0 - keep) * point.mean;
            weight = keep * weight + (1.0 - keep);
            sum / weight
        })
        .collect()
}

/// The median of each point and up to `reach` neighbours on both sides.
pub(super) fn running_median(points: &[Point], reach: usize) -> Vec<f64> {
    (0..points.len())
        .map(|index| {
            let reach = reach.min(index).min(points.len() - 1 - index);
            let mut near: Vec<f64> = points[index - reach..=index + reach].iter().map(|point| point.mean).collect();
            near.sort_by(f64::total_cmp);
            near[near.len() / 2]
        })
        .collect()
}

impl Curve {
    /// The drawing.
    pub(super) fn draw(&self) -> String {
        let mut side = String::new();
        let mut area = String::new();
        for tick in self.axis.ticks() {
            let y = self.y(tick);
            side += &format!("<text x=\"54\" y=\"{:.1}\">{}{}</text>", y + 4.0, self.axis.label(tick), self.unit);
            area += &format!("<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        }
        side += &format!("<text x=\"54\" y=\"{:.1}\">step</text>", HEIGHT - 6.0);
        area += &self.step_labels();
        area += &format!(
            "<svg width=\"100%\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\">{}</svg>",
            self.lines()
        );
        if let Some((_, marks)) = &self.marks {
            for (step, height) in marks {
                area += &format!("<circle class=\"mark\" cx=\"{:.2}%\" cy=\"{:.1}\" r=\"3.5\"/>", self.x(*step) * 100.0, self.y(*height));
            }
        }
        for (name, height) in &self.bounds {
            let y = self.y(*height);
            // Above its line, or below it where there is no room.
            let text_y = if y - 5.0 < 12.0 { y + 14.0 } else { y - 5.0 };
            area += &format!(
                "<line class=\"bound\" x1=\"0\" x2=\"100%\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"end bound-name\" x=\"100%\" y=\"{text_y:.1}\">{name}</text>"
            );
        }
        format!(
            "<div class=\"plot\" role=\"img\" aria-label=\"{}\">\
             <svg class=\"side\" width=\"60\" height=\"{HEIGHT}\" aria-hidden=\"true\">{side}</svg>\
             <div class=\"canvas\" data-plot=\"{}\"><svg class=\"area\" width=\"100%\" height=\"{HEIGHT}\" aria-hidden=\"true\">{area}</svg>\
             </div></div>",
            self.label, self.id
        )
    }

    fn lines(&self) -> String {
        let mut drawing = String::new();
        if self.points.iter().any(|point| point.low < point.high) {
            let there = self.points.iter().map(|point| (point.step, point.high));
            let back = self.points.iter().rev().map(|point| (point.step, point.low));
            drawing += &format!("<path class=\"band\" d=\"{}Z\"/>", self.path(there.chain(back)));
        }
        let class = if self.line.is_some() { "values" } else { "line" };
        drawing += &format!("<path class=\"{class}\" d=\"{}\"/>", self.path(self.points.iter().map(|point| (point.step, point.mean))));
        if let Some((_, heights)) = &self.line {
            let heights = self.points.iter().zip(heights).map(|(point, height)| (point.step, *height));
            drawing += &format!("<path class=\"line\" d=\"{}\"/>", self.path(heights));
        }
        drawing
    }

    /// A line through places; a single one becomes a short line, or it would not be seen.
    fn path(&self, places: impl Iterator<Item = (u64, f64)>) -> String {
        let mut text = String::new();
        for (index, (step, height)) in places.enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            text += &format!("{letter}{:.1} {:.1}", self.x(step) * WIDTH, self.y(height));
        }
        if self.points.len() == 1 { text + "h8" } else { text }
    }

    fn ends(&self) -> (u64, u64) {
        let steps =
            || self.points.iter().map(|point| point.step).chain(self.marks.iter().flat_map(|(_, marks)| marks.iter().map(|mark| mark.0)));
        (steps().min().unwrap_or(0), steps().max().unwrap_or(0))
    }

    fn step_labels(&self) -> String {
        let (first, last) = self.ends();
        let middle = first + (last - first) / 2;
        let mut text = String::new();
        let mut label = |class: &str, x: f64, step: u64| {
            text += &format!("<text class=\"{class}\" x=\"{x:.2}%\" y=\"{:.1}\">{}</text>", HEIGHT - 6.0, whole(step));
        };
        label("start", 0.0, first);
        if last - first > 1 {
            label("middle", self.x(middle) * 100.0, middle);
        }
        if last > first {
            label("end", 100.0, last);
        }
        text
    }

    /// Where a step lies: 0..1 of the width.
    #[expect(clippy::cast_precision_loss, reason = "places on a screen")]
    fn x(&self, step: u64) -> f64 {
        let (first, last) = self.ends();
        if last > first { step.saturating_sub(first) as f64 / (last - first) as f64 } else { 0.0 }
    }

    fn y(&self, height: f64) -> f64 {
        HEIGHT - BOTTOM - self.axis.position(height) * (HEIGHT - BOTTOM - TOP)
    }

    /// What is said of each place that is pointed at, for the script: steps, and for each name the values as text.
    pub(super) fn spoken(&self) -> Value {
        let text = |value: f64| if value.is_finite() { number(value) + self.unit } else { String::new() };
        let value = |point: &Point| {
            if point.low < point.high {
                format!("{} ({} to {})", text(point.mean), text(point.low), text(point.high))
            } else {
                text(point.mean)
            }
        };
        let mut series = vec![json!({"name": self.value_name, "values": self.points.iter().map(value).collect::<Vec<_>>()})];
        if let Some((name, heights)) = &self.line {
            series.push(json!({"name": name, "values": heights.iter().map(|height| text(*height)).collect::<Vec<_>>()}));
        }
        let marks = self.marks.as_ref().map(|(name, marks)| {
            let marks: Vec<Value> = marks.iter().map(|(step, height)| json!([step, text(*height)])).collect();
            json!({"name": name, "values": marks})
        });
        let (first, last) = self.ends();
        json!({
            "first": first, "last": last, "steps": self.points.iter().map(|point| point.step).collect::<Vec<_>>(),
            "series": series, "marks": marks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, mean: f64) -> Point {
        Point { step, low: mean, high: mean, mean, count: 1 }
    }

    #[test]
    fn smoothing_starts_at_the_first_value_and_follows_the_last_ones() {
        let points: Vec<Point> = (1..=200).map(|step| point(step, if step <= 100 { 4.0 } else { 1.0 })).collect();
        let line = smoothed(&points, 10.0);
        assert!((line[0] - 4.0).abs() < 1e-12 && (line[50] - 4.0).abs() < 1e-12);
        assert!((line[109] - (1.0 + 3.0 * (-1.0f64).exp())).abs() < 1e-3, "{}", line[109]);
        assert!((line[199] - 1.0).abs() < 1e-3);
    }

    #[test]
    fn a_bucket_counts_in_the_smoothing_as_its_values_would() {
        let single: Vec<Point> = [2.0, 2.0, 2.0, 6.0, 6.0, 6.0].iter().zip(1..).map(|(mean, step)| point(step, *mean)).collect();
        let wide = [Point { count: 3, ..point(3, 2.0) }, Point { count: 3, ..point(6, 6.0) }];
        assert!((smoothed(&single, 4.0)[5] - smoothed(&wide, 4.0)[1]).abs() < 1e-12);
    }

    #[test]
    fn a_median_passes_over_single_outliers() {
        let points: Vec<Point> = [5.0, 1.0, 100.0, 1.0, 1.0].iter().zip(1..).map(|(mean, step)| point(step, *mean)).collect();
        assert_eq!(running_median(&points, 2), [5.0, 5.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn a_single_step_and_none_are_drawn() {
        for points in [vec![], vec![point(1, 2.0)]] {
            let curve = Curve {
                id: "loss",
                label: "loss".to_owned(),
                unit: "",
                axis: Axis::around(2.0, 2.0, 0.1),
                value_name: "loss",
                line: Some(("smoothed", vec![2.0; points.len()])),
                points,
                marks: None,
                bounds: vec![("bound".to_owned(), 2.0)],
            };
            let drawing = curve.draw();
            assert!(!drawing.contains("NaN") && !drawing.contains("inf"), "{drawing}");
        }
    }
}
