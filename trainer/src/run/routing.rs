//! When the routers' choices are counted, what is said of them, and when they are worth a warning.

use super::observer::RoutingReport;
use crate::model::routing_meter::LayerRouting;

/// Reports of a run, about: as many as a page shows one after the other.
const REPORTS: usize = 50;

/// Share of ln(experts) below which a router hardly weighs its experts any more: at 5% one expert of 32 has 97% of the probability, and
/// the three others that are computed for each token count for nearly nothing.
const COLLAPSED_FRACTION: f64 = 0.05;

/// Tokens that an expert should have got by its earlier share before their absence says something: by chance alone it happens with a
/// probability of about e^-30.
const MISSED_TOKENS: f64 = 30.0;

/// Whether the routers' choices of step `step`, counted from 1, of `total_steps` are counted: of the first, the last, and about fifty
/// between them. It depends on nothing else, so that a resumed run counts at the same steps.
#[must_use]
pub fn is_due(step: usize, total_steps: usize) -> bool {
    step == 1 || step == total_steps || step.is_multiple_of((total_steps / REPORTS).max(1))
}

/// What `layers` did with the `tokens` of step `step`.
#[must_use]
pub fn report(step: usize, tokens: usize, layers: &[LayerRouting]) -> RoutingReport {
    #[expect(clippy::cast_precision_loss, reason = "tokens of a step are far below 2^52")]
    let tokens = tokens.max(1) as f64;
    let experts = || layers.iter().flat_map(|layer| &layer.expert_tokens);
    RoutingReport {
        step,
        router_entropy: layers.iter().map(|layer| layer.entropy_sum / tokens).collect(),
        expert_load: layers.iter().map(|layer| layer.expert_tokens.iter().map(|count| count / tokens).collect()).collect(),
        idle_experts: experts().filter(|count| **count == 0.0).count(),
    }
}

/// Compares reports with the first one of this process. A base model may have experts that its data never call, and sharp routers: only
/// what training changed is worth a word, and each kind of change only one.
#[derive(Debug, Default)]
pub struct RoutingWatch {
    first: Option<RoutingReport>,
    has_warned_of_idle: bool,
    has_warned_of_collapse: bool,
}

impl RoutingWatch {
    /// Warnings that `report`, of a step of `tokens` tokens, is the first to deserve.
    pub fn warnings(&mut self, report: &RoutingReport, tokens: usize) -> Vec<String> {
        let Some(first) = &self.first else {
            self.first = Some(report.clone());
            return Vec::new();
        };
        let mut warnings = Vec::new();
        let idle = if self.has_warned_of_idle { None } else { gone_idle(first, report, tokens) };
        if let Some((layer, expert)) = idle {
            self.has_warned_of_idle = true;
            warnings.push(format!(
                "expert {expert} of layer {layer} got no token in step {}, of which it had {:.1}% in step {}: a smaller learning rate \
                 changes routing less",
                report.step,
                first.expert_load[layer][expert] * 100.0,
                first.step,
            ));
        }
        let collapsed = if self.has_warned_of_collapse { None } else { collapsed(first, report) };
        if let Some(layer) = collapsed {
            self.has_warned_of_collapse = true;
            warnings.push(format!(
                "the router of layer {layer} chooses a single expert with near certainty since step {}: entropy {:.3} nats, {:.3} in step \
                 {}; a smaller learning rate changes routing less",
                report.step, report.router_entropy[layer], first.router_entropy[layer], first.step,
            ));
        }
        warnings
    }
}

/// (layer, expert) of the first that got no token where its share in `first` promised enough.
#[expect(clippy::cast_precision_loss, reason = "tokens of a step are far below 2^52")]
fn gone_idle(first: &RoutingReport, report: &RoutingReport, tokens: usize) -> Option<(usize, usize)> {
    first.expert_load.iter().zip(&report.expert_load).enumerate().find_map(|(layer, (before, now))| {
        let has_gone = |(before, now): (&f64, &f64)| *now == 0.0 && before * tokens as f64 >= MISSED_TOKENS;
        before.iter().zip(now).position(has_gone).map(|expert| (layer, expert))
    })
}

/// The first layer whose entropy fell below [`COLLAPSED_FRACTION`] of its largest.
fn collapsed(first: &RoutingReport, report: &RoutingReport) -> Option<usize> {
    #[expect(clippy::cast_precision_loss, reason = "experts are few")]
    let bound = |layer: usize| COLLAPSED_FRACTION * (report.expert_load.get(layer).map_or(1, Vec::len) as f64).ln();
    let both = first.router_entropy.iter().zip(&report.router_entropy).enumerate();
    both.into_iter().find(|(layer, (before, now))| **before >= bound(*layer) && **now < bound(*layer)).map(|(layer, _)| layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_due_at_the_ends_and_about_fifty_times_between() {
        let due = |total: usize| (1..=total).filter(|step| is_due(*step, total)).collect::<Vec<_>>();
        assert_eq!(due(3), [1, 2, 3]);
        assert_eq!(due(1), [1]);
        let of_many = due(100_007);
        assert_eq!((of_many[0], of_many[1], *of_many.last().unwrap()), (1, 2000, 100_007));
        assert_eq!(of_many.len(), 52);
    }

    #[test]
    fn loads_are_shares_of_the_tokens() {
        let layer = |expert_tokens: &[f64], entropy_sum| LayerRouting { expert_tokens: expert_tokens.to_vec(), entropy_sum };
        let report = report(7, 8, &[layer(&[8.0, 4.0, 4.0, 0.0], 4.0), layer(&[0.0, 0.0, 8.0, 8.0], 2.0)]);
        assert_eq!(report.expert_load, [[1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0]]);
        assert_eq!((report.step, report.router_entropy, report.idle_experts), (7, vec![0.5, 0.25], 3));
    }

    #[test]
    fn only_what_training_changed_is_warned_of_and_once() {
        let report = |step, entropy: f64, load: [f64; 3]| RoutingReport {
            step,
            router_entropy: vec![entropy],
            expert_load: vec![load.to_vec()],
            idle_experts: load.iter().filter(|share| **share == 0.0).count(),
        };
        let mut watch = RoutingWatch::default();
        // Expert 2 is idle from the start, expert 1 rare: neither is news.
        assert!(watch.warnings(&report(1, 1.0, [0.99, 0.01, 0.0]), 1000).is_empty());
        assert!(watch.warnings(&report(2, 0.06, [1.0, 0.0, 0.0]), 1000).is_empty());
        let warnings = watch.warnings(&report(3, 0.05, [0.0, 0.5, 0.5]), 1000);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].starts_with("expert 0 of layer 0 got no token in step 3, of which it had 99.0% in step 1"), "{warnings:?}");
        assert!(warnings[1].contains("entropy 0.050 nats, 1.000 in step 1"), "{warnings:?}");
        assert!(watch.warnings(&report(4, 0.0, [0.0, 0.5, 0.5]), 1000).is_empty());

        let mut watch = RoutingWatch::default();
        watch.warnings(&report(1, 0.01, [0.5, 0.5, 0.0]), 1000);
        assert!(watch.warnings(&report(2, 0.01, [0.5, 0.5, 0.0]), 1000).is_empty(), "a router that was sharp from the start");
    }
}
