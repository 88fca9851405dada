//! The learning rate of each step.

use std::f64::consts::PI;

use crate::recipe::ScheduleKind;

/// Warm-up from zero, then a decay to a fraction of the peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Shape of the decay.
    pub kind: ScheduleKind,
    /// Learning rate after the warm-up.
    pub peak: f64,
    /// Steps of warm-up.
    pub warmup_steps: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// Where the decay ends, as a fraction of the peak.
    pub min_fraction: f64,
}

impl Schedule {
    /// Learning rate of the step after `done` steps: linear from 0 over the warm-up, so that the first step of a warm-up has 0.
    ///
    /// Source: the rule of transformers' `get_cosine_with_min_lr_schedule_with_warmup` and its linear and constant siblings, whose step
    /// counter also starts at 0.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2^52")]
    pub fn learning_rate(&self, done: usize) -> f64 {
        if done < self.warmup_steps {
            return self.peak * done as f64 / self.warmup_steps.max(1) as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((done - self.warmup_steps) as f64 / decay_steps as f64).min(1.0);
        let remaining = match self.kind {
            ScheduleKind::Constant => return self.peak,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        };
        self.peak * (self.min_fraction + (1.0 - self.min_fraction) * remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> Schedule {
        Schedule { kind, peak: 2.0, warmup_steps: 4, total_steps: 12, min_fraction: 0.1 }
    }

    #[test]
    fn warm_up_is_linear_from_zero() {
        let rates: Vec<f64> = (0..5).map(|done| schedule(ScheduleKind::Cosine).learning_rate(done)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 1.5, 2.0]);
    }

    #[test]
    fn decay_ends_at_the_minimum() {
        assert!((schedule(ScheduleKind::Cosine).learning_rate(12) - 0.2).abs() < 1e-12);
        assert!((schedule(ScheduleKind::Linear).learning_rate(12) - 0.2).abs() < 1e-12);
        assert!((schedule(ScheduleKind::Linear).learning_rate(8) - 1.1).abs() < 1e-12);
        assert_eq!(schedule(ScheduleKind::Constant).learning_rate(12), 2.0);
    }
}
