//! Maps of what the routers did: the load of each expert in one step, with a slider over the steps, and each router's entropy over the run.

use serde_json::{Value, json};

use super::metrics::Routing;
use crate::page::number::{number, percent};
use crate::units::whole;

/// Levels of load, from idle (0) over rare and even (7) to crowded (13); those of entropy, from none (0) to even (13).
const LEVELS: usize = 14;

/// Letters that stand for loads in the page's data: none that ends a script or a string.
const ALPHABET: &str = "!#$%()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_`abcdefghijklmnopqrstuvwxyz{|}~";

/// Share of an even entropy that the colours span at least, so that differences that mean nothing do not fill them.
const LEAST_SHARE_SPAN: f64 = 0.1;

/// Letters for each doubling of a load.
const LETTERS_OF_DOUBLING: f64 = 7.0;

/// Doublings above and below even that letters tell apart.
const DOUBLINGS: f64 = 6.0;

/// The routing of a run whose reports are all of one model, and at least one.
pub(super) struct RoutingMaps<'a> {
    reports: &'a [Routing],
    last: &'a Routing,
    layers: usize,
    experts: usize,
}

impl<'a> RoutingMaps<'a> {
    pub(super) fn of(reports: &'a [Routing]) -> Option<Self> {
        let last = reports.last()?;
        Some(Self { reports, last, layers: last.load.len(), experts: last.load[0].len() })
    }

    /// Entropy of a router that prefers no expert, in nats.
    pub(super) fn even_entropy(&self) -> f64 {
        wide(self.experts).ln()
    }

    /// Share of the tokens that an expert has when all have the same: that of layer 0 stands for all.
    fn even_load(&self) -> f64 {
        self.last.load[0].iter().sum::<f64>() / wide(self.experts)
    }

    /// Experts without a token in the last report.
    fn idle(&self) -> usize {
        self.last.load.iter().flatten().filter(|load| **load == 0.0).count()
    }

    /// In a sentence: the busiest expert, and those without a token.
    pub(super) fn words(&self) -> String {
        let all = self
            .last
            .load
            .iter()
            .enumerate()
            .flat_map(|(layer, loads)| loads.iter().enumerate().map(move |(expert, load)| (load, layer, expert)));
        let Some((load, layer, expert)) = all.max_by(|left, right| left.0.total_cmp(right.0)) else { return String::new() };
        let idle = match self.idle() {
            0 => "Every expert got tokens.".to_owned(),
            1 => "1 expert got no token.".to_owned(),
            idle => format!("{} of {} experts got no token.", whole(idle as u64), whole((self.layers * self.experts) as u64)),
        };
        format!(
            "In step {} the busiest was expert {expert} of layer {layer}, with {} of the tokens; an even share is {}. {idle}",
            whole(self.last.step),
            percent(*load),
            percent(self.even_load()),
        )
    }

    /// The map of loads in the last report, with the slider that the script shows.
    pub(super) fn load_map(&self) -> String {
        let even = self.even_load();
        let cells = self
            .last
            .load
            .iter()
            .enumerate()
            .flat_map(|(layer, loads)| loads.iter().enumerate().map(move |(expert, load)| (expert, layer, load_level(*load, even))));
        let slider = format!(
            "<p class=\"slider\" hidden><label>step <output>{}</output> <input type=\"range\" min=\"0\" max=\"{last}\" value=\"{last}\" \
             aria-label=\"step of the map\"/></label></p>",
            whole(self.last.step),
            last = self.reports.len() - 1,
        );
        let map = Map { id: "load", class: "load", columns: self.experts, rows: self.layers, label: "load of each expert, by layer" };
        slider + &map.draw(cells, &["expert 0".to_owned(), format!("expert {}", self.experts - 1)]) + &load_legend()
    }

    /// The map of entropies: a column for each report. Its colours span what there is, and at least [`LEAST_SHARE_SPAN`].
    pub(super) fn entropy_map(&self) -> String {
        let even = self.even_entropy();
        let share = move |entropy: f64| if even > 0.0 { (entropy / even).clamp(0.0, 1.0) } else { 1.0 };
        let all = || self.reports.iter().flat_map(|report| &report.entropy).map(|entropy| share(*entropy));
        let (lowest, highest) = (all().fold(1.0, f64::min), all().fold(0.0, f64::max));
        let low = lowest.min(highest - LEAST_SHARE_SPAN).max(0.0);
        let high = highest.max(low + LEAST_SHARE_SPAN);
        let level = move |entropy: f64| share_level((share(entropy) - low) / (high - low));
        let cells =
            self.reports.iter().enumerate().flat_map(|(column, report)| {
                report.entropy.iter().enumerate().map(move |(layer, entropy)| (column, layer, level(*entropy)))
            });
        let map = Map {
            id: "entropy",
            class: "share",
            columns: self.reports.len(),
            rows: self.layers,
            label: "router entropy by layer and step",
        };
        let (first, last) = (self.reports[0].step, self.last.step);
        let ends = [format!("step {}", whole(first)), if last > first { whole(last) } else { String::new() }];
        map.draw(cells, &ends) + &share_legend(low, high)
    }

    /// What the script draws and says.
    pub(super) fn spoken(&self) -> Value {
        let letters: Vec<char> = ALPHABET.chars().collect();
        let even = self.even_load();
        let text = |report: &Routing| report.load.iter().flatten().map(|load| letters[letter(*load, even)]).collect::<String>();
        let rounded = |value: &f64| format!("{value:.3}").parse::<f64>().unwrap_or(0.0);
        json!({
            "steps": self.reports.iter().map(|report| report.step).collect::<Vec<_>>(),
            "layers": self.layers,
            "experts": self.experts,
            "even": percent(even),
            "evenEntropy": number(rounded(&self.even_entropy())),
            "alphabet": ALPHABET,
            "lettersOfDoubling": LETTERS_OF_DOUBLING,
            "doublings": DOUBLINGS,
            "load": self.reports.iter().map(text).collect::<Vec<_>>(),
            "entropy": self.reports.iter().map(|report| report.entropy.iter().map(rounded).collect::<Vec<_>>()).collect::<Vec<_>>(),
        })
    }
}

/// Cells of equal size that fill the width there is.
struct Map {
    id: &'static str,
    class: &'static str,
    columns: usize,
    rows: usize,
    label: &'static str,
}

impl Map {
    /// Draws (column, row, level) cells: a path for each level, for there may be thousands of cells. `ends` stands below.
    fn draw(&self, cells: impl Iterator<Item = (usize, usize, usize)>, ends: &[String; 2]) -> String {
        let mut paths = vec![String::new(); LEVELS];
        for (column, row, level) in cells {
            paths[level.min(LEVELS - 1)] += &format!("M{column} {row}h1v1h-1z");
        }
        // Layers as high as leaves the map on a screen.
        let height = (wide(self.rows) * (300.0 / wide(self.rows)).clamp(8.0, 18.0)).round();
        let step =
            [1, 2, 3, 4, 6, 10, 20, 50, 100, 200].into_iter().find(|step| wide(*step) * height / wide(self.rows) >= 16.0).unwrap_or(500);
        let mut side = String::new();
        for row in (0..self.rows).step_by(step) {
            let y = (wide(row) + 0.5) * height / wide(self.rows) + 4.0;
            side += &format!("<text x=\"54\" y=\"{y:.1}\">{}{row}</text>", if row == 0 { "layer " } else { "" });
        }
        let paths: String = paths.iter().enumerate().map(|(level, path)| format!("<path class=\"l{level}\" d=\"{path}\"/>")).collect();
        format!(
            "<div class=\"plot\" role=\"img\" aria-label=\"{}\"><svg class=\"side\" width=\"60\" height=\"{height}\" aria-hidden=\"true\">{side}</svg>\
             <div class=\"canvas\" data-map=\"{}\"><svg class=\"map {}\" width=\"100%\" height=\"{height}\" viewBox=\"0 0 {} {}\" \
             preserveAspectRatio=\"none\" aria-hidden=\"true\">{paths}</svg></div></div>\
             <p class=\"ends\"><span>{}</span><span>{}</span></p>",
            self.label, self.id, self.class, self.columns, self.rows, ends[0], ends[1]
        )
    }
}

/// Doublings of a load over an even one, as far as they are told apart.
fn doublings(load: f64, even: f64) -> f64 {
    let doublings = (load / even).log2();
    if doublings.is_nan() { 0.0 } else { doublings.clamp(-DOUBLINGS, DOUBLINGS) }
}

/// 0 for an idle expert; else 7 for an even load, and one more or less for each half of a doubling.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 13")]
fn load_level(load: f64, even: f64) -> usize {
    if load <= 0.0 { 0 } else { (doublings(load, even) * 2.0 + 7.0).round().clamp(1.0, 13.0) as usize }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 85")]
fn letter(load: f64, even: f64) -> usize {
    if load <= 0.0 { 0 } else { ((doublings(load, even) + DOUBLINGS) * LETTERS_OF_DOUBLING).round() as usize + 1 }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 13")]
fn share_level(share: f64) -> usize {
    (share.clamp(0.0, 1.0) * wide(LEVELS - 1)).round() as usize
}

fn load_legend() -> String {
    let swatch = |level: usize| {
        format!(
            "<svg class=\"map load\" width=\"14\" height=\"14\" aria-hidden=\"true\"><path class=\"l{level}\" d=\"M0 0h14v14h-14z\"/></svg>"
        )
    };
    let row: String = [1, 3, 5, 7, 9, 11, 13].map(swatch).concat();
    format!("<p class=\"key\"><span>{} no token</span><span class=\"scale\">1/8 of even {row} 8 times even</span></p>", swatch(0))
}

fn share_legend(low: f64, high: f64) -> String {
    let swatch = |level: usize| {
        format!(
            "<svg class=\"map share\" width=\"14\" height=\"14\" aria-hidden=\"true\"><path class=\"l{level}\" d=\"M0 0h14v14h-14z\"/></svg>"
        )
    };
    let row: String = [0, 2, 4, 6, 8, 10, 13].map(swatch).concat();
    let percent = |share: f64| format!("{:.0}%", share * 100.0);
    format!("<p class=\"key\"><span class=\"scale\">{} {row} {}</span></p>", percent(low), percent(high))
}

#[expect(clippy::cast_precision_loss, reason = "layers, experts and reports are few")]
fn wide(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_levels_tell_idle_rare_even_and_crowded_apart() {
        assert_eq!([0.0, 1e-9, 0.125, 0.25, 0.5, 1.0].map(|load| load_level(load, 0.125)), [0, 1, 7, 9, 11, 13]);
        assert_eq!([0.0, 1e-9, 0.125, 0.25, 8.0, 100.0].map(|load| letter(load, 0.125)), [0, 1, 43, 50, 85, 85]);
        assert!(ALPHABET.len() > 85 && !ALPHABET.contains(['"', '\\', '<', '>', '&', '\'']));
        assert_eq!([0.0, 0.5, 1.0, 1.1, f64::NAN].map(share_level), [0, 7, 13, 13, 0]);
    }

    #[test]
    fn the_largest_model_is_a_map_of_moderate_size() {
        let load: Vec<Vec<f64>> =
            (0..36).map(|layer| (0..128).map(|expert| f64::from((layer * 7 + expert) % 13) / 195.0).collect()).collect();
        let reports: Vec<Routing> = (0..52).map(|step| Routing { step: step + 1, entropy: vec![2.0; 36], load: load.clone() }).collect();
        let maps = RoutingMaps::of(&reports).unwrap();
        let size = maps.load_map().len() + maps.entropy_map().len() + maps.spoken().to_string().len();
        assert!(size < 500_000, "{size} bytes");
        assert!(maps.words().contains("got no token"), "{}", maps.words());
        assert!(RoutingMaps::of(&[]).is_none());
    }
}
