//! GGUF files that the gguf package wrote, as models: the same logits bit for bit, the same bytes back, and what is said of files that
//! are no such models.

use std::fs;
use std::path::{Path, PathBuf};

use ft_tests::conversations::{conversations, jsonl};
use ft_tests::program::{ft, peer, run, succeed};
use ft_tests::scratch::Scratch;
use ft_tests::tensors;
use serde_json::Value;

/// Rows are whole blocks of every type, and no size is another's.
const SIZES: [&str; 8] = [
    "hidden_size=96",
    "intermediate_size=160",
    "num_hidden_layers=3",
    "num_attention_heads=6",
    "num_key_value_heads=2",
    "head_dim=32",
    "num_local_experts=5",
    "num_experts_per_tok=3",
];

/// A model in safetensors and what is made of it.
struct Project {
    scratch: Scratch,
}

impl Project {
    fn new(name: &str, experts: &str, vocabulary: &str) -> Self {
        let scratch = Scratch::new(name);
        let sizes = SIZES.iter().chain([&vocabulary]).flat_map(|size| ["--set", size]);
        succeed(ft(["init", "--preset", "nano", "--experts", experts]).arg(scratch.join("model")).args(sizes));
        scratch.write("tokens.json", "[[5, 1, 96, 0, 17, 42], [3]]");
        Self { scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// The model as GGUF, by the gguf package.
    fn write(&self, name: &str, kind: &str, more: &[&str]) -> PathBuf {
        let path = self.path(name);
        succeed(peer("gguf_model.py", ["write"]).arg(self.path("model")).arg(&path).arg(kind).args(more));
        path
    }

    fn logits(&self, model: &Path, dtype: &str) -> Vec<u8> {
        let output = self.path("logits.safetensors");
        let tokens = self.path("tokens.json");
        succeed(ft(["logits", "--dtype", dtype]).arg(model).arg("--tokens").arg(tokens).arg("--output").arg(&output));
        assert!(tensors::read(&output).values().all(|logits| logits.values.iter().any(|logit| *logit != 0.0)));
        fs::read(output).expect("the logits")
    }

    /// The logits of a file are those of what the gguf package reads in it.
    fn assert_logits(&self, file: &Path) {
        let decoded = file.with_extension("decoded");
        succeed(peer("gguf_model.py", ["decode"]).arg(file).arg(self.path("model")).arg(&decoded));
        for dtype in ["f32", "bf16"] {
            assert!(self.logits(file, dtype) == self.logits(&decoded, dtype), "{} in {dtype}", file.display());
        }
    }
}

#[test]
fn packed_experts_compute_the_same_and_come_back_byte_for_byte() {
    let project = Project::new("gguf-mxfp4", "mxfp4", "vocab_size=97");
    let model = project.path("model");
    for kind in ["BF16", "F32"] {
        let file = project.write(&format!("{kind}.gguf"), kind, &[]);
        project.assert_logits(&file);
        for dtype in ["f32", "bf16"] {
            assert!(project.logits(&file, dtype) == project.logits(&model, dtype), "{kind} in {dtype}");
        }
        let result = project.path(&format!("{kind}-back"));
        succeed(ft(["quantize", "--to", "mxfp4"]).arg(&file).arg(&result));
        succeed(peer("gguf_model.py", ["same"]).args([&model, &result]));
    }
}

#[test]
fn plain_and_quantized_weights_compute_what_the_gguf_package_reads() {
    let project = Project::new("gguf-plain", "bf16", "vocab_size=97");
    for kind in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"] {
        let file = project.write(&format!("{kind}.gguf"), kind, &[]);
        project.assert_logits(&file);
    }
    for kind in ["F32", "BF16"] {
        assert!(project.logits(&project.path(&format!("{kind}.gguf")), "f32") == project.logits(&project.path("model"), "f32"));
    }
    let result = project.path("back");
    succeed(ft(["quantize", "--to", "bf16"]).arg(project.path("BF16.gguf")).arg(&result));
    succeed(peer("gguf_model.py", ["same"]).args([&project.path("model"), &result]));
}

#[test]
fn a_split_model_is_one_and_says_which_part_is_missing() {
    let project = Project::new("gguf-split", "mxfp4", "vocab_size=97");
    fs::create_dir(project.path("split")).expect("a folder");
    project.write("split/m.gguf", "BF16", &["--split", "9"]);
    let parts = fs::read_dir(project.path("split")).expect("the folder").count();
    assert_eq!(parts, 7);
    let whole = project.logits(&project.path("model"), "f32");
    for model in ["split", "split/m-00001-of-00007.gguf", "split/m-00007-of-00007.gguf"] {
        assert!(project.logits(&project.path(model), "f32") == whole, "{model}");
    }
    fs::remove_file(project.path("split/m-00004-of-00007.gguf")).expect("the part can be removed");
    let said = run(ft(["inspect"]).arg(project.path("split")));
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(said.stderr.contains("m-00004-of-00007.gguf") && said.stderr.contains("incomplete"), "{}", said.stderr);
}

#[test]
fn inspect_lists_what_the_gguf_package_does() {
    let project = Project::new("gguf-inspect", "mxfp4", "vocab_size=97");
    let file = project.write("m.gguf", "Q8_0", &[]);
    let parse = |text: String| serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error} in {text:.200}"));
    let found = parse(succeed(ft(["inspect", "--json"]).arg(&file)));
    let expected = parse(succeed(peer("gguf_model.py", ["describe"]).arg(&file)));
    assert_eq!((&found["version"], &found["kind"], &found["format_version"]), (&1.into(), &"gguf".into(), &3.into()));
    assert_eq!(found["tensors"], expected["tensors"]);
    let (found, expected) = (&found["metadata"], expected["metadata"].as_object().expect("an object"));
    assert_eq!(found.as_object().expect("an object").len(), expected.len());
    for (key, value) in expected {
        match value.as_f64() {
            // Python widens f32.
            Some(number) => assert!((found[key].as_f64().expect("a number") - number).abs() <= 1e-7 * number.abs(), "{key}"),
            None => assert_eq!(&found[key], value, "{key}"),
        }
    }
    let text = succeed(ft(["inspect"]).arg(&file));
    for part in ["gpt-oss.expert_count", "blk.2.ffn_gate_exps.weight", "MXFP4", "[5, 160, 96]", "\"gpt-oss\""] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn texts_need_the_vocabulary_of_gpt_oss() {
    let project = Project::new("gguf-tokens", "mxfp4", "vocab_size=201088");
    let (model, file) = (project.path("model"), project.write("m.gguf", "BF16", &[]));
    let answer = |model: &Path| succeed(ft(["generate", "--prompt", "Hello", "--max-tokens", "12"]).arg(model));
    assert_eq!(answer(&file), answer(&model));
    let data = project.scratch.write("data.jsonl", jsonl(&conversations(2)));
    let text = succeed(ft(["eval", "--json"]).arg(&file).arg("--reference").arg(&model).arg("--data").arg(&data));
    let evaluation: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:.200}"));
    assert_eq!(evaluation.pointer("/comparison/kl_divergence/maximum"), Some(&0.0.into()), "{text:.2000}");
    let inspected = succeed(ft(["inspect", "--json"]).arg(&file));
    assert!(inspected.contains(r#""tokenizer.ggml.tokens":{"array":"string","count":201088}"#), "{inspected:.2000}");

    let other = project.write("other.gguf", "BF16", &["--token", "1234=another"]);
    let verbs: [&[&str]; 3] = [&["generate", "--prompt", "Hello"], &["eval"], &["quantize", "--to", "bf16"]];
    for verb in verbs {
        let mut command = ft(verb);
        match verb[0] {
            "eval" => command.arg(&other).arg("--data").arg(&data),
            "quantize" => command.arg(&other).arg(project.path("out")),
            _ => command.arg(&other),
        };
        let said = run(&mut command);
        assert_eq!(said.code, Some(1), "{verb:?}: {}", said.stderr);
        assert!(said.stderr.contains("token 1234 is \"another\"") && said.stderr.contains("o200k_harmony"), "{verb:?}: {}", said.stderr);
    }
    assert!(!project.path("out").exists());
    // Ids need no vocabulary.
    project.logits(&other, "f32");
}
