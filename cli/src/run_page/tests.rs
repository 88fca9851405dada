//! Whole pages, of runs of every kind.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;

/// A run directory with the files that `files` names.
fn run(files: &[(&str, String)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Lines of `steps` steps, with evaluations and the routing of a model of `layers` layers and `experts` experts.
fn metrics(steps: u64, layers: usize, experts: usize) -> String {
    let mut text = String::new();
    for step in 1..=steps {
        let progress = step as f64 / steps as f64;
        let noise = ((step as f64 * 12.9898).sin() * 43758.5453).rem_euclid(1.0) - 0.5;
        let loss = 1.2 + 1.9 * (-4.0 * progress).exp() + 0.3 * noise;
        let line = json!({
            "step": step, "loss": loss, "learning_rate": 2e-4 * (progress * 30.0).min(1.0) * (1.0 - 0.9 * progress),
            "gradient_norm": 0.6 + noise.abs() + if step % 97 == 0 { 9.0 } else { 0.0 }, "tokens": 65_536, "trained_tokens": 30_000,
            "step_seconds": 4.5 + noise, "tokens_per_second": 65_536.0 / (4.5 + noise), "epoch": progress * 2.0, "model_flops_utilization": 0.381,
            "peak_memory_bytes": 31_000_000_000u64 + (step.min(40)) * 50_000_000,
        });
        text += &format!("{line}\n");
        if step % (steps / 50).max(1) == 0 || step == 1 {
            let load: Vec<Vec<f64>> = (0..layers)
                .map(|layer| {
                    let raw: Vec<f64> = (0..experts)
                        .map(|expert| {
                            let spread = ((layer * 31 + expert * 17) as f64 * 7.13).sin();
                            if (layer * experts + expert) % 191 == 5 { 0.0 } else { (spread * (1.0 + progress)).exp() }
                        })
                        .collect();
                    let sum: f64 = raw.iter().sum();
                    raw.iter().map(|load| load / sum * 4.0).collect()
                })
                .collect();
            let entropy: Vec<f64> =
                (0..layers).map(|layer| (experts as f64).ln() * (0.85 - 0.3 * progress * ((layer as f64 * 0.7).sin().abs()))).collect();
            text += &format!("{}\n", json!({"step": step, "router_entropy": entropy, "expert_load": load, "idle_experts": 1}));
        }
        if step % (steps / 10).max(1) == 0 {
            text += &format!(
                "{}\n",
                json!({"step": step, "validation_loss": loss + 0.1 - 0.3 * noise, "validation_trained_tokens": 9, "validation_seconds": 1.0})
            );
        }
    }
    text
}

const RECIPE: &str = "[model]\npath = \"models/gpt-oss-20b\"\nexperts = \"mxfp4\"\n[dataset]\ntrain = [\"data/<coding>.jsonl\"]\nmax_tokens = 4096\n\
    [lora]\nrank = 32\nalpha = 32.0\n[optimizer]\nlearning_rate = 1e-4\nmax_gradient_norm = 1.0\n[training]\nsteps = 500\n";

fn record() -> String {
    json!({
        "version": 1, "ft_version": "0.1.0", "libtorch_version": "2.11.0",
        "host": {"name": "box", "cpu": "A CPU", "cores": 16, "memory_bytes": 128_000_000_000u64, "system": "linux 6.1", "driver": "580.65"},
        "sessions": [{"command": ["ft", "train", "<r>.toml"], "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T01:00:00Z",
            "state": "failed", "first_step": 0, "last_step": 500, "seconds": 3600.0, "error": "the loss is not finite in <b>x</b>"}],
        "plan": {"steps": 500, "device": "cuda:0", "device_name": "NVIDIA H100 80GB HBM3", "dtype": "bf16", "train_samples": 9000,
            "memory": {"classes": [{"name": "weights", "place": "device", "bytes": 14_000_000_000u64}, {"name": "activations", "place": "device", "bytes": 9_000_000_000u64}],
                "device_bytes": 36_000_000_000u64, "host_bytes": 4_000_000_000u64},
            "dataset": {"conversations": 9100, "samples": 9000, "tokens": 12_345_678, "trained": {"analysis": 4_000_000, "final": 2_000_000},
                "lengths": {"shortest": 90, "median": 1200, "longest": 4096, "buckets": [[128, 3], [256, 90], [512, 800], [1024, 3000], [2048, 4107], [4096, 1000]]}}},
    }).to_string()
}

const SAMPLES: &str = "## Step 100\n\n**Why is the sky blue?**\n\n```text\n<|channel|>analysis<|message|>They ask about <i>scattering</i>.<|end|><|start|>assistant\
    <|channel|>final<|message|>Rayleigh scattering.<|return|>\n```\n\n";

fn complete(steps: u64, layers: usize, experts: usize) -> tempfile::TempDir {
    run(&[
        ("metrics.jsonl", metrics(steps, layers, experts)),
        ("recipe.toml", RECIPE.to_owned()),
        ("run.json", record()),
        ("samples.md", SAMPLES.to_owned()),
        ("run.log", "2026-01-01T00:00:00Z start: <500> steps\n".to_owned()),
    ])
}

/// Elements are closed in order, ids are unique, and nothing points outside. `void` elements close themselves.
fn assert_sound(page: &str) {
    let (body, script) = page.split_once("<script type=\"application/json\"").expect("the page's data");
    let body = body.replace("<!DOCTYPE html>", "");
    let (start, end) = (body.find("<style>").unwrap(), body.find("</style>").unwrap());
    let body = format!("{}{}", &body[..start], &body[end + "</style>".len()..]);
    let mut open: Vec<&str> = Vec::new();
    let mut ids: Vec<&str> = Vec::new();
    for tag in body.split('<').skip(1) {
        let tag = tag.split_once('>').expect("a tag ends").0;
        if let Some(id) = tag.split_once(" id=\"").map(|(_, rest)| rest.split('"').next().unwrap()) {
            assert!(!ids.contains(&id), "two elements have the id {id}");
            ids.push(id);
        }
        for attribute in [" src=", " href=", "url("] {
            assert!(!tag.contains(attribute), "{tag}");
        }
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "closed by </{name}>"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split(' ').next().unwrap()),
        }
    }
    assert_eq!(open, ["html", "body"], "open at the scripts");
    assert_eq!(script.matches("</script>").count(), 2);
    for text in ["NaN", "inf%", "null%", "http:", "https:"] {
        assert!(!body.contains(text), "{text}");
    }
}

#[test]
fn a_whole_run_is_on_the_page() {
    let folder = complete(500, 24, 32);
    let page = render(folder.path()).unwrap();
    assert_sound(&page);
    for words in [
        "<span class=\"badge failed\">failed</span> step 500 of 500",
        "the loss is not finite in &lt;b&gt;x&lt;/b&gt;",
        "<h2 id=\"training\">",
        "<h2 id=\"routing\">",
        "<h2 id=\"samples\">",
        "<h2 id=\"recipe\">",
        "<h2 id=\"data\">",
        "<h2 id=\"environment\">",
        "<h2 id=\"log\">",
        "clipped to 1",
        "planned 36.0 GB",
        "experts got no token",
        "They ask about &lt;i&gt;scattering&lt;/i&gt;.",
        "data/&lt;coding&gt;.jsonl",
        "NVIDIA H100 80GB HBM3",
        "up to 2,048",
        "12,345,678",
        "start: &lt;500&gt; steps",
        "3.466 nats",
    ] {
        assert!(page.replace("&#39;", "'").contains(words) || page.contains(words), "no {words}");
    }
}

#[test]
fn the_numbers_at_the_top_are_those_of_the_lines() {
    let lines = "{\"step\":1,\"loss\":3.25,\"tokens\":100,\"trained_tokens\":40,\"step_seconds\":2.0,\"tokens_per_second\":50.0}\n\
                 {\"step\":2,\"loss\":1.5,\"tokens\":300,\"trained_tokens\":60,\"step_seconds\":2.0,\"tokens_per_second\":150.0}\n\
                 {\"step\":2,\"validation_loss\":1.75}\n{\"step\":3,\"lo";
    let folder = run(&[("metrics.jsonl", lines.to_owned())]);
    let page = render(folder.path()).unwrap();
    assert_sound(&page);
    for words in [
        "<strong>1.5000</strong><span>from 3.2500 in the first step",
        "<strong>1.7500</strong>",
        "<strong>400</strong><span>100 trained",
        "not finished</span> step 2<",
    ] {
        assert!(page.contains(words), "no {words} in {page}");
    }
}

#[test]
fn a_run_before_its_first_step_and_none_at_all() {
    let folder = run(&[("recipe.toml", RECIPE.to_owned())]);
    let page = render(folder.path()).unwrap();
    assert_sound(&page);
    assert!(page.contains("No step is done yet."));
    let folder = run(&[("config.json", "{}".to_owned())]);
    assert!(matches!(render(folder.path()), Err(Error::NoRun { .. })));
    assert!(matches!(render(Path::new("/nowhere/at/all")), Err(Error::NoRun { .. })));
}

#[test]
fn the_longest_run_of_the_largest_model_is_a_page_of_moderate_size() {
    let folder = complete(100_000, 36, 128);
    let page = render(folder.path()).unwrap();
    assert_sound(&page);
    assert!(page.len() < 1_200_000, "{} bytes", page.len());
}

/// Writes pages to look at: `FT_PAGES=folder cargo test -p ft run_page`.
#[test]
fn pages_to_look_at() {
    let Some(folder) = std::env::var_os("FT_PAGES") else { return };
    for (name, steps, layers, experts) in [("run-small", 12, 4, 8), ("run-20b", 500, 24, 32), ("run-120b", 100_000, 36, 128)] {
        let run = complete(steps, layers, experts);
        fs::write(Path::new(&folder).join(format!("{name}.html")), render(run.path()).unwrap()).unwrap();
    }
}
