//! `ft merge` against PEFT, numpy and transformers, at its gate, on what must be refused, and stopped in the middle.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ft_tests::program::{Said, built, ft, peer, repository, run, succeed};
use ft_tests::scratch::{Scratch, names};
use ft_tests::tensors::{self, Distance, Tensor};
use serde_json::Value;

/// The most that a logit may differ from transformers', in standard deviations of the logits.
const BAR: f64 = 1e-4;

/// Models and adapters by PEFT.
struct Peft {
    scratch: Scratch,
}

impl Peft {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        succeed(peer("merge.py", ["make"]).arg(&*scratch));
        Self { scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Merges, and gives the result with what `--json` printed.
    fn merge(&self, model: &str, adapter: &str, result: &str, arguments: &[&str]) -> (PathBuf, Value) {
        let mut command = ft(["merge", "--json"]);
        command.args([model, adapter, result].map(|name| self.path(name))).args(arguments);
        let text = succeed(&mut command);
        (self.path(result), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:.200}")))
    }

    fn check(&self, verb: &str, names: &[&str]) {
        eprint!("{}", succeed(peer("merge.py", [verb]).args(names.iter().map(|name| self.path(name)))));
    }

    fn logits(&self, model: &str, adapter: Option<&str>) -> BTreeMap<String, Tensor> {
        let output = self.path("logits.safetensors");
        let mut command = ft(["logits"]);
        command.arg(self.path(model)).arg("--tokens").arg(self.path("tokens.json")).arg("--output").arg(&output);
        if let Some(adapter) = adapter {
            command.arg("--adapter").arg(self.path(adapter));
        }
        succeed(&mut command);
        tensors::read(&output)
    }

    fn logits_of_transformers(&self, model: &str) -> BTreeMap<String, Tensor> {
        let output = self.path("theirs.safetensors");
        succeed(peer("quantize.py", ["logits"]).args([self.path(model), self.path("tokens.json")]).arg(&output));
        tensors::read(&output)
    }
}

fn worst(found: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>, measure: impl Fn(Distance) -> f64) -> f64 {
    assert!(!expected.is_empty() && found.keys().eq(expected.keys()));
    expected.iter().map(|(name, each)| measure(tensors::distance(name, &found[name], each))).fold(0.0, f64::max)
}

fn largest(distance: Distance) -> f64 {
    distance.largest_in_deviations
}

fn typical(distance: Distance) -> f64 {
    distance.typical_in_deviations
}

/// Attention, router, head and experts in both layouts, other ranks and scalings for some, and rsLoRA.
#[test]
fn plain_weights_are_those_that_peft_merges() {
    let peft = Peft::new("merge-plain");
    for adapter in ["usual", "swapped"] {
        let result = format!("{adapter}-bf16");
        let (_, told) = peft.merge("plain", adapter, &result, &["--to", "bf16", "--shard-size", "200KB"]);
        peft.check("plain", &[&result, &format!("{adapter}.f32"), &format!("{adapter}.bf16"), "plain"]);
        // Seven weights in each of three layers, and the head.
        assert_eq!((&told["adapter"]["changed_tensors"], &told["adapter"]["changed_experts"]), (&22.into(), &15.into()));
        assert_eq!(told["adapter"]["kept_tensors"], 32);
        let quality = told["total"]["sqnr_db"].as_f64().expect("a level");
        assert!((50.0..60.0).contains(&quality), "{quality}");
        let result = format!("{adapter}-f32");
        let (_, told) = peft.merge("plain-f32", adapter, &result, &[]);
        peft.check("plain", &[&result, &format!("{adapter}.f32")]);
        assert_eq!((&told["to"], &told["total"]["sqnr_db"]), (&"f32".into(), &Value::Null));

        // The very weights that the adapter stands for, in f32 and rounded to bf16.
        let adapted = peft.logits("plain", Some(adapter));
        let effect = worst(&peft.logits("plain", None), &adapted, typical);
        let exact = worst(&peft.logits(&result, None), &adapted, largest);
        let rounded = worst(&peft.logits(&format!("{adapter}-bf16"), None), &adapted, typical);
        eprintln!(
            "{adapter}: in f32 {exact:.1e} of the logits' standard deviation from the adapter, in bf16 {rounded:.1e} (effect {effect:.1e})"
        );
        assert!(exact <= BAR, "{exact:.1e}");
        assert!(effect > 0.1 && rounded < effect / 20.0, "{rounded:.1e} of {effect:.1e}");
        let theirs = peft.logits_of_transformers(&format!("{adapter}-bf16"));
        let difference = worst(&peft.logits(&format!("{adapter}-bf16"), None), &theirs, largest);
        assert!(difference <= BAR, "{difference:.1e} from transformers");
    }
}

#[test]
fn packed_experts_are_those_of_numpy_and_load_in_transformers() {
    let peft = Peft::new("merge-packed");
    let (_, told) = peft.merge("packed", "experts", "kept", &["--shard-size", "100KB"]);
    fs::write(peft.path("kept.json"), told.to_string()).expect("the report can be written");
    peft.check("packed", &["packed", "experts", "kept", "kept.json"]);
    assert_eq!((&told["from"], &told["to"], &told["scale"]), (&"mxfp4".into(), &"mxfp4".into(), &"hint".into()));
    peft.merge("packed", "experts", "unpacked", &["--to", "bf16"]);
    peft.check("plain", &["unpacked", "experts.f32"]);
    // What was unpacked packs again from the scales that it came from.
    let hints = peft.path("packed");
    let arguments = ["--to", "mxfp4", "--hint-from", hints.to_str().expect("UTF-8")];
    peft.merge("unpacked", "zeros", "packed-again", &arguments);

    let adapted = peft.logits("packed", Some("experts"));
    let effect = worst(&peft.logits("packed", None), &adapted, typical);
    for (model, bar) in [("kept", 0.5), ("packed-again", 0.5), ("unpacked", 0.05)] {
        let ours = peft.logits(model, None);
        let distance = worst(&ours, &adapted, typical);
        let difference = worst(&ours, &peft.logits_of_transformers(model), largest);
        eprintln!(
            "{model}: {distance:.1e} of the logits' standard deviation from the adapter (effect {effect:.1e}), {difference:.1e} from transformers"
        );
        assert!(distance < bar * effect, "{model}: {distance:.1e} of {effect:.1e}");
        assert!(difference <= BAR, "{model}: {difference:.1e} from transformers");
    }
}

#[test]
fn an_adapter_that_was_never_trained_changes_no_byte() {
    let peft = Peft::new("merge-zeros");
    let (_, told) = peft.merge("packed", "zeros", "same", &[]);
    peft.check("same", &["packed", "same"]);
    assert_eq!((&told["adapter"]["changed_tensors"], &told["adapter"]["changed_experts"]), (&0.into(), &0.into()));
    assert_eq!((&told["total"]["sqnr_db"], &told["total"]["changed_codes_fraction"]), (&Value::Null, &0.0.into()));
}

/// A small model by ft with an adapter for the experts of its first layer.
struct Project {
    scratch: Scratch,
}

impl Project {
    fn new(name: &str, sizes: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let mut init = ft(["init", "--preset", "nano", "--experts", "mxfp4"]);
        succeed(init.arg(scratch.join("model")).args(sizes.iter().flat_map(|size| ["--set", size])));
        let config = fs::read(scratch.join("model/config.json")).expect("a config");
        let config: Value = serde_json::from_slice(&config).expect("JSON");
        let size = |key: &str| usize::try_from(config[key].as_u64().expect("a size")).expect("a size");
        let sizes = ["hidden_size", "intermediate_size", "num_local_experts"].map(size);
        write_adapter(&scratch.join("adapter"), 0, sizes, 0.05);
        Self { scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn command(&self, adapter: &str, arguments: &[&str]) -> Command {
        let mut command = ft(["merge"]);
        command.arg(self.path("model")).arg(self.path(adapter)).arg(self.path("out")).args(arguments);
        command
    }

    fn run(&self, adapter: &str, arguments: &[&str]) -> Said {
        run(&mut self.command(adapter, arguments))
    }
}

/// An adapter of rank 2 for the experts of a layer, all its elements `value` or its negative.
fn write_adapter(directory: &Path, layer: usize, [hidden, intermediate, experts]: [usize; 3], value: f32) {
    let prefix = format!("base_model.model.model.layers.{layer}.mlp.experts");
    let rows = 2 * experts;
    let tensors = [
        (format!("{prefix}.base_layer.lora_A.weight"), [rows, hidden]),
        (format!("{prefix}.base_layer.lora_B.weight"), [2 * intermediate, rows]),
        (format!("{prefix}.lora_A.weight"), [rows, intermediate]),
        (format!("{prefix}.lora_B.weight"), [hidden, rows]),
    ];
    let (mut header, mut body) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = body.len();
        (0..shape[0] * shape[1]).for_each(|index| {
            let sign = if index * 7919 % 31 < 15 { 1.0f32 } else { -1.0 };
            body.extend((sign * value).to_le_bytes());
        });
        header.insert(name, serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, body.len()]}));
    }
    let mut header = Value::Object(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let length = u64::try_from(header.len()).expect("a length").to_le_bytes();
    fs::create_dir_all(directory).expect("a folder can be made");
    fs::write(directory.join("adapter_model.safetensors"), [&length, header.as_bytes(), &body].concat()).expect("it can be written");
    let config = serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "somebody/else",
        "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]});
    fs::write(directory.join("adapter_config.json"), config.to_string()).expect("it can be written");
}

#[test]
fn the_gate_lets_pass_or_leaves_nothing() {
    let project = Project::new("merge-gate", &["num_hidden_layers=1", "num_local_experts=3"]);
    let (page, report) = (project.path("report.html"), project.path("report.json"));
    let arguments = ["--report", page.to_str().expect("UTF-8"), "--report", report.to_str().expect("UTF-8"), "--fail-below"];
    let before = names(&project.scratch);
    let said = project.run("adapter", &[&arguments[..], &["60"]].concat());
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(said.stderr.contains("model.layers.0.mlp.experts.") && said.stderr.contains("60.00 dB"), "{}", said.stderr);
    assert!(said.stderr.contains("says that it was made for somebody/else"), "{}", said.stderr);
    assert!(
        said.stdout.contains("layer 0 down_proj") && said.stdout.contains("changes 2 of 20 tensors and 3 of 3 experts"),
        "{}",
        said.stdout
    );
    assert_eq!(names(&project.scratch), before);
    let said = project.run("adapter", &[&arguments[..], &["10"]].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let told: Value = serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON");
    assert_eq!(told["adapter"]["path"], project.path("adapter").to_str().expect("UTF-8"));
    let page = fs::read_to_string(page).expect("a page");
    assert!(page.contains("Accuracy of a merge") && page.contains("<svg") && !page.contains("NaN"), "{page:.300}");
    for name in ["config.json", "tokenizer.json"] {
        assert_eq!(fs::read(project.path("out").join(name)).expect("a file"), fs::read(project.path("model").join(name)).expect("a file"));
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused_and_leave_nothing() {
    let project = Project::new("merge-refused", &["num_hidden_layers=1", "num_local_experts=3"]);
    for (name, layer, hidden, experts, value) in [
        ("wide", 0, 128, 3, 0.1),
        ("crowded", 0, 64, 4, 0.1),
        ("overflow", 0, 64, 3, 3e30),
        ("nan", 0, 64, 3, f32::NAN),
        ("deep", 7, 64, 3, 0.1),
    ] {
        write_adapter(&project.path(name), layer, [hidden, 96, experts], value);
    }
    let before = names(&project.scratch);
    let overflow = ["model.layers.0.mlp.experts.gate_up_proj", "at 0 of expert 0", "not a finite number"];
    for (adapter, arguments, says) in [
        ("wide", &[][..], &["has shape [6, 128]", "[6, 64]"][..]),
        ("crowded", &[], &["has shape", "expected"]),
        ("overflow", &[], &overflow),
        ("overflow", &["--to", "bf16"], &overflow),
        ("nan", &[], &["lora_A", "not a finite number, at 0"]),
        ("deep", &[], &["no layer 7", "the model has 1"]),
        ("nothing", &[], &["nothing/adapter_config.json"]),
        ("model", &[], &["adapter_config.json"]),
        ("adapter", &["--hint-from", "model"], &["`--hint-from` has no effect"]),
        ("adapter", &["--fail-below", "nan"], &["a number of decibels"]),
        ("adapter", &["--report", "report.pdf"], &["ends in .html or .json"]),
    ] {
        let said = project.run(adapter, arguments);
        assert_eq!(said.code, Some(1), "{adapter} {arguments:?}: {}", said.stderr);
        assert!(says.iter().all(|part| said.stderr.contains(part)), "{adapter} {arguments:?}: {}", said.stderr);
        assert_eq!(names(&project.scratch), before, "{adapter}");
    }
}

/// With files limited to less than the result, writing fails in the middle as it does on a full disk.
#[test]
fn a_disk_that_is_too_small_leaves_nothing() {
    let project = Project::new("merge-full", &["num_hidden_layers=1", "num_local_experts=3"]);
    let before = names(&project.scratch);
    let mut command = Command::new("bash");
    // In units of 1024 bytes; without the signal, which would end the program.
    command.args(["-c", "trap '' XFSZ; ulimit -f 500; exec \"$0\" \"$@\""]).arg(built("ft")).arg("merge");
    command.args(["model", "adapter", "out"].map(|name| project.path(name))).current_dir(repository()).env("NO_COLOR", "1");
    let said = run(&mut command);
    assert_eq!(said.code, Some(3), "{}", said.stderr);
    assert!(said.stderr.contains("model.safetensors") && said.stderr.contains("free some space"), "{}", said.stderr);
    assert_eq!(names(&project.scratch), before);
}

/// Killed at moments spread over the run, it leaves nothing under the result's name, and the next run does the whole.
#[test]
fn a_killed_run_leaves_nothing_that_looks_finished() {
    let project = Project::new("merge-killed", &["hidden_size=512", "intermediate_size=1024", "num_local_experts=16"]);
    let started = Instant::now();
    assert_eq!(project.run("adapter", &[]).code, Some(0));
    let whole = started.elapsed();
    let model =
        |folder: PathBuf| names(&folder).into_iter().map(|name| (fs::read(folder.join(&name)).expect("a file"), name)).collect::<Vec<_>>();
    let expected = model(project.path("out"));
    let mut killed = 0;
    // In the first half of that time, in case the first run was slowed down by others.
    for moment in 1..=8 {
        fs::remove_dir_all(project.path("out")).expect("the result can be removed");
        let mut command = project.command("adapter", &[]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ft starts");
        std::thread::sleep(whole * moment / 16 + Duration::from_millis(1));
        child.kill().expect("it can be killed");
        killed += u32::from(!child.wait().expect("it ends").success());
        if !project.path("out").exists() {
            let said = project.run("adapter", &[]);
            assert_eq!(said.code, Some(0), "{}", said.stderr);
        }
        assert!(model(project.path("out")) == expected, "after {moment} sixteenths");
    }
    assert!(killed >= 3, "only {killed} runs were stopped in time");
    assert!(!names(&project.scratch).iter().any(|name| name.ends_with(".partial")));
}
