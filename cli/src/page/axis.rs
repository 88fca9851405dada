//! The scale of a plot: its ends, and the round numbers between them.

use super::number::{exponent, power_of_ten};

/// Steps that an axis has, about.
const STEPS: f64 = 4.0;

/// A vertical axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Axis {
    low: f64,
    step: f64,
    steps: u32,
}

impl Axis {
    /// From 0 to `high`, or a little above; of positive shares.
    pub(crate) fn from_zero(high: f64) -> Self {
        Self::spanning(0.0, high)
    }

    /// Around `low` to `high`, and at least `least_span` long, so that differences that mean nothing do not fill it.
    pub(crate) fn around(low: f64, high: f64, least_span: f64) -> Self {
        let missing = (least_span - (high - low)).max(0.0);
        let floor = low - missing / 2.0;
        // What is not negative needs no negative axis.
        Self::spanning(if low >= 0.0 { floor.max(0.0) } else { floor }, high + missing / 2.0)
    }

    fn spanning(low: f64, high: f64) -> Self {
        let step = round_step((high - low) / STEPS);
        let low = (low / step).floor();
        let mut steps = 1;
        while (low + f64::from(steps)) * step < high && steps < 100 {
            steps += 1;
        }
        Self { low: low * step, step, steps }
    }

    /// Where `value` lies: 0 at the lower end, 1 at the upper.
    pub(crate) fn position(self, value: f64) -> f64 {
        ((value - self.low) / (self.step * f64::from(self.steps))).clamp(0.0, 1.0)
    }

    /// The round numbers, from the lower end to the upper.
    pub(crate) fn ticks(self) -> impl Iterator<Item = f64> {
        (0..=self.steps).map(move |index| self.low + self.step * f64::from(index))
    }

    /// A tick, with as many digits as tell it from its neighbours.
    pub(crate) fn label(self, tick: f64) -> String {
        let digit = exponent(self.step);
        if (-4..6).contains(&digit) {
            // Adding 0 takes the sign of a zero away.
            return format!("{:.*}", usize::try_from(-digit).unwrap_or(0), tick + 0.0);
        }
        if tick.abs() < self.step / 2.0 { "0".to_owned() } else { format!("{tick:.1e}").replace(".0e", "e") }
    }
}

/// The smallest of 1, 2, 5 with a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    if !least.is_finite() || least <= f64::MIN_POSITIVE {
        return 1.0;
    }
    let unit = power_of_ten(exponent(least));
    [1.0, 2.0, 5.0].map(|factor| factor * unit).into_iter().find(|step| *step >= least).unwrap_or(10.0 * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: Axis) -> Vec<String> {
        axis.ticks().map(|tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_hold_the_values() {
        assert_eq!(labels(Axis::from_zero(0.75)), ["0.0", "0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(labels(Axis::from_zero(7.1)), ["0", "2", "4", "6", "8"]);
        assert_eq!(labels(Axis::from_zero(100.0)), ["0", "50", "100"]);
        assert_eq!(labels(Axis::from_zero(3.2e-8)), ["0", "1e-8", "2e-8", "3e-8", "4e-8"]);
        assert_eq!(labels(Axis::around(18.87, 18.95, 4.0)), ["16", "17", "18", "19", "20", "21"]);
        assert_eq!(labels(Axis::around(0.5, 1.0, 4.0)), ["0", "1", "2", "3"]);
        assert_eq!(labels(Axis::around(-3.0, 150.0, 4.0)), ["-50", "0", "50", "100", "150"]);
    }

    #[test]
    fn positions_run_from_end_to_end() {
        let axis = Axis::around(18.0, 20.0, 4.0);
        assert_eq!([16.0, 17.0, 21.0, 1e9, -1e9].map(|value| axis.position(value)), [0.0, 0.0, 1.0, 1.0, 0.0].map(|end: f64| end));
    }

    #[test]
    fn an_axis_without_values_has_one_step() {
        for axis in [Axis::from_zero(0.0), Axis::from_zero(1e-320), Axis::from_zero(f64::INFINITY)] {
            assert!(axis.ticks().all(f64::is_finite), "{axis:?}");
        }
    }
}
