//! Records as rows of a history: one for each step, whatever records it has.

use serde_json::{Map, Value, json};

use super::super::journal::Entry;
use super::super::scalars::scalars;

/// What is known of one step.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::tracking) struct Row {
    pub(in crate::tracking) step: u64,
    /// Metrics, and `_step`, `_timestamp` and `_runtime` (seconds).
    pub(in crate::tracking) values: Map<String, Value>,
}

/// Collects records into rows.
#[derive(Debug)]
pub(in crate::tracking) struct Rows {
    started: f64,
    open: Option<Row>,
    /// The newest value of each metric.
    summary: Map<String, Value>,
}

impl Rows {
    /// Of a run that began at `started`, in seconds since 1970.
    pub(in crate::tracking) fn new(started: f64) -> Self {
        Self { started, open: None, summary: Map::new() }
    }

    /// Adds a record; gives the row before it when that is complete.
    pub(in crate::tracking) fn add(&mut self, entry: &Entry) -> Option<Row> {
        let step = entry.step();
        let complete = self.open.take_if(|row| row.step != step);
        let row = self.open.get_or_insert_with(|| Row { step, values: Map::new() });
        row.values.extend(scalars(&entry.metrics).into_iter().map(|(name, value)| (name, json!(value))));
        let times = [("_step", json!(step)), ("_timestamp", json!(entry.time)), ("_runtime", json!((entry.time - self.started).max(0.0)))];
        row.values.extend(times.map(|(name, value)| (name.to_owned(), value)));
        self.summary.extend(row.values.clone());
        complete
    }

    /// The last row.
    pub(in crate::tracking) fn finish(&mut self) -> Option<Row> {
        self.open.take()
    }

    /// The newest value of each metric.
    pub(in crate::tracking) fn summary(&self) -> &Map<String, Value> {
        &self.summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(time: f64, metrics: Value) -> Entry {
        let Value::Object(metrics) = metrics else { unreachable!() };
        Entry { time, metrics }
    }

    #[test]
    fn records_of_one_step_are_one_row() {
        let mut rows = Rows::new(100.0);
        assert_eq!(rows.add(&entry(101.0, json!({"step": 1, "loss": 2.0}))), None);
        assert_eq!(rows.add(&entry(102.0, json!({"step": 1, "validation_loss": 3.0}))), None);
        let first = rows.add(&entry(103.0, json!({"step": 2, "loss": 1.0}))).unwrap();
        let expected = json!({"loss": 2.0, "_step": 1, "_timestamp": 102.0, "_runtime": 2.0, "validation_loss": 3.0});
        assert_eq!(Value::Object(first.values), expected);
        assert_eq!(rows.finish().map(|row| row.step), Some(2));
        assert_eq!(rows.summary()["loss"], 1.0);
        assert_eq!(rows.summary()["validation_loss"], 3.0);
    }
}
