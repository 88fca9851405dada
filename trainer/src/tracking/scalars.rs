//! The numbers of a record, under the names that trackers show.

use serde_json::{Map, Value};

/// Name and value of every number in `metrics`, under the names of `metrics.jsonl`. A list is one of layers: its numbers are named
/// `name/layer_00` and so on; of a list of lists, which is one number for each expert, the largest and the smallest.
pub(super) fn scalars(metrics: &Map<String, Value>) -> Vec<(String, f64)> {
    let mut all = Vec::new();
    for (name, value) in metrics.iter().filter(|(name, _)| *name != "step") {
        match value {
            Value::Number(_) => push(&mut all, name.clone(), value.as_f64()),
            Value::Array(layers) => {
                for (layer, value) in layers.iter().enumerate() {
                    match value {
                        Value::Array(experts) => {
                            let loads = || experts.iter().filter_map(Value::as_f64);
                            push(&mut all, format!("{name}_max/layer_{layer:02}"), loads().reduce(f64::max));
                            push(&mut all, format!("{name}_min/layer_{layer:02}"), loads().reduce(f64::min));
                        }
                        _ => push(&mut all, format!("{name}/layer_{layer:02}"), value.as_f64()),
                    }
                }
            }
            _ => {}
        }
    }
    all
}

fn push(all: &mut Vec<(String, f64)>, name: String, value: Option<f64>) {
    all.extend(value.map(|value| (name, value)));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_number_has_a_name() {
        let Value::Object(metrics) = json!({
            "step": 3, "loss": 1.5, "tokens": 20, "router_entropy": [0.5, 0.25], "expert_load": [[0.5, 1.0, 0.75], [1.0, 0.0, 0.5]], "note": "x",
        }) else {
            unreachable!()
        };
        let expected = [
            ("loss", 1.5),
            ("tokens", 20.0),
            ("router_entropy/layer_00", 0.5),
            ("router_entropy/layer_01", 0.25),
            ("expert_load_max/layer_00", 1.0),
            ("expert_load_min/layer_00", 0.5),
            ("expert_load_max/layer_01", 1.0),
            ("expert_load_min/layer_01", 0.0),
        ];
        assert_eq!(scalars(&metrics), expected.map(|(name, value)| (name.to_owned(), value)));
    }
}
