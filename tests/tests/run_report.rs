//! What a run leaves beside its numbers: run.json, run.log, and a page that is sound by Python's parser and by a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ft_tests::conversations::{conversations, jsonl};
use ft_tests::metrics;
use ft_tests::program::{ft, peer, run, succeed};
use ft_tests::scratch::Scratch;
use serde_json::Value;

const EXPERTS: usize = 5;
const EXPERTS_PER_TOKEN: usize = 3;
const LAYERS: usize = 3;

/// A tiny model, and a recipe of `steps` steps whose file and prompt hold what must not mark up.
fn project(name: &str, steps: usize) -> (Scratch, PathBuf) {
    let scratch = Scratch::new(name);
    let model = scratch.join("model");
    let sizes = [
        "hidden_size=96".to_owned(),
        "intermediate_size=32".to_owned(),
        format!("num_hidden_layers={LAYERS}"),
        "num_attention_heads=4".to_owned(),
        "num_key_value_heads=2".to_owned(),
        "head_dim=16".to_owned(),
        format!("num_local_experts={EXPERTS}"),
        format!("num_experts_per_tok={EXPERTS_PER_TOKEN}"),
        "sliding_window=16".to_owned(),
    ];
    let mut init = ft(["init", "--preset", "nano", "--seed", "5"]);
    succeed(init.arg(&model).args(sizes.iter().flat_map(|size| ["--set", size])));
    let data = scratch.write("<train> & more.jsonl", jsonl(&conversations(24)));
    let validation = scratch.write("validation.jsonl", jsonl(&conversations(3)));
    let recipe = format!(
        r#"
[model]
path = "{}"

[dataset]
train = ["{}"]
validation = ["{}"]

[lora]
rank = 4
alpha = 8.0

[training]
steps = {steps}
batch_sequences = 2
accumulation_steps = 2

[checkpoint]
every_steps = 2

[evaluation]
every_steps = 4

[sampling]
every_steps = 0
prompts = ["</script><script>alert('1 & 2')</script>\u0007\u202e?"]

[output]
directory = "{}"
name = "run"
"#,
        model.display(),
        data.display(),
        validation.display(),
        scratch.join("runs").display(),
    );
    let recipe = scratch.write("recipe.toml", recipe);
    (scratch, recipe)
}

fn record(run: &Path) -> Value {
    let text = fs::read_to_string(run.join("run.json")).expect("run.json is there");
    serde_json::from_str(&text).expect("run.json is JSON")
}

/// What Python's parser finds in a page: an object with `headings`, `figures` and `words`.
fn parsed(page: &Path) -> Value {
    serde_json::from_str(&succeed(&mut peer("page.py", [page]))).expect("the peer writes JSON")
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().filter_map(Value::as_str).collect()
}

#[test]
fn a_run_leaves_its_page_its_record_and_its_log() {
    let (scratch, recipe) = project("run-report", 8);
    succeed(ft(["train"]).arg(&recipe).args(["--set", "dataset.max_tokens=512"]));
    let run = scratch.join("runs/run");

    // The routers' line: shares of the tokens, for every layer and expert.
    let lines = metrics::lines(&run);
    let routing: Vec<&Value> = lines.iter().filter(|line| line.get("router_entropy").is_some()).collect();
    assert_eq!(routing.len(), 8, "a short run reports at every step");
    for line in &routing {
        let step =
            lines.iter().find(|other| other.get("loss").is_some() && other["step"] == line["step"]).expect("a step of the same number");
        let tokens = step["tokens"].as_f64().expect("tokens");
        let layers = line["expert_load"].as_array().expect("layers");
        assert_eq!((layers.len(), line["router_entropy"].as_array().map(Vec::len)), (LAYERS, Some(LAYERS)));
        let mut idle = 0;
        for layer in layers {
            let loads: Vec<f64> = layer.as_array().expect("experts").iter().filter_map(Value::as_f64).collect();
            assert_eq!(loads.len(), EXPERTS);
            assert!((loads.iter().sum::<f64>() - EXPERTS_PER_TOKEN as f64).abs() < 1e-9, "{loads:?}");
            assert!(loads.iter().all(|load| (load * tokens - (load * tokens).round()).abs() < 1e-6), "whole tokens: {loads:?}");
            idle += loads.iter().filter(|load| **load == 0.0).count();
        }
        assert_eq!(line["idle_experts"].as_u64(), Some(idle as u64));
        let entropies = line["router_entropy"].as_array().expect("entropies").iter().filter_map(Value::as_f64);
        entropies.for_each(|entropy| assert!(entropy > 0.0 && entropy <= (EXPERTS as f64).ln() + 1e-6, "{entropy}"));
    }

    let record = record(&run);
    assert_eq!(record["version"], 1);
    let session = &record["sessions"][0];
    assert_eq!(
        (session["state"].as_str(), session["first_step"].as_u64(), session["last_step"].as_u64()),
        (Some("finished"), Some(0), Some(8))
    );
    assert!(texts(&session["command"]).contains(&"dataset.max_tokens=512"), "{session}");
    assert!(
        record["host"]["cores"].as_u64() > Some(0) && record["plan"]["steps"] == 8 && record["libtorch_version"].is_string(),
        "{record}"
    );

    let log = fs::read_to_string(run.join("run.log")).expect("run.log is there");
    for words in [
        "Z start: 8 steps, lora, ",
        "Z evaluation: step 4, ",
        "Z samples: step 8",
        "Z checkpoint: step 2, ",
        "Z finished: step 8, adapter in ",
    ] {
        assert!(log.contains(words), "no `{words}` in\n{log}");
    }

    let page = parsed(&run.join("report.html"));
    assert_eq!(texts(&page["headings"]), ["Training", "Routing", "Samples", "Recipe", "Data", "Environment", "Log"]);
    let steps = metrics::steps(&run);
    let last = steps.last().expect("steps");
    assert_eq!(texts(&page["figures"])[0], format!("{:.4}", last.loss));
    let validation = lines.iter().filter_map(|line| line.get("validation_loss")?.as_f64()).next_back().expect("evaluations");
    assert_eq!(texts(&page["figures"])[1], format!("{validation:.4}"));
    let words = texts(&page["words"]).join("\n");
    for expected in ["<train> & more.jsonl", "</script><script>alert('1 & 2')</script>\u{fffd}\u{fffd}?", "finished", "step 8 of 8"] {
        assert!(words.contains(expected), "no `{expected}` in\n{words}");
    }

    // Made again it is the same, also where it is asked for elsewhere.
    let elsewhere = scratch.join("elsewhere.html");
    let said = succeed(ft(["report"]).arg(&run).arg("--output").arg(&elsewhere));
    assert_eq!(said.trim(), elsewhere.display().to_string());
    assert!(
        fs::read(&elsewhere).expect("the page") == fs::read(run.join("report.html")).expect("the page"),
        "`ft report` draws another page"
    );

    in_a_browser(&elsewhere, &scratch);

    // An older run has neither record nor log, and its last line may be cut.
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    for name in ["run.json", "run.log"] {
        fs::remove_file(run.join(name)).expect("it was there");
    }
    fs::write(run.join("metrics.jsonl"), &text[..text.len() - 20]).expect("metrics.jsonl can be cut");
    succeed(ft(["report"]).arg(&run));
    assert_eq!(
        texts(&parsed(&run.join("report.html"))["headings"]),
        ["Training", "Routing", "Samples", "Recipe", "Data", "Environment", "Log"][..4]
    );
}

#[test]
fn a_run_that_broke_off_and_went_on_says_so() {
    let (scratch, recipe) = project("run-report-broken", 6);
    let diverging = ["--set", "optimizer.learning_rate=1e30", "--set", "training.dtype=f32", "--set", "output.name=diverged"];
    let said = run(ft(["train"]).arg(&recipe).args(diverging));
    assert!(said.code.is_some_and(|code| code != 0), "{said:?}");
    let diverged = scratch.join("runs/diverged");
    let session = &record(&diverged)["sessions"][0];
    assert_eq!(session["state"], "failed");
    let words = texts(&parsed(&diverged.join("report.html"))["words"]).join("\n");
    assert!(words.contains(session["error"].as_str().expect("an error")), "{words}");
    assert!(fs::read_to_string(diverged.join("run.log")).expect("run.log").contains("Z error: "));

    // The page of a run whose steps were all done by an earlier process.
    let mut command = ft(["train"]);
    command.arg(&recipe).args(["--set", "sampling.prompts=[]"]);
    succeed(&mut command);
    succeed(command.arg("--resume"));
    let run = scratch.join("runs/run");
    let record = record(&run);
    let states: Vec<&Value> = record["sessions"].as_array().expect("sessions").iter().map(|session| &session["state"]).collect();
    assert_eq!(states, ["finished", "finished"]);
    assert_eq!(record["sessions"][1]["first_step"], 6);
    assert!(fs::read_to_string(run.join("run.log")).expect("run.log").contains("Z going on after step 6: "));
    parsed(&run.join("report.html"));
}

#[test]
fn what_is_no_run_has_no_page() {
    let scratch = Scratch::new("no-run");
    let said = run(ft(["report"]).arg(&*scratch));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("holds no run") && said.stderr.contains("hint: "), "{}", said.stderr);
}

/// A page that shows `PAGE` in a frame of a given size, and says how wide the frame's content is and what its script met.
const PROBE: &str = r#"<!DOCTYPE html><title>probe</title><body><script>
const frame = document.createElement("iframe");
frame.style.cssText = "width: WIDTHpx; height: 800px; border: 0";
frame.src = "PAGE";
const said = [];
frame.onload = () => {
  const inside = frame.contentDocument;
  const places = [...inside.querySelectorAll("[data-plot], [data-map]")];
  frame.contentWindow.onerror = (message) => said.push(message);
  for (const place of places) {
    const box = place.getBoundingClientRect();
    for (const share of [0, 0.5, 1]) {
      const at = { clientX: box.left + share * box.width, clientY: box.top + share * box.height, bubbles: true };
      place.dispatchEvent(new frame.contentWindow.PointerEvent("pointermove", at));
    }
  }
  const slider = inside.querySelector(".slider input");
  slider.value = 0;
  slider.dispatchEvent(new frame.contentWindow.Event("input"));
  const told = inside.querySelectorAll(".says").length;
  const overflow = inside.documentElement.scrollWidth - inside.documentElement.clientWidth;
  document.body.textContent = `probe: overflow ${overflow}, told ${told} of ${places.length}, errors ${said.length} ${said}`;
};
document.body.append(frame);
</script>"#;

/// Loads the page in Chromium, as wide as a phone and as a desk. Without one this says so and checks nothing.
fn in_a_browser(page: &Path, scratch: &Scratch) {
    let chromium = std::env::var_os("CHROMIUM").map_or_else(|| PathBuf::from("/usr/bin/chromium"), PathBuf::from);
    if !chromium.is_file() {
        eprintln!("SKIPPED: {} is not there; set CHROMIUM to the path of one to load the page in it", chromium.display());
        return;
    }
    for width in [360, 1280] {
        let text = PROBE.replace("WIDTH", &width.to_string()).replace("PAGE", &format!("file://{}", page.display()));
        let probe = scratch.write(&format!("probe-{width}.html"), text);
        let profile = scratch.join(format!("profile-{width}"));
        let mut command = Command::new(&chromium);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]);
        command.args(["--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom"]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg(format!("--window-size={},900", width.max(500)));
        command.arg(format!("file://{}", probe.display()));
        let said = run(&mut command);
        let found = said.stdout.split("probe: ").nth(1).and_then(|rest| rest.split('<').next()).unwrap_or_default();
        assert_eq!(found.trim(), "overflow 0, told 7 of 7, errors 0", "{width} px wide:\n{}\n{}", said.stdout, said.stderr);
        assert!(!said.stderr.contains(":CONSOLE"), "{width} px wide:\n{}", said.stderr);
    }
}
