use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::data::DatasetOptions;
use crate::data::columns::Columns;
use crate::data::options::{Overlong, SampleOptions};

fn options(max_tokens: usize, overlong: Overlong) -> DatasetOptions {
    DatasetOptions { cache: None, columns: Columns::default(), samples: SampleOptions::default(), max_tokens, overlong }
}

fn load(lines: &[Value], options: &DatasetOptions) -> Result<Dataset, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    load_dataset(&[path.to_string_lossy().into_owned()], options, &mut |_| {})
}

fn lines() -> Vec<Value> {
    vec![
        json!({"prompt": "Q", "completion": "A", "id": 1}),
        json!({"text": "word ".repeat(300)}),
        json!({"prompt": "long ".repeat(300), "completion": "A", "id": 2}),
    ]
}

#[test]
fn an_overlong_sample_is_refused_with_its_place() {
    let error = load(&lines(), &options(200, Overlong::Error)).unwrap_err();
    assert!(error.to_string().contains("d.jsonl:2: sample of 302 tokens is longer than `dataset.max_tokens` = 200"), "{error}");
}

#[test]
fn overlong_samples_are_cut_while_something_is_trained() {
    let dataset = load(&lines(), &options(200, Overlong::Truncate)).unwrap();
    let statistics = &dataset.statistics;
    assert_eq!(dataset.lengths()[1], 200);
    assert_eq!((statistics.samples, statistics.truncated, statistics.dropped), (2, 1, 1));
    assert_eq!(statistics.trained.text, 199);
    assert_eq!(statistics.conversations, 3);
    assert_eq!(statistics.ignored_keys["id"], 2);
}

#[test]
fn overlong_samples_are_dropped_and_counted() {
    let dataset = load(&lines(), &options(200, Overlong::Drop)).unwrap();
    assert_eq!((dataset.statistics.samples, dataset.statistics.dropped), (1, 2));
    assert!(matches!(load(&lines(), &options(10, Overlong::Drop)), Err(DataError::AllDropped { dropped: 3, .. })));
}

#[test]
fn statistics_are_those_of_the_samples() {
    let dataset = load(&lines(), &options(4096, Overlong::Error)).unwrap();
    let weighted = |sample: &Sample| sample.weights.iter().filter(|weight| **weight != 0.0).count();
    assert_eq!(dataset.statistics.trained.total(), dataset.iter().map(|sample| weighted(&sample)).sum::<usize>());
    assert_eq!(dataset.statistics.tokens, dataset.lengths().iter().sum::<usize>());
    assert_eq!(dataset.statistics.lengths.buckets.iter().map(|(_, count)| count).sum::<usize>(), 3);
}

#[test]
fn the_fingerprint_is_of_ids_and_weights() {
    let all = options(4096, Overlong::Error);
    let first = load(&lines(), &all).unwrap().fingerprint();
    assert_eq!(first, load(&lines(), &all).unwrap().fingerprint());
    let mut samples: Vec<Sample> = load(&lines(), &all).unwrap().iter().collect();
    assert_eq!(first, Dataset::of_samples(samples.clone()).unwrap().fingerprint());
    let start = samples[0].spans[0].tokens.start;
    samples[0].spans[0].tokens.end = start + 1;
    samples[0].weights[start] = 0.5;
    assert_ne!(first, Dataset::of_samples(samples).unwrap().fingerprint());
}

#[test]
fn validation_takes_whole_conversations() {
    let turns = |index: usize| {
        json!({"messages": [
            {"role": "user", "content": format!("Q{index}")}, {"role": "assistant", "thinking": "T", "content": "A"},
            {"role": "user", "content": "R"}, {"role": "assistant", "thinking": "T", "content": "B"},
        ]})
    };
    let lines: Vec<Value> = (0..20).map(turns).collect();
    let dataset = load(&lines, &options(4096, Overlong::Error)).unwrap();
    let (training, validation) = split_validation(dataset.clone(), 0.25, 1);
    assert_eq!((training.len(), validation.len()), (30, 10));
    assert_eq!((training.statistics.conversations, validation.statistics.conversations), (15, 5));
    assert_ne!(validation.fingerprint(), split_validation(dataset.clone(), 0.25, 2).1.fingerprint());
    assert_eq!(split_validation(dataset.clone(), 0.001, 1).1.statistics.conversations, 1);
    assert!(split_validation(dataset, 0.0, 1).1.is_empty());
}

fn pair(prompt: &str, completion: &str) -> Value {
    json!({"prompt": prompt, "completion": completion})
}

#[test]
fn duplicates_are_named_with_what_they_repeat() {
    let lines = [pair("Q", "A"), pair("Q", "B"), pair("Q", "A"), json!({"text": "T"}), pair("Q", "A")];
    let duplicates = load(&lines, &options(4096, Overlong::Error)).unwrap().statistics.duplicates;
    assert_eq!(duplicates.count, 2);
    let lines: Vec<(&str, &str)> =
        duplicates.examples.iter().map(|(first, second)| (first.rsplit(':').next().unwrap(), second.rsplit(':').next().unwrap())).collect();
    assert_eq!(lines, [("1", "3"), ("1", "5")]);
}

#[test]
fn what_is_held_out_and_trained_on_is_found() {
    let all = options(4096, Overlong::Error);
    let train = load(&[pair("Q", "A"), pair("R", "A"), json!({"text": "T"})], &all).unwrap();
    let validation = load(&[pair("S", "A"), pair("R", "B"), pair("Q", "A"), json!({"text": "U"})], &all).unwrap();
    let leaks = train.leaks_into(&validation);
    assert_eq!((leaks.conversations.count, leaks.prompts.count), (1, 1));
    assert!(leaks.conversations.examples[0].1.ends_with(":3"), "{leaks:?}");
    assert!(leaks.prompts.examples[0].1.ends_with(":2"), "{leaks:?}");
}

#[test]
fn every_token_is_said_by_someone() {
    let line = json!({"messages": [
        {"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
        {"role": "assistant", "thinking": "T", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "R"}, {"role": "assistant", "content": "A"},
    ]});
    for max_tokens in [4096, 120] {
        let dataset = load(std::slice::from_ref(&line), &options(max_tokens, Overlong::Truncate)).unwrap();
        let spoken = dataset.statistics.spoken.named();
        assert_eq!(spoken.iter().map(|(_, count)| count).sum::<usize>(), dataset.statistics.tokens);
        assert!(spoken.iter().take(3).all(|(_, count)| *count > 0), "{spoken:?}");
    }
}
