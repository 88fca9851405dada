//! `ft render` against openai-harmony, token for token, and `tokenizer.json` against transformers.

use std::fs;

use ft_tests::program::{ft, peer, succeed};
use ft_tests::scratch::Scratch;
use serde_json::Value;

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:.200}"))
}

#[test]
fn ids_and_weights_equal_those_of_openai_harmony() {
    let scratch = Scratch::new("harmony");
    let model = scratch.join("model");
    let sizes = [
        "hidden_size=32",
        "intermediate_size=32",
        "num_hidden_layers=2",
        "num_attention_heads=4",
        "num_key_value_heads=2",
        "head_dim=16",
        "num_local_experts=4",
        "num_experts_per_tok=2",
    ];
    let mut init = ft(["init", "--preset", "nano"]);
    succeed(init.arg(&model).args(sizes.iter().flat_map(|size| ["--set", size])));
    succeed(&mut peer("harmony.py", [&model, &scratch.join("cases")]));
    for (name, fewest) in [("conversations", 170), ("texts", 200)] {
        let lines = scratch.join("cases").join(format!("{name}.jsonl"));
        let expected = fs::read_to_string(lines.with_extension("expected.json")).expect("the peer wrote it");
        let expected = read(&expected);
        let expected = expected.as_array().expect("a list");
        assert!(expected.len() >= fewest, "{} {name} only", expected.len());
        let said = read(&succeed(ft(["render", "--tokens", "--training", "--json"]).arg(&lines)));
        let rendered = said["conversations"].as_array().expect("a list");
        assert_eq!(rendered.len(), expected.len());
        for (found, expected) in rendered.iter().zip(expected) {
            assert_eq!(found["ids"], expected["ids"], "ids of {}", expected["name"]);
            let weights = |value: &Value| value["weights"].as_array().map(|all| all.iter().map(Value::as_f64).collect::<Vec<_>>());
            assert_eq!(weights(found), weights(expected), "weights of {}", expected["name"]);
        }
        eprintln!("{} {name}: every id and weight equal", rendered.len());
    }
}
