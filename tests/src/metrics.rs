//! Reading `metrics.jsonl`.

use std::path::Path;

use serde_json::Value;

/// A line of a training step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Counted from 1.
    pub step: u64,
    /// Weighted mean over the step's tokens, before its update.
    pub loss: f64,
    /// Before clipping.
    pub gradient_norm: f64,
}

/// Every training step in a run's `metrics.jsonl`, in order; evaluations are left out.
///
/// # Panics
/// When the file is missing or a line of it is not what the contract says.
#[must_use]
pub fn steps(run: &Path) -> Vec<Step> {
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap_or_else(|| panic!("`{key}` is missing in {line}"));
    lines(run)
        .iter()
        .filter(|line| line.get("loss").is_some())
        .map(|line| Step {
            step: line["step"].as_u64().unwrap_or_else(|| panic!("`step` is missing in {line}")),
            loss: number(line, "loss"),
            gradient_norm: number(line, "gradient_norm"),
        })
        .collect()
}

/// Every line of a run's `metrics.jsonl`.
///
/// # Panics
/// When the file is missing or a line of it is not JSON.
#[must_use]
pub fn lines(run: &Path) -> Vec<Value> {
    let path = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// The lines of a run without what no two runs share: times, speeds and memory.
///
/// # Panics
/// As [`lines`].
#[must_use]
pub fn repeatable(run: &Path) -> Vec<Value> {
    let mut lines = lines(run);
    for line in &mut lines {
        if let Value::Object(fields) = line {
            fields.retain(|key, _| !["second", "memory", "utilization"].iter().any(|word| key.contains(word)));
        }
    }
    lines
}
