//! `metrics.jsonl` in bounded memory: steps fall into buckets that become wider as the run becomes longer.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

/// Buckets at most; more than a plot has pixels on most screens.
const MOST_BUCKETS: usize = 1000;

/// Evaluations and routing reports that are kept at most, each; a run makes about fifty reports.
const MOST_REPORTS: usize = 120;

/// Experts of all layers together, beyond which a routing report is none.
const MOST_EXPERTS: usize = 1 << 16;

/// Bytes of a line at most; longer ones are passed over.
const MOST_LINE_BYTES: u64 = 4 << 20;

/// Figures of a step that are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    Loss,
    LearningRate,
    GradientNorm,
    TokensPerSecond,
    PeakMemory,
}

impl Figure {
    pub(super) const ALL: [Self; 5] = [Self::Loss, Self::LearningRate, Self::GradientNorm, Self::TokensPerSecond, Self::PeakMemory];

    fn key(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::LearningRate => "learning_rate",
            Self::GradientNorm => "gradient_norm",
            Self::TokensPerSecond => "tokens_per_second",
            Self::PeakMemory => "peak_memory_bytes",
        }
    }
}

/// A figure over the steps of a bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Range {
    pub(super) low: f64,
    pub(super) high: f64,
    sum: f64,
    count: u32,
}

impl Range {
    const NONE: Self = Self { low: f64::INFINITY, high: f64::NEG_INFINITY, sum: 0.0, count: 0 };

    fn add(&mut self, other: Self) {
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
        self.sum += other.sum;
        self.count += other.count;
    }

    /// Nothing where no step had the figure.
    pub(super) fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
    }

    /// Steps that had the figure.
    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

/// Steps one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bucket {
    /// The last of them.
    pub(super) step: u64,
    num_steps: u64,
    figures: [Range; Figure::ALL.len()],
}

impl Bucket {
    pub(super) fn range(&self, figure: Figure) -> Range {
        self.figures[figure as usize]
    }
}

/// What the routers did in one step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Routing {
    pub(super) step: u64,
    /// In nats, by layer.
    pub(super) entropy: Vec<f64>,
    /// Share of the tokens, by layer and expert.
    pub(super) load: Vec<Vec<f64>>,
}

/// All of a run's numbers.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) buckets: Vec<Bucket>,
    width: u64,
    /// (step, loss), in order.
    pub(super) validation: Vec<(u64, f64)>,
    pub(super) lowest_validation: Option<(u64, f64)>,
    pub(super) last_validation: Option<(u64, f64)>,
    pub(super) routing: Vec<Routing>,
    /// Lines of steps.
    pub(super) steps: u64,
    pub(super) last_step: u64,
    pub(super) first_loss: Option<f64>,
    pub(super) last_loss: Option<f64>,
    pub(super) tokens: u64,
    pub(super) trained_tokens: u64,
    pub(super) seconds: f64,
    pub(super) epoch: Option<f64>,
    pub(super) utilization: Option<f64>,
}

impl Metrics {
    /// Reads what can be read: a line that is cut or damaged is passed over, and a file that is not there holds none.
    ///
    /// # Errors
    /// When the system fails to read a file that is there.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut metrics = Self::default();
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut reader).take(MOST_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
                return Ok(metrics);
            }
            // The pieces of a line that is too long are no JSON either.
            if let Ok(Value::Object(fields)) = serde_json::from_slice(&line) {
                metrics.add(&Value::Object(fields));
            }
        }
    }

    /// Adds a line.
    pub(super) fn add(&mut self, line: &Value) {
        let Some(step) = line.get("step").and_then(Value::as_u64) else { return };
        if line.get("loss").is_some() {
            self.add_step(step, line);
        } else if let Some(loss) = line.get("validation_loss").and_then(Value::as_f64) {
            self.last_validation = Some((step, loss));
            if self.lowest_validation.is_none_or(|(_, lowest)| loss < lowest) {
                self.lowest_validation = Some((step, loss));
            }
            self.validation.push((step, loss));
            thin(&mut self.validation);
        } else if let Some(routing) = routing(step, line)
            && self.routing.last().is_none_or(|before| same_model(before, &routing))
        {
            self.routing.push(routing);
            thin(&mut self.routing);
        }
    }

    fn add_step(&mut self, step: u64, line: &Value) {
        let number = |key: &str| line.get(key).and_then(Value::as_f64);
        let range =
            |figure: Figure| number(figure.key()).map_or(Range::NONE, |value| Range { low: value, high: value, sum: value, count: 1 });
        let figures = Figure::ALL.map(range);
        self.steps += 1;
        self.last_step = step;
        self.first_loss = self.first_loss.or(number("loss"));
        self.last_loss = number("loss").or(self.last_loss);
        self.tokens += line.get("tokens").and_then(Value::as_u64).unwrap_or(0);
        self.trained_tokens += line.get("trained_tokens").and_then(Value::as_u64).unwrap_or(0);
        self.seconds += number("step_seconds").unwrap_or(0.0);
        self.epoch = number("epoch").or(self.epoch);
        self.utilization = number("model_flops_utilization").or(self.utilization);
        self.width = self.width.max(1);
        match self.buckets.last_mut() {
            Some(last) if last.num_steps < self.width => last.merge(&Bucket { step, num_steps: 1, figures }),
            _ => self.buckets.push(Bucket { step, num_steps: 1, figures }),
        }
        if self.buckets.len() > MOST_BUCKETS {
            self.width *= 2;
            let pairs = self.buckets.chunks(2).map(|pair| {
                let mut first = pair[0].clone();
                pair[1..].iter().for_each(|second| first.merge(second));
                first
            });
            self.buckets = pairs.collect();
        }
    }

    /// Steps of a bucket.
    pub(super) fn width(&self) -> u64 {
        self.width.max(1)
    }

    /// The median of a figure: over the steps, or where a bucket holds several, over the buckets' means.
    pub(super) fn median(&self, figure: Figure) -> Option<f64> {
        let mut means: Vec<f64> = self.buckets.iter().filter_map(|bucket| bucket.range(figure).mean()).collect();
        means.sort_by(f64::total_cmp);
        means.get(means.len() / 2).copied()
    }

    /// The largest value of a figure.
    pub(super) fn highest(&self, figure: Figure) -> Option<f64> {
        self.buckets.iter().map(|bucket| bucket.range(figure).high).filter(|high| high.is_finite()).reduce(f64::max)
    }
}

impl Bucket {
    fn merge(&mut self, next: &Self) {
        self.step = next.step;
        self.num_steps += next.num_steps;
        for (range, other) in self.figures.iter_mut().zip(next.figures) {
            range.add(other);
        }
    }
}

/// Leaves out every second of too many, not the last.
fn thin<T>(reports: &mut Vec<T>) {
    if reports.len() > MOST_REPORTS {
        let last = reports.len() - 1;
        let mut index = 0..;
        reports.retain(|_| index.next().is_some_and(|index: usize| index.is_multiple_of(2) || index == last));
    }
}

fn routing(step: u64, line: &Value) -> Option<Routing> {
    let numbers = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
    let entropy = numbers(line.get("router_entropy")?)?;
    let load = line.get("expert_load")?.as_array()?.iter().map(numbers).collect::<Option<Vec<_>>>()?;
    let experts = load.first()?.len();
    let is_sound = experts > 0 && entropy.len() == load.len() && load.iter().all(|layer| layer.len() == experts);
    (is_sound && load.len() * experts <= MOST_EXPERTS).then_some(Routing { step, entropy, load })
}

fn same_model(left: &Routing, right: &Routing) -> bool {
    left.load.len() == right.load.len() && left.load[0].len() == right.load[0].len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn many_steps_keep_their_extremes_in_few_buckets() {
        let mut metrics = Metrics::default();
        for step in 1..=100_000u64 {
            let loss = if step == 77_777 { 50.0 } else { 2.0 };
            metrics.add(&json!({"step": step, "loss": loss, "tokens": 3, "step_seconds": 0.5}));
        }
        assert!(metrics.buckets.len() > MOST_BUCKETS / 2 && metrics.buckets.len() <= MOST_BUCKETS, "{}", metrics.buckets.len());
        assert_eq!(metrics.highest(Figure::Loss), Some(50.0));
        assert_eq!((metrics.steps, metrics.last_step, metrics.tokens, metrics.seconds), (100_000, 100_000, 300_000, 50_000.0));
        assert_eq!(metrics.buckets.iter().map(|bucket| u64::from(bucket.range(Figure::Loss).count())).sum::<u64>(), 100_000);
        assert!(metrics.buckets.windows(2).all(|pair| pair[0].step + metrics.width() >= pair[1].step));
        assert_eq!(metrics.highest(Figure::GradientNorm), None);
    }

    #[test]
    fn damaged_lines_and_other_figures_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let text = "{\"step\":1,\"loss\":3.0}\nnonsense\n[1]\n{\"step\":1,\"preference\":0.5}\n\
                    {\"step\":1,\"router_entropy\":[1.0],\"expert_load\":[[0.5],[0.5]]}\n\
                    {\"step\":1,\"router_entropy\":[0.5],\"expert_load\":[[0.75,0.25]]}\n\
                    {\"step\":2,\"validation_loss\":2.5}\n{\"step\":2,\"loss\":2.";
        std::fs::write(&path, text).unwrap();
        let metrics = Metrics::read(&path).unwrap();
        assert_eq!((metrics.steps, metrics.validation.len(), metrics.routing.len()), (1, 1, 1));
        assert_eq!(metrics.routing[0].load, [[0.75, 0.25]]);
        assert_eq!(Metrics::read(&folder.path().join("absent")).unwrap().steps, 0);
    }

    #[test]
    fn too_many_reports_are_thinned_and_the_last_stays() {
        let mut metrics = Metrics::default();
        for step in 1..=1001 {
            metrics.add(&json!({"step": step, "validation_loss": 1.0}));
        }
        assert!(metrics.validation.len() <= MOST_REPORTS);
        assert_eq!(metrics.validation.last(), Some(&(1001, 1.0)));
        assert!(metrics.validation.is_sorted());
    }
}
