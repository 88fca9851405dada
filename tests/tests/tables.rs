//! Every kind of file that pyarrow writes gives the tokens and weights of the same conversations as JSONL.

use std::fs;
use std::path::Path;

use ft_tests::conversations::{conversations, jsonl};
use ft_tests::program::{ft, peer, run, succeed};
use ft_tests::scratch::Scratch;
use serde_json::Value;

/// Ids, weights and texts of a file's conversations.
fn rendered(path: &Path) -> Value {
    let said = succeed(ft(["render", "--tokens", "--training", "--json"]).arg(path));
    let mut rendered: Value = serde_json::from_str(&said).expect("ft prints JSON");
    rendered["conversations"].take()
}

/// The conversations as each kind of file, with the names of the files.
fn tables(scratch: &Scratch) -> Vec<String> {
    fs::write(scratch.join("d.jsonl"), jsonl(&conversations(150))).expect("the scratch folder takes a file");
    fs::create_dir(scratch.join("tables")).expect("the scratch folder takes a folder");
    let names = succeed(&mut peer("tables.py", [scratch.join("d.jsonl"), scratch.join("tables")]));
    names.lines().map(str::to_owned).collect()
}

#[test]
fn every_file_of_pyarrow_gives_the_tokens_of_the_lines() {
    let scratch = Scratch::new("tables");
    let names = tables(&scratch);
    let expected = rendered(&scratch.join("d.jsonl"));
    assert_eq!(expected.as_array().map(Vec::len), Some(150));
    assert!(names.len() > 25, "{names:?}");
    for name in &names {
        assert_eq!(rendered(&scratch.join("tables").join(name)), expected, "{name}");
    }
}

#[test]
fn a_recipe_trains_on_tables_and_packed_lines() {
    let scratch = Scratch::new("table-recipe");
    tables(&scratch);
    let folder = scratch.join("tables");
    let recipe = scratch.join("r.toml");
    let sources = ["snappy-1.0.parquet", "stream-None.arrow", "lines.jsonl.gz"].map(|name| folder.join(name));
    fs::write(&recipe, format!("[model]\npath = \"m\"\n[dataset]\ntrain = {sources:?}\n")).expect("the scratch folder takes a file");
    let said = succeed(ft(["preview", "--limit", "0", "--json"]).arg(&recipe));
    let preview: Value = serde_json::from_str(&said).expect("ft prints JSON");
    assert_eq!(preview["statistics"]["conversations"], 450);
    // The column that nobody asks for is not read.
    assert_eq!(preview["statistics"]["ignored_keys"], serde_json::json!({}));
}

#[test]
fn broken_tables_are_the_users_error() {
    let scratch = Scratch::new("broken-tables");
    tables(&scratch);
    let folder = scratch.join("tables");
    for (name, expected) in [
        ("snappy-1.0.parquet", "as Parquet"),
        ("stream-None.arrow", "as Arrow IPC"),
        ("file-zstd.arrow", "as Arrow IPC"),
        ("lines.jsonl.gz", "as gzip"),
        ("lines.jsonl.zst", "as zstd"),
    ] {
        let path = folder.join(name);
        let bytes = fs::read(&path).expect("the file was written");
        fs::write(&path, &bytes[..bytes.len() * 2 / 3]).expect("the file can be written");
        let said = run(ft(["preview", "--limit", "0"]).arg(&path));
        assert_eq!(said.code, Some(1), "{name}: {}", said.stderr);
        assert!(said.stderr.contains(expected) && said.stderr.contains(name), "{name}: {}", said.stderr);
    }
}

#[test]
fn columns_of_another_name_are_mapped() {
    let scratch = Scratch::new("columns");
    let path = scratch.join("d.jsonl");
    fs::write(&path, "{\"question\": \"Q\", \"answer\": \"A\", \"note\": 1}\n").expect("the scratch folder takes a file");
    let recipe = |columns: &str| {
        let recipe = scratch.join("r.toml");
        fs::write(&recipe, format!("[model]\npath = \"m\"\n[dataset]\ntrain = [{path:?}]\n[dataset.columns]\n{columns}")).expect("a file");
        recipe
    };
    let said = succeed(ft(["preview", "--limit", "1"]).arg(recipe("prompt = \"question\"\ncompletion = \"answer\"\n")));
    assert!(said.contains("shape `prompt/completion`"), "{said}");
    let said = run(ft(["preview"]).arg(recipe("prompt = \"question\"\ncompletion = \"anwser\"\n")));
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("no column `anwser`, which `dataset.columns.completion` names"), "{}", said.stderr);
    assert!(said.stderr.contains("`answer`"), "{}", said.stderr);
    let said = run(ft(["preview"]).arg(recipe("promt = \"question\"\n")));
    assert!(said.stderr.contains("did you mean `prompt`?"), "{}", said.stderr);
}
