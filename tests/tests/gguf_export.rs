//! GGUF files against llama.cpp: its converter, its reader, its arithmetic; and what is left when writing one is stopped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ft_tests::program::{built, ft, peer, run, succeed};
use ft_tests::scratch::{Scratch, names};
use serde_json::Value;

/// Sizes of which none is another, and a ramp of rotary periods that llama.cpp can express: it rounds the ends to whole pairs.
const SIZES: [&str; 9] = [
    "hidden_size=96",
    "intermediate_size=64",
    "num_local_experts=5",
    "num_experts_per_tok=2",
    "num_hidden_layers=3",
    "num_attention_heads=4",
    "num_key_value_heads=2",
    "head_dim=64",
    "rope_scaling.truncate=true",
];

fn model(path: &Path, experts: &str, settings: &[&str]) {
    let mut init = ft(["init", "--preset", "nano", "--experts", experts]);
    succeed(init.arg(path).args(SIZES.iter().chain(settings).flat_map(|size| ["--set", size])));
}

fn export(source: &Path, target: &Path, to: &str, split: &[&str]) -> Command {
    let mut command = ft(["export", "--no-verify", "--json"]);
    command.arg(source).arg(target).arg(format!("--to=gguf:{to}")).args(split);
    command
}

fn judge(verb: &str) -> Command {
    peer("gguf_export.py", [verb])
}

/// A model with the log-probabilities that `ft` computes.
struct Judged {
    scratch: Scratch,
}

impl Judged {
    fn new(name: &str, experts: &str) -> Self {
        let scratch = Scratch::new(name);
        model(&scratch.join("model"), experts, &[]);
        succeed(judge("decide").arg(scratch.join("model")));
        succeed(judge("prompts").arg(scratch.join("prompts.json")));
        let judged = Self { scratch };
        let mut logits = ft(["logits", "--dtype", "f32"]);
        logits.arg(judged.path("model")).arg("--tokens").arg(judged.path("prompts.json"));
        succeed(logits.arg("--output").arg(judged.path("logits.safetensors")));
        judged
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Exports to `to`; llama.cpp then computes what `ft` does within `bound`.
    fn computes(&self, to: &str, bound: &str) -> (PathBuf, PathBuf) {
        let (file, answer) = (self.path(&format!("{to}.gguf")), self.path(&format!("{to}.json")));
        succeed(&mut export(&self.path("model"), &file, to, &[]));
        self.answer(&file, &answer);
        let said = succeed(judge("judge").arg(&answer).arg(self.path("logits.safetensors")).arg(bound));
        eprint!("{to}: {said}");
        (file, answer)
    }

    /// What llama.cpp makes of a file; every special token of gpt-oss has to be one to it.
    fn answer(&self, file: &Path, answer: &Path) {
        let said = run(judge("logprobs").arg(file).arg(self.path("prompts.json")).arg(answer));
        assert_eq!(said.code, Some(0), "{}\n{}", said.stdout, said.stderr);
        let log = said.stdout + &said.stderr;
        assert!(log.contains("special tokens cache size = 21"), "{log}");
    }

    /// The same from llama.cpp's converter, byte for byte but for `may_differ`, and so the same answers.
    fn equals_converter(&self, (file, answer): &(PathBuf, PathBuf), kind: &str, may_differ: &[&str]) {
        let (theirs, their_answer) = (self.path("theirs.gguf"), self.path("theirs.json"));
        succeed(judge("convert").arg(self.path("model")).arg(&theirs).arg(kind));
        // Ours is without the marks that the converter leaves in the template.
        let may_differ = may_differ.iter().chain(&["tokenizer.chat_template"]);
        eprint!("{kind}: {}", succeed(judge("compare").arg(file).arg(&theirs).args(may_differ)));
        self.answer(&theirs, &their_answer);
        succeed(judge("agree").arg(answer).arg(&their_answer).arg("1e-6"));
    }
}

/// The converter keeps packed experts whatever the type of the rest, which is what `mxfp4` does with eight bits.
#[test]
fn packed_models_are_what_the_converter_makes_of_them_and_compute_the_same() {
    let judged = Judged::new("gguf-mxfp4", "mxfp4");
    let native = judged.computes("native", "0.2");
    judged.equals_converter(&native, "auto", &[]);
    let mixed = judged.computes("mxfp4", "0.3");
    judged.equals_converter(&mixed, "q8_0", &["general.file_type"]);
    judged.computes("f32", "0.02");

    let parts = succeed(&mut export(&judged.path("model"), &judged.path("split.gguf"), "native", &["--split-size", "9MB"]));
    let written: Value = serde_json::from_str(&parts).expect("JSON");
    let parts: Vec<&str> = written["files"].as_array().expect("files").iter().filter_map(Value::as_str).collect();
    succeed(judge("parts").arg(&native.0).args(&parts));
    judged.answer(Path::new(parts[0]), &judged.path("split.json"));
    succeed(judge("agree").args([&native.1, &judged.path("split.json")]).arg("1e-6"));
}

#[test]
fn plain_models_are_what_the_converter_makes_of_them_and_compute_the_same() {
    let judged = Judged::new("gguf-bf16", "bf16");
    for (to, kind, bound) in [("f32", "f32", "0.02"), ("native", "auto", "0.1"), ("f16", "f16", "0.1"), ("q8_0", "q8_0", "0.3")] {
        let ours = judged.computes(to, bound);
        judged.equals_converter(&ours, kind, &[]);
    }
    let (bf16, native) = (judged.path("bf16.gguf"), judged.path("native.gguf"));
    succeed(&mut export(&judged.path("model"), &bf16, "bf16", &[]));
    assert!(fs::read(bf16).expect("a file") == fs::read(native).expect("a file"));
}

/// A vocabulary smaller than the tokenizer makes a file that loads; a tokenizer of another content makes none.
#[test]
fn small_vocabularies_load_and_foreign_tokenizers_are_refused() {
    let scratch = Scratch::new("gguf-vocabulary");
    let source = scratch.join("model");
    for size in [1000, 199_999, 201_100] {
        model(&source, "bf16", &[&format!("vocab_size={size}")]);
        let file = scratch.join(format!("{size}.gguf"));
        succeed(&mut export(&source, &file, "native", &[]));
        scratch.write("prompt.json", "[[0, 1, 2, 999]]");
        succeed(judge("logprobs").arg(&file).arg(scratch.join("prompt.json")).arg(scratch.join("answer.json")));
        fs::remove_dir_all(&source).expect("the model can be removed");
        fs::remove_file(&file).expect("the file can be removed");
    }
    model(&source, "bf16", &["vocab_size=1000"]);
    let path = source.join("tokenizer.json");
    let text = fs::read_to_string(&path).expect("a tokenizer");
    fs::write(&path, text.replace("\"<|start|>\"", "\"<|im_start|>\"")).expect("it can be written");
    let said = run(&mut export(&source, &scratch.join("out.gguf"), "native", &[]));
    assert_eq!(said.code, Some(1));
    for part in ["tokenizer.json is not the tokenizer of gpt-oss", "special token 200006 is `<|im_start|>`"] {
        assert!(said.stderr.contains(part), "{}", said.stderr);
    }
    assert_eq!(names(&scratch), ["answer.json", "model", "prompt.json"]);
}

/// A disk that is full, a source that is cut short, and a kill at any moment.
#[test]
fn what_is_stopped_leaves_nothing_under_its_name() {
    let scratch = Scratch::new("gguf-stopped");
    let source = scratch.join("model");
    model(&source, "bf16", &["vocab_size=1000", "hidden_size=512", "intermediate_size=1024", "num_local_experts=16"]);
    let (out, split) = (scratch.join("out.gguf"), ["--split-size", "5MB"]);
    let limited = |blocks: u32| {
        let mut command = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        command.args(["-c", &script, "sh"]).arg(built("ft")).args(["export", "--no-verify", "--to=gguf:f32"]).arg(&source).arg(&out);
        run(&mut command)
    };
    for blocks in [10, 10_000] {
        let said = limited(blocks);
        assert_eq!(said.code, Some(3), "{}", said.stderr);
        assert!(said.stderr.contains("cannot write") && said.stderr.contains("free some space"), "{}", said.stderr);
        assert_eq!(names(&scratch), ["model"]);
    }
    let shard = source.join("model.safetensors");
    let whole = fs::read(&shard).expect("the shard");
    fs::write(&shard, &whole[..whole.len() - 1000]).expect("the shard can be written");
    let said = run(&mut export(&source, &out, "native", &[]));
    assert!(said.code == Some(1) && said.stderr.contains("truncated"), "{}", said.stderr);
    assert_eq!(names(&scratch), ["model"]);
    fs::write(&shard, &whole).expect("the shard can be written");

    let started = Instant::now();
    succeed(&mut export(&source, &out, "q8_0", &split));
    let elapsed = started.elapsed();
    let parts: Vec<String> = names(&scratch).into_iter().filter(|name| name.starts_with("out-")).collect();
    assert!(parts.len() > 5, "{parts:?}");
    let mut killed = 0;
    for moment in 1..8 {
        parts.iter().for_each(|part| fs::remove_file(scratch.join(part)).expect("a part can be removed"));
        let mut command = export(&source, &out, "q8_0", &split);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        std::thread::sleep(elapsed * moment / 8 + Duration::from_millis(1));
        child.kill().expect("it can be killed");
        let was_killed = !child.wait().expect("it ends").success();
        killed += u32::from(was_killed);
        let there = names(&scratch);
        // A kill between two renames leaves parts, and the one by which a set is found comes last: where it is, the set is whole.
        let is_whole = parts.iter().all(|part| there.contains(part));
        assert!(!was_killed || is_whole || !there.contains(&parts[0]), "after {moment} eighths: {there:?}");
        there.iter().filter(|name| name.starts_with("out-")).for_each(|part| fs::remove_file(scratch.join(part)).expect("a part"));
        succeed(&mut export(&source, &out, "q8_0", &split));
        assert_eq!(names(&scratch), [&["model".to_owned()], &parts[..]].concat());
    }
    assert!(killed >= 3, "only {killed} runs were stopped in time");
}
