//! `ft quantize` against numpy and transformers, there and back, at its gates, and stopped in the middle.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use ft_tests::conversations::{conversations, jsonl};
use ft_tests::program::{Said, ft, peer, run, succeed};
use ft_tests::scratch::{Scratch, names};
use ft_tests::tensors;
use serde_json::Value;

fn quantize(source: &Path, target: &Path, arguments: &[&str]) -> Value {
    let text = succeed(ft(["quantize", "--json"]).arg(source).arg(target).args(arguments));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:.200}"))
}

/// The files of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().expect("UTF-8"), fs::read(entry.path()).expect("a file"));
    entries.map(|entry| read(entry.expect("an entry"))).collect()
}

/// Ten million values, every rule, both roundings, with and without scales to start from; figures included. Then there and back.
#[test]
fn every_rule_is_that_of_numpy_and_packed_checkpoints_come_back() {
    let scratch = Scratch::new("quantize-rules");
    succeed(peer("quantize.py", ["make"]).arg(&*scratch));
    let (plain, packed, result, report) =
        (scratch.join("plain"), scratch.join("packed"), scratch.join("result"), scratch.join("report.json"));
    let hints = packed.to_str().expect("UTF-8");
    let cases: [(&Path, &[&str]); 8] = [
        (&plain, &["--scale", "even"]),
        (&plain, &["--scale", "floor"]),
        (&plain, &["--scale", "rceil"]),
        (&plain, &["--scale", "mse"]),
        (&plain, &["--scale", "floor", "--rounding", "ggml"]),
        (&plain, &["--scale", "hint", "--hint-from", hints]),
        (&packed, &["--scale", "rceil"]),
        (&packed, &["--shard-size", "1MB"]),
    ];
    for (source, arguments) in cases {
        let told = quantize(source, &result, &[&["--to", "mxfp4"], arguments].concat());
        fs::write(&report, told.to_string()).expect("the report can be written");
        let mut check = peer("quantize.py", ["check"]);
        check.args([source, &result, &report]);
        if arguments.contains(&"--hint-from") {
            check.arg(&packed);
        }
        eprint!("{}", succeed(&mut check));
        fs::remove_dir_all(&result).expect("the result can be removed");
    }

    let (unpacked, back, again) = (scratch.join("unpacked"), scratch.join("back"), scratch.join("again"));
    let told = quantize(&packed, &unpacked, &["--to", "bf16"]);
    assert_eq!((&told["total"]["sqnr_db"], &told["total"]["relative_error"]), (&Value::Null, &Value::from(0.0)));
    // transformers unpacks to the same bits.
    succeed(peer("quantize.py", ["unpack"]).args([&packed, &unpacked]));
    let told = quantize(&unpacked, &back, &["--to", "mxfp4", "--hint-from", hints]);
    assert_eq!(told["total"]["changed_codes_fraction"], 0.0);
    assert_eq!(told["total"]["changed_scales_fraction"], 0.0);
    quantize(&packed, &again, &["--to", "mxfp4"]);
    assert!(files(&back)["model.safetensors"] == files(&again)["model.safetensors"]);
    succeed(peer("quantize.py", ["unpack"]).args([&back, &unpacked]));
}

/// What `ft` packs is to transformers the model that it is to `ft`.
#[test]
fn transformers_loads_the_result_and_computes_the_same() {
    let scratch = Scratch::new("quantize-logits");
    succeed(peer("quantize.py", ["small"]).arg(&*scratch));
    let (tokens, packed, plain) = (scratch.join("tokens.json"), scratch.join("small-mxfp4"), scratch.join("small-bf16"));
    quantize(&scratch.join("small"), &packed, &["--to", "mxfp4", "--shard-size", "100KB"]);
    quantize(&packed, &plain, &["--to", "bf16", "--shard-size", "100KB"]);
    for model in [&packed, &plain] {
        let (theirs, ours) = (scratch.join("theirs.safetensors"), scratch.join("ours.safetensors"));
        succeed(peer("quantize.py", ["logits"]).args([model, &tokens, &theirs]));
        succeed(ft(["logits"]).arg(model).arg("--tokens").arg(&tokens).arg("--output").arg(&ours));
        let (theirs, ours) = (tensors::read(&theirs), tensors::read(&ours));
        for (name, expected) in &theirs {
            let difference = tensors::distance(name, &ours[name], expected).largest_in_deviations;
            eprintln!("{}, {name}: {difference:.1e} of the logits' standard deviation", model.display());
            assert!(difference <= 1e-4, "{}, {name}: {difference:.1e}", model.display());
        }
    }
}

/// A small model that reads the real vocabulary, with conversations.
struct Project {
    scratch: Scratch,
}

impl Project {
    fn new(name: &str, sizes: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let mut init = ft(["init", "--preset", "nano", "--experts", "bf16"]);
        succeed(init.arg(scratch.join("model")).args(sizes.iter().flat_map(|size| ["--set", size])));
        scratch.write("data.jsonl", jsonl(&conversations(3)));
        Self { scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn run(&self, arguments: &[&str]) -> Said {
        run(ft(["quantize"]).arg(self.path("model")).arg(self.path("out")).args(arguments))
    }
}

#[test]
fn gates_let_pass_or_leave_nothing() {
    let project = Project::new("quantize-gates", &["num_hidden_layers=1", "num_local_experts=2"]);
    let data = project.path("data.jsonl");
    let data = data.to_str().expect("UTF-8");
    let page = project.path("report.html");
    let page = page.to_str().expect("UTF-8");
    let before = names(&project.scratch);
    for (arguments, says) in [
        (vec!["--fail-below", "40"], vec!["model.layers.0.mlp.experts.", "18.", "40.00 dB"]),
        (vec!["--fail-above-kl", "0", "--data", data], vec!["KL divergence", "above the bound of 0"]),
    ] {
        let said = project.run(&[&["--to", "mxfp4", "--report", page], &arguments[..]].concat());
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert!(says.iter().all(|part| said.stderr.contains(part)), "{}", said.stderr);
        assert!(said.stdout.contains("layer 0 down_proj"), "{}", said.stdout);
        assert_eq!(names(&project.scratch), before);
    }
    let report = project.path("report.json");
    let arguments = ["--to", "mxfp4", "--fail-below", "15", "--fail-above-kl", "1", "--data", data, "--report", page, "--report"];
    let said = project.run(&[&arguments[..], &[report.to_str().expect("UTF-8")]].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let report: Value = serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON");
    assert!(report["evaluation"]["comparison"]["kl_divergence"]["mean"].as_f64().is_some_and(|mean| mean > 0.0), "{report}");
    assert_eq!(report["evaluation"]["model"], project.path("out").to_str().expect("UTF-8"));
    let page = fs::read_to_string(page).expect("a page");
    assert!(page.contains("<svg") && page.contains("18.9") && !page.contains("NaN"), "{page:.300}");
}

#[test]
fn mistakes_are_told_before_anything_is_written() {
    let project = Project::new("quantize-mistakes", &["num_hidden_layers=1", "num_local_experts=2"]);
    let before = names(&project.scratch);
    let model = project.path("model");
    let model = model.to_str().expect("UTF-8");
    for (arguments, says) in [
        (vec!["--to", "bf16", "--scale", "even"], "`--scale` has no effect"),
        (vec!["--to", "mxfp4", "--scale", "floor", "--hint-from", model], "`--hint-from` has no effect"),
        (vec!["--to", "mxfp4", "--hint-from", model], "are not in MXFP4"),
        (vec!["--to", "mxfp4", "--hint-from", "/nowhere"], "/nowhere"),
        (vec!["--to", "mxfp4", "--report", "report.pdf"], "ends in .html or .json"),
        (vec!["--to", "mxfp4", "--report", "/nowhere/report.json"], "/nowhere/report.json"),
        (vec!["--to", "mxfp4", "--fail-below", "nan"], "a number of decibels"),
        (vec!["--to", "mxfp4", "--fail-above-kl", "0.1"], "--data"),
        (vec!["--to", "mxfp4", "--shard-size", "5XB"], "a size like 5GB"),
        (vec!["--to", "gguf"], "mxfp4"),
    ] {
        let said = project.run(&arguments);
        assert_eq!(said.code, Some(1), "{arguments:?}: {}", said.stderr);
        assert!(said.stderr.contains(says), "{arguments:?}: {}", said.stderr);
        assert_eq!(names(&project.scratch), before, "{arguments:?}");
    }
    let said = project.run(&["--to", "mxfp4", "--device", "cuda"]);
    if said.code != Some(0) {
        assert!(said.code == Some(1) && said.stderr.contains("no GPU can be used") && said.stderr.contains("because:"), "{}", said.stderr);
        assert_eq!(names(&project.scratch), before);
    }
}

#[test]
fn damaged_models_are_refused_and_leave_nothing() {
    let project = Project::new("quantize-damaged", &["num_hidden_layers=1", "num_local_experts=2"]);
    let shard = project.path("model/model.safetensors");
    let whole = fs::read(&shard).expect("a shard");
    let before = names(&project.scratch);
    let header = usize::try_from(u64::from_le_bytes(whole[..8].try_into().expect("8 bytes"))).expect("a size");
    let entries: Value = serde_json::from_slice(&whole[8..8 + header]).expect("a header");
    let place = |tensor: &str| {
        let start = entries[tensor]["data_offsets"][0].as_u64().unwrap_or_else(|| panic!("no {tensor}"));
        8 + header + usize::try_from(start).expect("a size")
    };
    let down = "model.layers.0.mlp.experts.down_proj";
    let with_nan = |tensor: &str, element: usize| {
        let mut bytes = whole.clone();
        let start = place(tensor) + 2 * element;
        bytes[start..start + 2].copy_from_slice(&[0xc0, 0x7f]);
        bytes
    };
    for (bytes, says) in [
        (whole[..whole.len() - 1000].to_vec(), vec!["truncated", "copy or download"]),
        (with_nan(down, 96 * 64 + 777), vec![down, "expert 1", "value 777 is not a finite number"]),
        (with_nan("lm_head.weight", 5), vec!["lm_head.weight", "not a finite number, at 5"]),
    ] {
        fs::write(&shard, bytes).expect("the shard can be written");
        for to in ["mxfp4", "bf16"] {
            let said = project.run(&["--to", to]);
            assert_eq!(said.code, Some(1), "{}", said.stderr);
            assert!(says.iter().all(|part| said.stderr.contains(part)), "{}", said.stderr);
            assert_eq!(names(&project.scratch), before);
        }
    }
    fs::write(&shard, &whole).expect("the shard can be written");
    // A packed model with a scale that stands for NaN.
    let said = project.run(&["--to", "mxfp4"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let packed = project.path("out/model.safetensors");
    let mut bytes = fs::read(&packed).expect("a shard");
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))).expect("a size");
    let entries: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let start = entries[format!("{down}_scales")]["data_offsets"][0].as_u64().and_then(|start| usize::try_from(start).ok());
    bytes[8 + header + start.expect("an offset") + 9] = 255;
    fs::write(&packed, bytes).expect("the shard can be written");
    let said = run(ft(["quantize", "--to", "bf16"]).arg(project.path("out")).arg(project.path("plain")));
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    for part in [&format!("{down}_scales"), "expert 0", "scale byte 9 is 255"] {
        assert!(said.stderr.contains(part), "{}", said.stderr);
    }
    assert!(!names(&project.scratch).iter().any(|name| name.contains("plain")));
}

/// Killed at moments spread over the run, it leaves nothing under the result's name, and the next run does the whole.
#[test]
fn a_killed_run_leaves_nothing_that_looks_finished() {
    let project = Project::new("quantize-killed", &["hidden_size=512", "intermediate_size=1024", "num_local_experts=16"]);
    let started = Instant::now();
    assert_eq!(project.run(&["--to", "mxfp4"]).code, Some(0));
    let whole = started.elapsed();
    let expected = files(&project.path("out"));
    let mut killed = 0;
    for moment in 1..8 {
        fs::remove_dir_all(project.path("out")).expect("the result can be removed");
        let mut command = ft(["quantize", "--to", "mxfp4"]);
        command.arg(project.path("model")).arg(project.path("out")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("ft starts");
        std::thread::sleep(whole * moment / 8 + Duration::from_millis(1));
        child.kill().expect("it can be killed");
        let was_killed = !child.wait().expect("it ends").success();
        killed += u32::from(was_killed);
        assert!(!was_killed || !project.path("out").exists() || files(&project.path("out")) == expected, "after {moment} eighths");
        if !project.path("out").exists() {
            let said = project.run(&["--to", "mxfp4"]);
            assert_eq!(said.code, Some(0), "{}", said.stderr);
        }
        assert!(files(&project.path("out")) == expected, "after {moment} eighths");
    }
    assert!(killed >= 3, "only {killed} runs were stopped in time");
    assert!(!names(&project.scratch).iter().any(|name| name.ends_with(".partial")));
}
