//! JSON values as the text that the model reads.

use serde_json::Value;

/// `value` without blanks, as openai-harmony writes it: keys in their order, and no sign before a positive exponent (`1e20`).
///
/// Source: openai-harmony 0.0.8, whose serde_json writes floats by ryu; behaviour compared by running it.
#[must_use]
pub fn json_text(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string().replace("e+", "e"),
        Value::Array(items) => format!("[{}]", items.iter().map(json_text).collect::<Vec<_>>().join(",")),
        Value::Object(entries) => {
            let entry = |(key, value): (&String, &Value)| format!("{}:{}", Value::from(key.as_str()), json_text(value));
            format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn rewritten(text: &str) -> String {
        json_text(&serde_json::from_str(text).unwrap())
    }

    /// Expected text printed by openai-harmony 0.0.8 as the default of a number.
    #[test]
    fn numbers_are_written_as_by_openai_harmony() {
        for (number, expected) in [
            ("1e15", "1000000000000000.0"),
            ("9.9e15", "9900000000000000.0"),
            ("1e16", "1e16"),
            ("123456789012345680.0", "1.2345678901234568e17"),
            ("18446744073709551616", "1.8446744073709552e19"),
            ("100000000000000000000", "1e20"),
            ("-1e20", "-1e20"),
            ("1.5e+300", "1.5e300"),
            ("1.7976931348623157e308", "1.7976931348623157e308"),
            ("1e-5", "0.00001"),
            ("1e-6", "1e-6"),
            ("2.5e-8", "2.5e-8"),
            ("5e-324", "5e-324"),
            ("-0.0", "-0.0"),
        ] {
            assert_eq!(rewritten(number), expected, "{number}");
        }
        assert_eq!(rewritten(r#"{"x": [1e20, "1e+20"], "e+": {"y": null}}"#), r#"{"x":[1e20,"1e+20"],"e+":{"y":null}}"#);
    }

    fn values() -> impl Strategy<Value = Value> {
        let float = any::<f64>().prop_filter("JSON has no other", |value| value.is_finite());
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            float.prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec((any::<String>(), inner), 0..6).prop_map(|entries| entries.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_reads_back(value in values()) {
            prop_assert_eq!(serde_json::from_str::<Value>(&json_text(&value)).unwrap(), value);
        }
    }

    #[test]
    fn blanks_are_left_out_and_text_is_escaped() {
        let value = json!({"b": [], "a": {"quote\"": "line\nend", "u": "\u{1}é"}, "n": [1, true]});
        assert_eq!(json_text(&value), value.to_string());
    }
}
