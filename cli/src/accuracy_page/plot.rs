//! A measure of the tensors, layer by layer, as a plot.
//!
//! Positions across are in percent and all else in pixels, so that a plot fills whatever width it gets and its text keeps its size. The
//! numbers at the side stand in a drawing of their own for it.

use ft_formats::checkpoint::Projection;
use ft_quant::Accuracy;

use super::ExpertTensor;
use super::number::Level;
use crate::page::axis::Axis;
use crate::page::number::percent;

/// Height of the plots.
const HEIGHT: f64 = 220.0;

/// Room above the axis.
const TOP: f64 = 12.0;

/// Room for what is off the axis, when there is any.
const LANE: f64 = 36.0;

/// Room for the layers' numbers.
const BOTTOM: f64 = 28.0;

/// Half of how far the two matrices of a layer are set apart.
const APART: f64 = 3.0;

/// Layers whose number is shown, at most.
const MOST_LABELS: usize = 12;

/// Least length of an axis of dB: what fills it is a difference that matters.
const LEAST_DECIBELS: f64 = 4.0;

/// What is drawn for a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mark {
    /// A number on the axis.
    At(f64),
    /// Above the axis.
    Exact,
}

/// A measure of all tensors.
pub(super) struct LayerPlot<'a> {
    /// What follows the numbers of the axis.
    unit: &'static str,
    axis: Axis,
    points: Vec<Point<'a>>,
    layers: Vec<usize>,
}

struct Point<'a> {
    tensor: &'a ExpertTensor,
    mark: Mark,
    /// What is said of it, when it is pointed at.
    words: String,
}

impl<'a> LayerPlot<'a> {
    /// Signal to noise; nothing where no tensor has any noise.
    pub(super) fn of_levels(tensors: &'a [ExpertTensor]) -> Option<Self> {
        let points = tensors.iter().filter_map(|tensor| {
            let level = Level::of(&tensor.accuracy);
            let (mark, words) = match level {
                Level::Exact => (Mark::Exact, level.text()),
                Level::Decibels(decibels) => (Mark::At(decibels), format!("{} dB", level.text())),
                Level::Unmeasured => return None,
            };
            Some(Point { tensor, mark, words })
        });
        let points: Vec<_> = points.collect();
        let (low, high) = ends(&points)?;
        Some(Self { unit: " dB", axis: Axis::around(low, high, LEAST_DECIBELS), points, layers: layers(tensors) })
    }

    /// A share in percent; nothing where it is 0 everywhere.
    pub(super) fn of_shares(tensors: &'a [ExpertTensor], share: fn(&Accuracy) -> f64) -> Option<Self> {
        let point = |tensor: &'a ExpertTensor| {
            let fraction = share(&tensor.accuracy);
            Point { tensor, mark: Mark::At(fraction * 100.0), words: percent(fraction) }
        };
        let points: Vec<_> = tensors.iter().map(point).collect();
        let (_, high) = ends(&points).filter(|(_, high)| *high > 0.0)?;
        Some(Self { unit: "%", axis: Axis::from_zero(high), points, layers: layers(tensors) })
    }

    /// The drawing. `label` says what it shows to those who do not see it.
    pub(super) fn draw(&self, label: &str) -> String {
        let lane = if self.points.iter().any(|point| point.mark == Mark::Exact) { LANE } else { 0.0 };
        let frame = Frame { top: TOP + lane, bottom: HEIGHT - BOTTOM, layers: &self.layers, axis: self.axis };
        let mut side = String::new();
        let mut area = String::new();
        for tick in self.axis.ticks() {
            let y = frame.y(Mark::At(tick));
            side += &format!("<text x=\"54\" y=\"{:.1}\">{}{}</text>", y + 4.0, self.axis.label(tick), self.unit);
            area += &format!("<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        }
        if lane > 0.0 {
            let y = frame.y(Mark::Exact);
            side += &format!("<text x=\"54\" y=\"{:.1}\">exact</text>", y + 4.0);
        }
        side += &format!("<text x=\"54\" y=\"{:.1}\">layer</text>", HEIGHT - 6.0);
        area += &layer_labels(&self.layers, HEIGHT - 6.0);
        for projection in Projection::ALL {
            area += &self.series(projection, &frame);
        }
        format!(
            "<div class=\"plot\" role=\"img\" aria-label=\"{label}\">\
             <svg class=\"side\" width=\"60\" height=\"{HEIGHT}\" aria-hidden=\"true\">{side}</svg>\
             <svg class=\"area\" width=\"100%\" height=\"{HEIGHT}\" aria-hidden=\"true\">{area}</svg></div>"
        )
    }

    /// The lines and points of one matrix of each layer.
    fn series(&self, projection: Projection, frame: &Frame<'_>) -> String {
        let (class, shift) = match projection {
            Projection::GateUp => ("gate-up", -APART),
            Projection::Down => ("down", APART),
        };
        let points: Vec<&Point<'_>> = self.points.iter().filter(|point| point.tensor.projection == projection).collect();
        let mut drawing = format!("<g class=\"{class}\" transform=\"translate({shift} 0)\">");
        for pair in points.windows(2) {
            let [from, to] = pair else { continue };
            if matches!((from.mark, to.mark), (Mark::At(_), Mark::At(_))) {
                drawing += &format!(
                    "<line x1=\"{:.3}%\" y1=\"{:.1}\" x2=\"{:.3}%\" y2=\"{:.1}\"/>",
                    frame.x(from.tensor.layer),
                    frame.y(from.mark),
                    frame.x(to.tensor.layer),
                    frame.y(to.mark),
                );
            }
        }
        for point in points {
            let title = format!("<title>layer {} {}: {}</title>", point.tensor.layer, projection.name(), point.words);
            // In the lane both would lie at the same height.
            let lower = if point.mark == Mark::Exact { shift * 2.0 } else { 0.0 };
            drawing += &dot(projection, point.mark, frame.x(point.tensor.layer), frame.y(point.mark) + lower, &title);
        }
        drawing + "</g>"
    }
}

/// Where things are drawn.
struct Frame<'a> {
    top: f64,
    bottom: f64,
    layers: &'a [usize],
    axis: Axis,
}

impl Frame<'_> {
    /// In percent of the width.
    fn x(&self, layer: usize) -> f64 {
        place(self.layers.partition_point(|&other| other < layer), self.layers.len())
    }

    fn y(&self, mark: Mark) -> f64 {
        match mark {
            Mark::At(value) => self.bottom - self.axis.position(value) * (self.bottom - self.top),
            Mark::Exact => TOP + APART,
        }
    }
}

/// A filled circle or square; a hollow one where the value is off the axis.
fn dot(projection: Projection, mark: Mark, x: f64, y: f64, title: &str) -> String {
    let class = if mark == Mark::Exact { " class=\"exact\"" } else { "" };
    match projection {
        Projection::GateUp => format!("<circle{class} cx=\"{x:.3}%\" cy=\"{y:.1}\" r=\"4\">{title}</circle>"),
        Projection::Down => {
            format!("<rect{class} x=\"{x:.3}%\" y=\"{y:.1}\" width=\"7\" height=\"7\" transform=\"translate(-3.5 -3.5)\">{title}</rect>")
        }
    }
}

/// Which mark is which matrix.
pub(super) fn legend() -> String {
    let entry = |projection: Projection, class: &str| {
        let mark = dot(projection, Mark::At(0.0), 50.0, 7.0, "");
        format!(
            "<li><svg class=\"{class}\" width=\"14\" height=\"14\" aria-hidden=\"true\">{mark}</svg> <code>{}</code></li>",
            projection.name()
        )
    };
    format!("<ul class=\"legend\">{}{}</ul>", entry(Projection::GateUp, "gate-up"), entry(Projection::Down, "down"))
}

/// The numbers of the layers, as many as have room.
pub(super) fn layer_labels(layers: &[usize], y: f64) -> String {
    let step = [1, 2, 3, 4, 5, 10, 20, 50, 100, 200, 500].into_iter().find(|step| layers.len().div_ceil(*step) <= MOST_LABELS);
    let shown = layers.iter().enumerate().step_by(step.unwrap_or(1000));
    let label = |(index, layer)| format!("<text class=\"layer\" x=\"{:.3}%\" y=\"{y:.1}\">{layer}</text>", place(index, layers.len()));
    shown.map(label).collect()
}

/// The middle of a layer's share of the width, in percent.
#[expect(clippy::cast_precision_loss, reason = "layers are few")]
pub(super) fn place(index: usize, count: usize) -> f64 {
    (index as f64 + 0.5) / count.max(1) as f64 * 100.0
}

/// The layers of `tensors`, each once, in order.
pub(super) fn layers(tensors: &[ExpertTensor]) -> Vec<usize> {
    let mut layers: Vec<usize> = tensors.iter().map(|tensor| tensor.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    layers
}

/// The smallest and the largest number on the axis; nothing where there is none.
fn ends(points: &[Point<'_>]) -> Option<(f64, f64)> {
    let values = || {
        points.iter().filter_map(|point| match point.mark {
            Mark::At(value) => Some(value),
            Mark::Exact => None,
        })
    };
    Some((values().reduce(f64::min)?, values().reduce(f64::max)?))
}
