//! A run as a page that needs nothing beside it: no network, no font, and no script to be read.
//!
//! It is made of the files in the run directory alone, so that it can be made again at any time, also of an unfinished or an older run.

mod curve;
mod facts;
mod metrics;
mod recipe;
mod routing;
mod samples;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use serde_json::{Value, json};
use toml::Table;

use ft_trainer::run::directory::write_atomically;

use crate::error::{Error, Result};
use crate::page::axis::Axis;
use crate::page::escape::escape_lines;
use crate::page::number::number;
use crate::run_record::Record;
use crate::units::{bytes, duration, percent, whole};
use curve::{Curve, Point, running_median, smoothed};
use metrics::{Figure, Metrics};
use routing::RoutingMaps;
use samples::Samples;

/// Colours, and how the page folds on a phone and on paper.
const STYLE: &str = concat!(include_str!("page/base.css"), include_str!("run_page/style.css"));

/// Says the numbers that are pointed at, and moves the map of loads through the run; the page is complete without it.
const SCRIPT: &str = include_str!("run_page/page.js");

/// The line of a loss remembers this share of the run.
const SMOOTHING_SHARE: f64 = 0.015;

/// Values that it remembers at least.
const LEAST_SMOOTHING: f64 = 2.0;

/// Points on each side of one in a running median.
const MEDIAN_REACH: usize = 7;

/// How far above what 95% of the values stay below an axis may go before it leaves the highest ones out.
const OUTLIER_FACTOR: f64 = 4.0;

/// Makes the page of the run in `directory` and puts it at `output`, whole or not at all.
///
/// # Errors
/// [`Error::NoRun`] where there is none, and those of the file system.
pub(crate) fn write(directory: &Path, output: &Path) -> Result<()> {
    Ok(write_atomically(output, render(directory)?.as_bytes())?)
}

/// The whole page, UTF-8.
pub(crate) fn render(directory: &Path) -> Result<String> {
    Ok(Run::read(directory)?.page())
}

/// All that is known of a run.
struct Run {
    name: String,
    has_result: bool,
    metrics: Metrics,
    samples: Samples,
    recipe: Option<Table>,
    record: Option<Record>,
    log: Option<String>,
}

impl Run {
    fn read(directory: &Path) -> Result<Self> {
        if !["metrics.jsonl", "run.json", "recipe.toml"].iter().any(|name| directory.join(name).is_file()) {
            return Err(Error::NoRun { path: directory.to_owned() });
        }
        let of = |name: &str| {
            let path = directory.join(name);
            move |source: io::Error| Error::File { action: "read", path, source }
        };
        let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        Ok(Self {
            name: absolute.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned()),
            has_result: ["adapter", "model"].iter().any(|name| directory.join(name).is_dir()),
            metrics: Metrics::read(&directory.join("metrics.jsonl")).map_err(of("metrics.jsonl"))?,
            samples: Samples::read(&directory.join("samples.md")).map_err(of("samples.md"))?,
            recipe: recipe::read(directory),
            record: Record::read(directory),
            log: facts::log(&directory.join("run.log")),
        })
    }

    fn page(&self) -> String {
        let curves = self.curves();
        let maps = RoutingMaps::of(&self.metrics.routing);
        let spoken: serde_json::Map<String, Value> = curves.iter().map(|shown| (shown.curve.id.to_owned(), shown.curve.spoken())).collect();
        let spoken = json!({"curves": spoken, "routing": maps.as_ref().map(RoutingMaps::spoken)});
        // No text of others is in it; still nothing may end the element that holds it.
        let spoken = spoken.to_string().replace('<', "\\u003c");
        let name = escape_lines(&self.name);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
             script-src 'unsafe-inline'\"/>\n\
             <title>{name} - training run</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}{}{}{}{}{}{}{}{}\
             <footer><p>Written by ft {}.</p></footer>\n</main>\n<script type=\"application/json\" id=\"spoken\">{spoken}</script>\n\
             <script>\n{SCRIPT}</script>\n</body>\n</html>\n",
            self.head(&name),
            self.figures(),
            plots(&curves),
            maps.as_ref().map_or_else(String::new, |maps| self.routing(maps)),
            section("samples", "Samples", self.samples.draw()),
            section(
                "recipe",
                "Recipe",
                self.recipe.as_ref().map(|recipe| {
                    format!("<p class=\"quiet\">As resolved. Marked settings differ from the defaults.</p>\n{}", recipe::draw(recipe))
                })
            ),
            section("data", "Data", self.plan().and_then(facts::dataset)),
            section(
                "environment",
                "Environment",
                self.record.as_ref().map(|record| {
                    let memory = self.plan().and_then(facts::memory).unwrap_or_default();
                    format!(
                        "<div class=\"pair\"><div>{}</div><div>{memory}{}</div></div>\n",
                        facts::environment(record),
                        facts::sessions(record)
                    )
                })
            ),
            section("log", "Log", self.log.clone()),
            env!("CARGO_PKG_VERSION"),
        )
    }

    fn plan(&self) -> Option<&Value> {
        self.record.as_ref()?.plan.as_ref()
    }

    fn planned(&self, key: &str) -> Option<u64> {
        self.plan()?.get(key)?.as_u64()
    }

    fn setting(&self, table: &str, key: &str) -> Option<&toml::Value> {
        recipe::value(self.recipe.as_ref()?, table, key)
    }

    /// Name, state, and what was trained on what.
    fn head(&self, name: &str) -> String {
        let session = self.record.as_ref().and_then(|record| record.sessions.last());
        let state = match (session.map(|session| session.state), self.has_result) {
            (Some(state), _) => facts::state_name(state),
            (None, true) => "finished",
            (None, false) => "not finished",
        };
        let steps = match self.planned("steps") {
            Some(planned) => format!("step {} of {}", whole(self.metrics.last_step), whole(planned)),
            None => format!("step {}", whole(self.metrics.last_step)),
        };
        let training = match &self.recipe {
            Some(recipe) if recipe.contains_key("full") => "full training",
            Some(recipe) if recipe.contains_key("lora") => "LoRA",
            _ => "training",
        };
        let model = self
            .setting("model", "path")
            .and_then(toml::Value::as_str)
            .map(|path| format!("{training} of <code>{}</code>", escape_lines(path)));
        let data = self.setting("dataset", "train").and_then(toml::Value::as_array).map(|files| {
            let names: Vec<String> =
                files.iter().filter_map(toml::Value::as_str).take(4).map(|file| format!("<code>{}</code>", escape_lines(file))).collect();
            let more = files.len().saturating_sub(4);
            format!("{}{}", names.join(", "), if more > 0 { format!(" and {more} more") } else { String::new() })
        });
        let started = self.record.as_ref().and_then(|record| record.sessions.first()).map(|session| escape_lines(&session.started));
        let mut rows = String::new();
        let facts = [("model", model), ("data", data.filter(|data| !data.is_empty())), ("started", started)];
        for (label, text) in facts {
            if let Some(text) = text {
                rows += &format!("<div><dt>{label}</dt><dd>{text}</dd></div>\n");
            }
        }
        let error = session.and_then(|session| session.error.as_ref());
        let error = error.map_or(String::new(), |error| format!("<p class=\"error\">{}</p>\n", escape_lines(error)));
        format!(
            "<header>\n<p class=\"kind\">Training run</p>\n<h1>{name}</h1>\n<p class=\"state\"><span class=\"badge {}\">{state}</span> {steps}</p>\n\
             {error}<dl class=\"facts\">\n{rows}</dl>\n</header>\n",
            state.replace(' ', "-"),
        )
    }

    /// What one wants to know first.
    fn figures(&self) -> String {
        let metrics = &self.metrics;
        let mut figures = String::new();
        let mut figure = |name: &str, value: String, note: String| {
            figures += &format!("<div><dt>{name}</dt><dd><strong>{value}</strong><span>{note}</span></dd></div>\n");
        };
        if let (Some(first), Some(last)) = (metrics.first_loss, metrics.last_loss) {
            figure("loss", loss(last), format!("from {} in the first step", loss(first)));
        }
        if let (Some((_, last)), Some((step, lowest))) = (metrics.last_validation, metrics.lowest_validation) {
            let note =
                if last > lowest { format!("lowest {} after step {}", loss(lowest), whole(step)) } else { "the lowest so far".to_owned() };
            figure("validation loss", loss(last), note);
        }
        if metrics.tokens > 0 {
            let epochs = metrics.epoch.map_or(String::new(), |epoch| format!(", {} epochs", number((epoch * 100.0).round() / 100.0)));
            figure(
                "tokens",
                crate::units::parameters(metrics.tokens),
                format!("{} trained{epochs}", crate::units::parameters(metrics.trained_tokens)),
            );
        }
        if let Some(speed) = metrics.median(Figure::TokensPerSecond) {
            let utilization = metrics.utilization.map_or(String::new(), |share| format!(", {} of the device's peak", percent(share)));
            figure("tokens/s", whole_number(speed), format!("median{utilization}"));
        }
        if metrics.seconds > 0.0 {
            figure("time in steps", duration(metrics.seconds), format!("{} a step", seconds_of_step(metrics)));
        }
        if let Some(memory) = metrics.highest(Figure::PeakMemory) {
            let planned = self.planned_memory().map_or(String::new(), |planned| format!("{} planned", bytes(planned)));
            figure("peak memory", bytes(whole_bytes(memory)), planned);
        }
        if figures.is_empty() {
            return "<section><p class=\"none\">No step is done yet.</p></section>\n".to_owned();
        }
        format!("<section aria-label=\"main figures\">\n<dl class=\"figures\">\n{figures}</dl>\n</section>\n")
    }

    /// Of the place that `peak_memory_bytes` is about.
    fn planned_memory(&self) -> Option<u64> {
        let memory = self.plan()?.get("memory")?;
        let bytes = |key: &str| memory.get(key).and_then(Value::as_u64).filter(|bytes| *bytes > 0);
        bytes("device_bytes").or_else(|| bytes("host_bytes"))
    }

    fn points(&self, figure: Figure, factor: f64) -> Vec<Point> {
        self.metrics.buckets.iter().filter_map(|bucket| Point::of(bucket.step, bucket.range(figure), factor)).collect()
    }

    fn curves(&self) -> Vec<Shown> {
        let mut shown = Vec::new();
        self.loss_curve().into_iter().for_each(|curve| shown.push(curve));
        let points = self.points(Figure::LearningRate, 1.0);
        if let Some((_, high)) = ends(&points) {
            shown.push(Shown {
                name: "Learning rate",
                caption: "Of each step.".to_owned(),
                is_wide: false,
                curve: Curve {
                    id: "rate",
                    label: "learning rate by step".to_owned(),
                    unit: "",
                    axis: Axis::from_zero(high),
                    value_name: "learning rate",
                    points,
                    line: None,
                    marks: None,
                    bounds: Vec::new(),
                },
            });
        }
        self.gradient_curve().into_iter().for_each(|curve| shown.push(curve));
        self.speed_curve().into_iter().for_each(|curve| shown.push(curve));
        self.memory_curve().into_iter().for_each(|curve| shown.push(curve));
        shown
    }

    fn loss_curve(&self) -> Option<Shown> {
        let points = self.points(Figure::Loss, 1.0);
        let marks = Some(&self.metrics.validation).filter(|marks| !marks.is_empty()).cloned();
        let (mut low, mut high) = ends(&points)?;
        for (_, loss) in marks.iter().flatten() {
            (low, high) = (low.min(*loss), high.max(*loss));
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of steps")]
        let memory = (self.metrics.steps as f64 * SMOOTHING_SHARE).max(LEAST_SMOOTHING);
        let mut caption = format!(
            "Mean cross entropy of the trained tokens in nats: each step faint, smoothed exponentially over {} steps",
            number(memory.round())
        );
        caption += if marks.is_some() { ", validation as dots." } else { "." };
        Some(Shown {
            name: "Loss",
            caption: caption + &width_words(&self.metrics),
            is_wide: true,
            curve: Curve {
                id: "loss",
                label: "loss by step".to_owned(),
                unit: "",
                axis: Axis::around(low, high, 0.01),
                value_name: "loss",
                line: Some(("smoothed", smoothed(&points, memory))),
                points,
                marks: marks.map(|marks| ("validation", marks)),
                bounds: Vec::new(),
            },
        })
    }

    fn gradient_curve(&self) -> Option<Shown> {
        let points = self.points(Figure::GradientNorm, 1.0);
        let (_, highest) = ends(&points)?;
        let bound = self.setting("optimizer", "max_gradient_norm").and_then(toml::Value::as_float).filter(|bound| *bound > 0.0);
        let mut high: Vec<f64> = points.iter().map(|point| point.high).collect();
        high.sort_by(f64::total_cmp);
        let usual = high[(high.len() - 1) * 19 / 20] * OUTLIER_FACTOR;
        let top = highest.min(usual).max(f64::MIN_POSITIVE);
        let mut caption = "Before clipping: each step faint, a running median.".to_owned();
        if highest > top {
            caption = format!("Before clipping: each step faint, a running median. The highest, {}, lies above the axis.", number(highest));
        }
        // A bound far above all values would press them to the ground.
        let bounds = match bound {
            Some(bound) if bound <= top * OUTLIER_FACTOR => vec![(format!("clipped to {}", number(bound)), bound)],
            Some(bound) => {
                caption += &format!(" The bound of {} is far above.", number(bound));
                Vec::new()
            }
            None => Vec::new(),
        };
        let top = bounds.iter().map(|(_, bound)| *bound).fold(top, f64::max);
        Some(Shown {
            name: "Gradient norm",
            caption,
            is_wide: false,
            curve: Curve {
                id: "gradient",
                label: "gradient norm by step".to_owned(),
                unit: "",
                axis: Axis::from_zero(top),
                value_name: "gradient norm",
                line: Some(("median", running_median(&points, MEDIAN_REACH))),
                points,
                marks: None,
                bounds,
            },
        })
    }

    fn speed_curve(&self) -> Option<Shown> {
        let points = self.points(Figure::TokensPerSecond, 1.0);
        let (_, high) = ends(&points)?;
        Some(Shown {
            name: "Tokens per second",
            caption: format!(
                "Each step faint, a running median; {} in the median of all.",
                whole_number(self.metrics.median(Figure::TokensPerSecond)?)
            ),
            is_wide: false,
            curve: Curve {
                id: "speed",
                label: "tokens per second by step".to_owned(),
                unit: "",
                axis: Axis::from_zero(high),
                value_name: "tokens/s",
                line: Some(("median", running_median(&points, MEDIAN_REACH))),
                points,
                marks: None,
                bounds: Vec::new(),
            },
        })
    }

    fn memory_curve(&self) -> Option<Shown> {
        const GIGABYTES: f64 = 1e-9;
        let points = self.points(Figure::PeakMemory, GIGABYTES);
        let (_, high) = ends(&points)?;
        #[expect(clippy::cast_precision_loss, reason = "a place on a screen")]
        let planned = self.planned_memory().map(|planned| (format!("planned {}", bytes(planned)), planned as f64 * GIGABYTES));
        let top = planned.iter().map(|(_, planned)| *planned).fold(high, f64::max);
        Some(Shown {
            name: "Peak memory",
            caption: "The most held so far.".to_owned(),
            is_wide: false,
            curve: Curve {
                id: "memory",
                label: "peak memory by step, in GB".to_owned(),
                unit: " GB",
                axis: Axis::from_zero(top),
                value_name: "peak memory",
                points,
                line: None,
                marks: None,
                bounds: planned.into_iter().collect(),
            },
        })
    }

    fn routing(&self, maps: &RoutingMaps<'_>) -> String {
        format!(
            "<section aria-labelledby=\"routing\">\n<h2 id=\"routing\">Routing</h2>\n<div class=\"plots\">\n{}{}</div>\n</section>\n",
            figure(
                "wide",
                "Expert load",
                &format!("Share of the tokens that each expert got, against an even share. {}", maps.words()),
                &maps.load_map()
            ),
            figure(
                "wide",
                "Router entropy",
                &format!(
                    "Mean entropy of each router's distribution over all experts, as a share of the {} nats of one without any preference.",
                    number((maps.even_entropy() * 1000.0).round() / 1000.0)
                ),
                &maps.entropy_map(),
            ),
        )
    }
}

/// A plot with its words.
struct Shown {
    name: &'static str,
    caption: String,
    is_wide: bool,
    curve: Curve,
}

fn plots(curves: &[Shown]) -> String {
    if curves.is_empty() {
        return String::new();
    }
    let draw = |shown: &Shown| figure(if shown.is_wide { "wide" } else { "half" }, shown.name, &shown.caption, &shown.curve.draw());
    let text: String = curves.iter().map(draw).collect();
    format!("<section aria-labelledby=\"training\">\n<h2 id=\"training\">Training</h2>\n<div class=\"plots\">\n{text}</div>\n</section>\n")
}

/// A plot with its caption, over the whole width of the page or half of it.
fn figure(width: &str, name: &str, caption: &str, drawing: &str) -> String {
    format!("<figure class=\"{width}\">\n<figcaption><h3>{name}</h3><p>{caption}</p></figcaption>\n{drawing}\n</figure>\n")
}

fn section(id: &str, heading: &str, content: Option<String>) -> String {
    content.map_or_else(String::new, |content| {
        format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{heading}</h2>\n{content}</section>\n")
    })
}

fn ends(points: &[Point]) -> Option<(f64, f64)> {
    Some((points.iter().map(|point| point.low).reduce(f64::min)?, points.iter().map(|point| point.high).reduce(f64::max)?))
}

/// What a point of the plots stands for, where it is not one step.
fn width_words(metrics: &Metrics) -> String {
    match metrics.width() {
        1 => String::new(),
        width => format!(" In all plots a point stands for {width} steps, with their range behind it."),
    }
}

fn loss(value: f64) -> String {
    format!("{value:.4}")
}

#[expect(clippy::cast_precision_loss, reason = "a count of steps")]
fn seconds_of_step(metrics: &Metrics) -> String {
    let seconds = metrics.seconds / metrics.steps.max(1) as f64;
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { duration(seconds) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a speed is not negative, and far below 2^53")]
fn whole_number(value: f64) -> String {
    if value < 100.0 { number(value) } else { whole(value.round() as u64) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was a count of bytes")]
fn whole_bytes(value: f64) -> u64 {
    value as u64
}
