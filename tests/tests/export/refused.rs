//! What `ft export` refuses, and what is left when it is stopped: nothing.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ft_tests::program::{built, ft, peer, repository, run, succeed};

use crate::Project;

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let project = Project::new("export-refused");
    project.init("model", "mxfp4", &["rope_scaling.truncate=false"]);
    project.init("plain", "bf16", &[]);
    project.init("wide", "bf16", &["hidden_size=128"]);
    project.init("clamped", "mxfp4", &["swiglu_limit=5"]);
    project.peer("export.py", "adapters", &["plain", "adapters"]);
    project.exported("plain", "q4.gguf", "gguf:q4_k_m", &[]);
    project.exported("model", "native.gguf", "gguf", &[]);
    let whole = fs::read(project.path("native.gguf")).expect("a file");
    project.scratch.write("short.gguf", &whole[..whole.len() - 1000]);
    // A scale of MXFP4 that stands for no number, and one of a K-quant.
    succeed(peer("export.py", ["damage"]).arg(project.path("native.gguf")).arg(project.path("damaged.gguf")));
    succeed(peer("export.py", ["damage"]).arg(project.path("q4.gguf")).arg(project.path("damaged-q4.gguf")));
    fs::create_dir(project.path("full")).expect("a folder");
    project.scratch.write("full/notes.txt", "mine");
    // As it is when the base came from somewhere else.
    let config = project.path("adapters/usual/adapter_config.json");
    let text = fs::read_to_string(&config).expect("PEFT wrote it").replace(project.path("plain").to_str().expect("UTF-8"), "somebody/else");
    fs::write(config, text).expect("it can be written");
    let wide = project.path("wide");
    let wide = ["--base", wide.to_str().expect("UTF-8")];

    let before = project.names();
    let list = ["gguf:TYPE", "safetensors:bf16", "openai", "gguf-lora"];
    for (model, out, to, arguments, says) in [
        ("adapters/usual", "out.gguf", "gguf", &[][..], &["adapter"][..]),
        ("adapters/usual", "out", "safetensors", &[], &["adapter"]),
        ("model", "native.gguf", "gguf", &[], &["native.gguf", "already exists"]),
        ("model", "full", "gguf", &[], &["full", "already"]),
        ("model", "full", "safetensors", &[], &["full", "already"]),
        ("model", "full", "openai", &[], &["full", "already"]),
        ("model", "full", "ollama", &[], &["full", "already"]),
        ("model", "out.gguf", "guff", &[], &list),
        ("model", "out.gguf", "gguf:q4_k_x", &[], &["q4_k_m", "q8_0", "mxfp4"]),
        ("adapters/usual", "out.gguf", "gguf-lora", &[], &["is not known", "somebody/else", "--base MODEL"]),
        ("adapters/usual", "out.gguf", "gguf-lora", &wide, &["128", "96"]),
        ("adapters/usual", "out", "gguf-lora:bf16", &wide, &["128", "96"]),
        ("model", "out.gguf", "gguf-lora", &[], &["adapter_config.json"]),
        ("clamped", "out.gguf", "gguf", &[], &["`swiglu_limit` 5", "GGUF", "7"]),
        ("clamped", "out", "ollama", &[], &["`swiglu_limit` 5"]),
        ("plain", "out", "openai", &[], &["ft quantize --to mxfp4"]),
        ("short.gguf", "out", "safetensors", &[], &["short.gguf", "truncated"]),
        ("short.gguf", "out.gguf", "gguf:q8_0", &[], &["short.gguf", "truncated"]),
        ("damaged.gguf", "out", "safetensors:bf16", &[], &["blk.0.ffn_down_exps.weight", "expert 2", "damaged"]),
        ("damaged.gguf", "out.gguf", "gguf:q4_k_m", &[], &["blk.0.ffn_down_exps.weight", "expert 2", "damaged"]),
        ("damaged-q4.gguf", "out", "safetensors:bf16", &[], &["blk.0.ffn_down_exps.weight", "damaged"]),
        ("model", "out.gguf", "gguf", &wide, &["`--base` has no effect"]),
        ("model", "out.gguf", "gguf", &["--no-verify", "--fail-below", "3"], &["`--no-verify` has no effect"]),
        ("nothing", "out.gguf", "gguf", &[], &["nothing"]),
    ] {
        let said = project.export(model, out, to, arguments);
        assert_eq!(said.code, Some(1), "{model} to {to}: {}", said.stderr);
        assert!(says.iter().all(|part| said.stderr.contains(part)), "{model} to {to}: {}", said.stderr);
        assert_eq!(project.names(), before, "{model} to {to}");
        assert_eq!(crate::names(&project.path("full")), ["notes.txt"], "{model} to {to}");
    }
}

/// With files limited to less than the result, writing fails in the middle as it does on a full disk.
#[test]
fn a_disk_that_is_too_small_leaves_nothing() {
    let project = Project::new("export-full");
    project.init("model", "mxfp4", &["rope_scaling.truncate=false"]);
    let before = project.names();
    for (out, to) in [("out.gguf", "gguf:f32"), ("out", "gguf:f32"), ("out", "ollama:q8_0"), ("out", "safetensors:bf16"), ("out", "openai")]
    {
        let mut command = Command::new("bash");
        // In units of 1024 bytes; without the signal, which would end the program.
        command.args(["-c", "trap '' XFSZ; ulimit -f 300; exec \"$0\" \"$@\""]).arg(built("ft")).arg("export");
        command.args(["model", out].map(|name| project.path(name))).args(["--to", to]).current_dir(repository()).env("NO_COLOR", "1");
        let said = run(&mut command);
        assert_eq!(said.code, Some(3), "{to}: {}", said.stderr);
        assert!(said.stderr.contains("free some space"), "{to}: {}", said.stderr);
        assert_eq!(project.names(), before, "{to}");
    }
}

/// Killed at moments spread over the run, it leaves nothing under the result's name, and the next run does the whole.
#[test]
fn a_killed_export_leaves_nothing_that_looks_finished() {
    let project = Project::new("export-killed");
    project.init("model", "mxfp4", &["hidden_size=256", "intermediate_size=512", "num_local_experts=16"]);
    let started = Instant::now();
    project.exported("model", "out", "ollama:q8_0", &[]);
    let whole = started.elapsed();
    let expected = crate::names(&project.path("out"));
    let mut killed = 0;
    // In the first three quarters of that time, in case the first run was slowed down by others.
    for moment in 1..=6 {
        fs::remove_dir_all(project.path("out")).expect("the result can be removed");
        let mut command = ft(["export", "--to", "ollama:q8_0"]);
        command.args(["model", "out"].map(|name| project.path(name))).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("ft starts");
        std::thread::sleep(whole * moment / 8 + Duration::from_millis(1));
        child.kill().expect("it can be killed");
        let was_killed = !child.wait().expect("it ends").success();
        killed += u32::from(was_killed);
        if !project.path("out").exists() {
            project.exported("model", "out", "ollama:q8_0", &[]);
        }
        assert_eq!(crate::names(&project.path("out")), expected, "after {moment} eighths");
    }
    assert!(killed >= 3, "only {killed} runs were stopped in time");
    assert_eq!(project.names(), ["model", "out"]);
}
