//! `ft eval` against transformers and numpy, against itself, and what it says when something is wrong.

use std::fs;
use std::path::Path;

use ft_tests::conversations::jsonl;
use ft_tests::program::{Said, ft, peer, run, succeed};
use ft_tests::scratch::Scratch;
use ft_tests::tensors;
use serde_json::{Value, json};

/// How far a figure may be from the peer's, relative. f32 rounds a logit of 15 to 1e-6, and matrix products of a few hundred terms to ten
/// times that, which is what a probability is then off by; the rest is room.
const BAR: f64 = 1e-4;

/// A figure below this may be off by it.
const SMALLEST: f64 = 1e-8;

/// The change of a probability is a difference of two, each off by [`BAR`] over ten of at most 1.
const SMALLEST_CHANGE: f64 = 1e-5;

/// Conversations of every channel, one of which makes two samples, and one with weights of its own.
fn data() -> Vec<Value> {
    let user = |text: &str| json!({"role": "user", "content": text});
    let thought = |thinking: &str, text: &str| json!({"role": "assistant", "thinking": thinking, "content": text});
    vec![
        json!({"messages": [user("What is 2+2?"), thought("Easy.", "It is 4.")]}),
        json!({"messages": [
            user("And 3+3?"), thought("Add them.", "6"), user("Thanks, that helps."), thought("Be polite.", "You are welcome."),
        ]}),
        json!({"text": "fn main() { println!(\"plain text\"); }"}),
        json!({"messages": [
            user("How is the weather in Oslo?"),
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}]},
            {"role": "tool", "name": "weather", "content": "rain"},
            {"role": "assistant", "content": "It rains in Oslo."},
        ]}),
        json!({"messages": [
            user("Count to three."), {"role": "assistant", "content": "one two three", "weight": 0},
            user("Further."), {"role": "assistant", "content": "four five six", "weight": 0.25},
        ]}),
    ]
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:.200}"))
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number at {path} in {value}"))
}

/// `ft eval --json` of `model` against `reference`.
fn evaluated(model: &Path, reference: &Path, data: &Path) -> Value {
    parse(&succeed(ft(["eval", "--json"]).arg(model).arg("--reference").arg(reference).arg("--data").arg(data)))
}

/// How much of what is allowed a figure differs by, and where it stands.
type Difference = (f64, String);

/// Every figure of `expected` against the one in `found`.
fn differences(path: &str, found: &Value, expected: &Value) -> Vec<Difference> {
    match expected {
        Value::Object(fields) => fields.iter().flat_map(|(key, each)| differences(&format!("{path}/{key}"), &found[key], each)).collect(),
        Value::Array(items) => {
            assert_eq!(found.as_array().map(Vec::len), Some(items.len()), "{path}");
            items.iter().enumerate().flat_map(|(index, each)| differences(&format!("{path}/{index}"), &found[index], each)).collect()
        }
        Value::Number(_) => {
            let (found, expected) = (number(found, ""), number(expected, ""));
            let smallest = if path.contains("probability_change") { SMALLEST_CHANGE } else { SMALLEST };
            let share = (found - expected).abs() / (BAR * expected.abs() + smallest);
            vec![(share, format!("{path}: {found} instead of {expected}"))]
        }
        _ => {
            assert_eq!(found, expected, "{path}");
            Vec::new()
        }
    }
}

#[test]
fn figures_equal_those_of_transformers_and_numpy() {
    let scratch = Scratch::new("eval");
    let conversations = data();
    let file = scratch.write("data.jsonl", jsonl(&conversations));
    let samples = scratch.write("samples.json", succeed(ft(["preview", "--json", "--limit", "100"]).arg(&file)));
    let out = scratch.join("peer");
    succeed(peer("eval.py", [&out, &samples]).env("OMP_NUM_THREADS", "2"));
    let [model, reference, same] = ["model", "reference", "same"].map(|name| out.join(name));
    let expected = parse(&fs::read_to_string(out.join("expected.json")).expect("the peer writes its figures"));

    let found = evaluated(&model, &reference, &file);
    let mut differences = differences("", &found, &expected);
    differences.sort_by(|left, right| right.0.total_cmp(&left.0));
    let (worst, place) = &differences[0];
    eprintln!("{} figures, each within {:.0}% of what is allowed; the furthest is {place}", differences.len(), worst * 100.0);
    let failures: Vec<_> = differences.iter().filter(|(share, _)| *share > 1.0).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(found["version"], 1);
    assert_eq!(found["dataset"]["samples"], 6);
    let accuracy = number(&found, "/token_accuracy");
    assert!((0.1..0.9).contains(&accuracy), "accuracy {accuracy}: the comparison would prove little");

    // Alone, the same figures of the model.
    let alone = parse(&succeed(ft(["eval", "--json"]).arg(&model).arg("--data").arg(&file)));
    assert_eq!(alone["comparison"], Value::Null);
    for figure in ["loss", "perplexity", "token_accuracy", "loss_standard_error"] {
        assert_eq!(alone[figure], found[figure], "{figure} without a reference");
    }

    conversation_by_conversation(&scratch, &conversations, &found, [&model, &reference]);
    equal_weights_are_equal(&file, &reference, &same);
    bound_and_report(&scratch, &file, [&model, &reference], number(&found, "/comparison/kl_divergence/mean"));
}

/// What is packed into one forward pass has the figures that each conversation has alone.
fn conversation_by_conversation(scratch: &Scratch, conversations: &[Value], whole: &Value, [model, reference]: [&Path; 2]) {
    let mut sums = [0.0; 4];
    let figures =
        ["/loss", "/comparison/kl_divergence/mean", "/comparison/reference_prediction/loss", "/comparison/router/agreement_fraction"];
    let (mut count, mut largest) = (0.0, 0.0_f64);
    for conversation in conversations {
        let file = scratch.write("one.jsonl", jsonl(std::slice::from_ref(conversation)));
        let found = evaluated(model, reference, &file);
        let tokens = number(&found, "/counted_tokens");
        count += tokens;
        largest = largest.max(number(&found, "/comparison/kl_divergence/maximum"));
        for (sum, figure) in sums.iter_mut().zip(figures) {
            *sum += tokens * number(&found, figure);
        }
    }
    let is_close = |found: f64, expected: f64| (found - expected).abs() <= BAR * expected;
    assert!(is_close(count, number(whole, "/counted_tokens")));
    assert!(is_close(largest, number(whole, "/comparison/kl_divergence/maximum")));
    for (sum, figure) in sums.into_iter().zip(figures) {
        let (mean, expected) = (sum / count, number(whole, figure));
        eprintln!("{figure}: {:.1e} apart, packed and alone", (mean - expected).abs() / expected);
        assert!(is_close(mean, expected), "{figure}: {mean} conversation by conversation, {expected} at once");
    }
}

/// A model against itself, and MXFP4 experts against the same weights in bf16.
fn equal_weights_are_equal(file: &Path, reference: &Path, same: &Path) {
    for model in [reference, same] {
        for dtype in ["f32", "bf16"] {
            let mut command = ft(["eval", "--json", "--fail-above-kl", "0", "--dtype", dtype]);
            let found = parse(&succeed(command.arg(model).arg("--reference").arg(reference).arg("--data").arg(file)));
            for (figure, expected) in [
                ("/comparison/kl_divergence/maximum", 0.0),
                ("/comparison/probability_change/rms", 0.0),
                ("/comparison/same_top_fraction", 1.0),
                ("/comparison/perplexity_ratio", 1.0),
                ("/comparison/log_probability_correlation", 1.0),
                ("/comparison/router/same_set_fraction", 1.0),
            ] {
                let found = number(&found, figure);
                assert!((found - expected).abs() <= 1e-12, "{figure} of {} in {dtype}: {found}", model.display());
            }
        }
    }
}

/// A report is published within the bound, and only there.
fn bound_and_report(scratch: &Scratch, file: &Path, [model, reference]: [&Path; 2], mean: f64) {
    let report = scratch.join("report.json");
    let bounded = |bound: f64| {
        let mut command = ft(["eval", "--json", "--fail-above-kl", &bound.to_string()]);
        run(command.arg(model).arg("--reference").arg(reference).arg("--data").arg(file).arg("--report").arg(&report))
    };
    let failed = bounded(mean * 0.99);
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    for word in [mean.to_string(), (mean * 0.99).to_string(), "error: ".to_owned(), "hint: ".to_owned()] {
        assert!(failed.stderr.contains(&word), "nothing about {word} in {}", failed.stderr);
    }
    assert_eq!(number(&parse(&failed.stdout), "/comparison/kl_divergence/mean"), mean, "the figures are printed all the same");
    assert!(!report.exists() && !scratch.join("report.json.partial").exists(), "a report was left");
    let passed = bounded(mean * 1.01);
    assert_eq!(passed.code, Some(0), "{}", passed.stderr);
    assert_eq!(fs::read_to_string(&report).expect("the report is there"), passed.stdout);
}

/// Makes a small model with the given changes.
fn make_model(path: &Path, changes: &[&str]) {
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
    let settings = sizes.iter().chain(changes).flat_map(|size| ["--set", size]);
    succeed(ft(["init", "--preset", "nano"]).arg(path).args(settings));
}

#[test]
fn an_adapter_is_evaluated_head_included() {
    let scratch = Scratch::new("eval-adapter");
    let model = scratch.join("model");
    make_model(&model, &["initializer_range=0.2"]);
    let file = scratch.write("data.jsonl", jsonl(&data()[..2]));
    let recipe = format!(
        "[model]\npath = \"{folder}/model\"\n\n[dataset]\ntrain = [\"{folder}/data.jsonl\"]\n\n[lora]\nrank = 4\n\
         targets = [\"attention\", \"experts\", \"router\", \"lm_head\"]\n\n[optimizer]\nlearning_rate = 3e-2\n\n\
         [training]\nsteps = 5\ndtype = \"f32\"\n\n[output]\ndirectory = \"{folder}/runs\"\nname = \"run\"\n",
        folder = scratch.display()
    );
    succeed(ft(["train"]).arg(scratch.write("recipe.toml", recipe)));
    let adapter = scratch.join("runs/run/adapter");
    let mut command = ft(["eval", "--json"]);
    command.arg(&model).arg("--adapter").arg(&adapter).arg("--reference").arg(&model).arg("--data").arg(&file);
    let found = parse(&succeed(&mut command));

    // The same divergence from the logits of both.
    let samples = parse(&succeed(ft(["preview", "--json", "--limit", "100"]).arg(&file)));
    let samples = samples["samples"].as_array().expect("a list");
    let ids: Vec<&Value> = samples.iter().map(|sample| &sample["ids"]).collect();
    let tokens = scratch.write("tokens.json", json!(ids).to_string());
    let logits = |name: &str, adapter: &[&Path]| {
        let output = scratch.join(name);
        let mut command = ft(["logits"]);
        command.arg(&model).arg("--tokens").arg(&tokens).arg("--output").arg(&output);
        command.args(adapter.iter().flat_map(|path| [Path::new("--adapter"), path]));
        succeed(&mut command);
        tensors::read(&output)
    };
    let (bare, adapted) = (logits("bare", &[]), logits("adapted", &[&adapter]));
    let (mut sum, mut count) = (0.0, 0.0);
    for (index, sample) in samples.iter().enumerate() {
        let name = format!("logits.{index}");
        let vocabulary = bare[&name].shape[1];
        for (place, weight) in sample["weights"].as_array().expect("weights").iter().enumerate() {
            if weight.as_f64() != Some(0.0) {
                let row = (place - 1) * vocabulary..place * vocabulary;
                sum += divergence(&bare[&name].values[row.clone()], &adapted[&name].values[row]);
                count += 1.0;
            }
        }
    }
    let (mean, expected) = (number(&found, "/comparison/kl_divergence/mean"), sum / count);
    assert!(expected > 0.01, "the adapter changes little: {expected}");
    assert!((mean - expected).abs() <= BAR * expected, "mean KL {mean} instead of {expected}");
    assert!(number(&found, "/loss") < number(&found, "/comparison/reference_prediction/loss"), "training has helped");
    eprintln!("an adapter's mean KL {mean}, {:.1e} from that of its logits", (mean - expected).abs() / expected);
}

/// KL(p || q) of the distributions of two rows of logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    let (log_p, log_q) = (log_sum(p), log_sum(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - log_p, f64::from(q) - log_q);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(term).sum()
}

#[test]
fn what_is_wrong_is_said_before_the_work() {
    let scratch = Scratch::new("eval-errors");
    let model = scratch.join("model");
    for (name, changes) in [
        ("model", &[][..]),
        ("other_experts", &["num_local_experts=6"]),
        ("small_vocabulary", &["vocab_size=300"]),
        ("overflowing", &["initializer_range=1e30"]),
    ] {
        make_model(&scratch.join(name), changes);
    }
    let file = scratch.write("data.jsonl", jsonl(&data()[..1]));
    let empty = scratch.write("empty.jsonl", "");
    let silent = scratch.write("silent.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"Anybody?\"}]}\n");
    let eval = |model: &str, data: &Path, more: &[&str]| {
        let mut command = ft(["eval"]);
        run(command.arg(scratch.join(model)).arg("--data").arg(data).args(more).current_dir(&*scratch))
    };
    let reference = ["--reference", "model"];
    let bounded = |bound: &str| eval("model", &file, &[&reference[..], &["--fail-above-kl", bound]].concat());

    let cases: [(&str, Said, &[&str]); 14] = [
        ("a model that is not there", eval("absent", &file, &[]), &["absent", "hint: "]),
        ("a reference that is not there", eval("model", &file, &["--reference", "absent"]), &["absent", "hint: "]),
        ("an adapter that is not there", eval("model", &file, &["--adapter", "absent"]), &["absent", "hint: "]),
        ("data that is not there", eval("model", Path::new("absent.jsonl"), &[]), &["absent.jsonl", "hint: "]),
        ("empty data", eval("model", &empty, &[]), &["empty.jsonl", "no conversation", "hint: "]),
        ("nothing that the assistant says", eval("model", &silent, &[]), &["silent.jsonl:1", "no assistant message", "hint: "]),
        ("nothing left", eval("model", &file, &["--max-tokens", "20"]), &["first 20 tokens", "--max-tokens", "hint: "]),
        ("another vocabulary", eval("small_vocabulary", &file, &reference), &["small_vocabulary", "300", "201088", "hint: "]),
        ("a small vocabulary", eval("small_vocabulary", &file, &[]), &["200006", "300", "hint: "]),
        ("logits that are no numbers", eval("overflowing", &file, &[]), &["overflowing", "not a finite number", "data.jsonl:1", "hint: "]),
        ("a report that cannot be written", eval("model", &file, &["--report", "absent/report.json"]), &["absent/report.json", "hint: "]),
        ("a bound without a reference", eval("model", &file, &["--fail-above-kl", "1"]), &["--reference"]),
        ("a negative bound", bounded("-0.5"), &["--fail-above-kl", "-0.5", "not negative"]),
        ("a bound that is no number", bounded("NaN"), &["--fail-above-kl", "NaN", "not negative"]),
    ];
    let mut complaints = Vec::new();
    for (name, said, words) in &cases {
        let missing: Vec<_> = words.iter().filter(|word| !said.stderr.contains(**word)).collect();
        if said.code != Some(1) || !said.stdout.is_empty() || !missing.is_empty() || !said.stderr.contains("error: ") {
            complaints.push(format!("{name}: code {:?}, missing {missing:?}\n{}{}", said.code, said.stdout, said.stderr));
        }
    }
    assert!(complaints.is_empty(), "{} of {}\n\n{}", complaints.len(), cases.len(), complaints.join("\n"));

    // Other experts are no reason to fail: the distributions can be compared, the routers cannot.
    let said = eval("other_experts", &file, &reference);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("the routers are not compared: the reference has 4 experts of a layer, the model 6"), "{}", said.stdout);
    let cut = eval("model", &file, &["--max-tokens", "75", "--limit", "1"]);
    assert!(cut.stderr.contains("warning: 1 sample cut at --max-tokens"), "{}", cut.stderr);
    assert!(model.is_dir());
}
