//! `ft plan` for models of full size, whose weights are holes in files, and every recipe that comes with ft.

use std::path::{Path, PathBuf};

use ft_formats::checkpoint::{Config, ExpertStorage};
use ft_tests::conversations::{conversations, jsonl};
use ft_tests::metrics;
use ft_tests::program::{Said, ft, repository, run, succeed};
use ft_tests::scratch::{Scratch, names};
use ft_tests::sparse::sparse_model;
use serde_json::Value;

/// The published models, in a folder of a few hundred kilobytes.
fn models() -> Scratch {
    let scratch = Scratch::new("plan");
    for (name, config) in [("gpt-oss-20b", Config::gpt_oss_20b()), ("gpt-oss-120b", Config::gpt_oss_120b())] {
        sparse_model(&scratch.join(name), &config, ExpertStorage::Mxfp4);
    }
    scratch
}

/// Plans `recipe` with these arguments, as JSON.
fn plan(recipe: &Path, arguments: &[&str]) -> (Said, Value) {
    let said = run(ft(["plan", "--json"]).arg(recipe).args(arguments));
    let value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {}\n{}", said.stdout, said.stderr));
    (said, value)
}

fn number(value: &Value, keys: &str) -> f64 {
    let found = keys.split('.').fold(value, |value, key| &value[key]);
    found.as_f64().unwrap_or_else(|| panic!("`{keys}` is no number in {value}"))
}

fn class(memory: &Value, name: &str, place: &str) -> f64 {
    let classes = memory["classes"].as_array().expect("classes");
    classes.iter().filter(|class| class["name"] == name && class["place"] == place).map(|class| number(class, "bytes")).sum()
}

/// The number before ` GB of` and these words in the comment at the head of a recipe.
fn stated(recipe: &Path, what: &str) -> Option<f64> {
    let text = std::fs::read_to_string(recipe).expect("a recipe can be read");
    let head: String = text.lines().take_while(|line| line.starts_with('#')).collect();
    let (before, _) = head.split_once(&format!(" GB of {what}"))?;
    before.rsplit(' ').next()?.parse().ok()
}

#[test]
fn recipes_state_the_memory_that_their_plans_come_to() {
    let models = models();
    let nano = models.join("nano");
    succeed(ft(["init", "--preset", "nano"]).arg(&nano));
    let folder = repository().join("recipes");
    let recipes: Vec<PathBuf> = names(&folder).into_iter().filter(|name| name.ends_with(".toml")).map(|name| folder.join(name)).collect();
    assert!(recipes.len() >= 6, "{recipes:?}");
    for recipe in recipes {
        let text = std::fs::read_to_string(&recipe).expect("a recipe can be read");
        let model =
            ["gpt-oss-120b", "gpt-oss-20b", "nano"].into_iter().find(|name| text.contains(&format!("models/{name}\""))).expect("a model");
        let path = format!("model.path={}", models.join(model).display());
        let arguments = if model == "nano" { vec!["--set", &path] } else { vec!["--set", &path, "--device-memory", "300GB"] };
        let (said, value) = plan(&recipe, &arguments);
        assert_eq!(said.code, Some(0), "{}: {}", recipe.display(), said.stderr);
        let (what, key) = if model == "nano" { ("memory", "host_bytes") } else { ("GPU memory", "device_bytes") };
        let estimate = number(&value["plan"]["memory_of_full_batches"], key) / 1e9;
        let stated = stated(&recipe, what).unwrap_or_else(|| panic!("{} does not state its memory", recipe.display()));
        assert!((estimate - stated).abs() <= 0.5, "{} states {stated} GB, and its plan is {estimate:.2} GB", recipe.display());
    }
}

#[test]
fn classes_sum_to_the_totals_and_weights_to_the_published_sizes() {
    let models = models();
    let recipe = repository().join("recipes/coding.toml");
    let path = format!("model.path={}", models.join("gpt-oss-20b").display());
    let (said, value) = plan(&recipe, &["--set", &path, "--device-memory", "80GB"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let plan = &value["plan"];
    for memory in [&plan["memory"], &plan["memory_of_full_batches"]] {
        for place in ["device", "host"] {
            let classes = memory["classes"].as_array().expect("classes");
            let sum: f64 = classes.iter().filter(|class| class["place"] == place).map(|class| number(class, "bytes")).sum();
            assert_eq!(sum, number(memory, &format!("{place}_bytes")), "{memory}");
        }
    }
    let memory = &plan["memory"];
    // 24 layers of 32 experts of 3 x 2,880 x 2,880 weights, 17 bytes for 32 of them.
    assert_eq!(class(memory, "packed experts", "device"), 24.0 * 32.0 * 3.0 * 2880.0 * 2880.0 * 17.0 / 32.0);
    assert_eq!(class(memory, "embedding", "host"), 201_088.0 * 2880.0 * 2.0);
    // `metadata.total_size` of the published index.
    let weights = class(memory, "packed experts", "device") + class(memory, "other weights", "device") + class(memory, "embedding", "host");
    assert_eq!(weights, 13_761_264_768.0);
    assert_eq!(number(plan, "disk.merged_model_bytes"), 13_761_264_768.0);
    // Of rank 16 on every expert: 16 x (2,880 + 5,760 + 2,880 + 2,880) x 32; on attention 16 x (2 x 6,976 + 2 x 3,392).
    let trained = 24.0 * 16.0 * (14_400.0 * 32.0 + 2.0 * 6976.0 + 2.0 * 3392.0);
    assert_eq!(class(memory, "adapters", "device"), trained * 4.0);
    assert_eq!(class(memory, "optimizer", "device"), trained * 8.0);
    assert!(plan["expected_seconds"].is_null(), "the device is not known, so that no time can be said");
}

#[test]
fn what_does_not_fit_is_refused_with_settings_that_make_it_fit() {
    let models = models();
    let recipe = repository().join("recipes/coding.toml");
    let path = format!("model.path={}", models.join("gpt-oss-20b").display());
    let cases: [(&str, &[&str]); 5] = [
        ("24GB", &["model.experts=bf16"]),
        ("40GB", &["training.batch_sequences=4", "training.checkpoint_activations=false"]),
        ("20GiB", &["training.batch_sequences=4"]),
        ("16GB", &["dataset.max_tokens=2048"]),
        ("18GB", &["dataset.max_tokens=4096", "training.accumulation_steps=1"]),
    ];
    for (size, settings) in cases {
        let mut arguments = vec!["--device-memory", size, "--set", &path];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let (said, value) = plan(&recipe, &arguments);
        let plan_of = &value["plan"];
        assert_eq!(said.code, Some(3), "{size}, {settings:?}: {}", said.stderr);
        assert_eq!((&value["fits"], &plan_of["shortage"]["resource"]), (&Value::Bool(false), &Value::from("device memory")));
        let remedy = &plan_of["shortage"]["remedy"];
        assert_eq!(remedy["suffices"], true, "{remedy}");
        let proposed: Vec<String> = remedy["settings"]
            .as_array()
            .expect("settings")
            .iter()
            .map(|setting| setting.as_str().expect("a setting").replace(" = ", "=").replace('"', ""))
            .collect();
        assert!(!proposed.is_empty());
        for setting in remedy["settings"].as_array().expect("settings") {
            let setting = setting.as_str().expect("a setting");
            assert!(said.stderr.contains(&format!("`{setting}`")), "{setting} is not in the message:\n{}", said.stderr);
        }
        // With them it fits, and takes what was said.
        arguments.extend(proposed.iter().flat_map(|setting| ["--set", setting]));
        let (said, changed) = plan(&recipe, &arguments);
        assert_eq!(said.code, Some(0), "{size}, {proposed:?}: {}", said.stderr);
        assert_eq!(number(&changed["plan"], "memory.device_bytes"), number(remedy, "needed_bytes"), "{size}, {proposed:?}");
    }
    let full = repository().join("recipes/full-20b.toml");
    let (said, value) = plan(&full, &["--device-memory", "141GB", "--set", &path]);
    assert_eq!((said.code, &value["plan"]["shortage"]["remedy"]["suffices"]), (Some(3), &Value::Bool(false)));
    assert!(said.stderr.contains("no setting makes it fit") && said.stderr.contains("a device of 288 GB"), "{}", said.stderr);
}

#[test]
fn a_dry_run_is_a_plan_and_neither_writes_anything() {
    let models = models();
    let runs = models.join("runs");
    let arguments = [
        "--set".to_owned(),
        format!("model.path={}", models.join("gpt-oss-20b").display()),
        "--set".to_owned(),
        format!("output.directory={}", runs.display()),
    ];
    let recipe = repository().join("recipes/coding.toml");
    let [dry, planned] =
        [vec!["train", "--dry-run", "--json"], vec!["plan", "--json"]].map(|verb| run(ft(verb).arg(&recipe).args(&arguments)));
    // Whether 20b fits this machine may change from one moment to the next.
    assert!([dry.code, planned.code].iter().all(|code| matches!(code, Some(0 | 3))), "{}\n{}", dry.stderr, planned.stderr);
    let [dry, planned] = [dry, planned].map(|said| serde_json::from_str::<Value>(&said.stdout).expect("JSON"));
    for key in ["steps", "memory", "work", "trained_parameters"] {
        assert_eq!(dry["plan"][key], planned["plan"][key], "{key}");
    }
    assert!(!runs.exists());
}

#[test]
fn training_says_how_fast_it_computes_and_a_plan_how_much_memory_it_takes() {
    let scratch = Scratch::new("plan-run");
    succeed(ft(["init", "--preset", "nano"]).arg(scratch.join("nano")));
    scratch.write("train.jsonl", jsonl(&conversations(8)));
    let text = format!(
        "[model]\npath = \"{folder}/nano\"\n[dataset]\ntrain = [\"{folder}/train.jsonl\"]\nmax_tokens = 512\n[training]\nsteps = 3\n\
         accumulation_steps = 1\noffload_activations = true\n[output]\ndirectory = \"{folder}/runs\"\nname = \"run\"\n",
        folder = scratch.display()
    );
    let recipe = scratch.write("recipe.toml", text);
    let (said, value) = plan(&recipe, &[]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!((number(&value["plan"], "memory.device_bytes"), &value["plan"]["device"]), (0.0, &Value::from("cpu")));
    let said = run(ft(["train"]).arg(&recipe));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("`training.offload_activations` has no effect on a CPU"), "{}", said.stderr);
    let lines = metrics::lines(&scratch.join("runs/run"));
    let step = lines.iter().rfind(|line| line.get("loss").is_some()).expect("a step");
    assert!(step.get("model_flops_utilization").is_none() && step.get("host_peak_memory_bytes").is_none(), "{step}");
    // 4 layers of 24,576 weights of attention, 512 of the router and 2 experts of 18,432; a head of 201,088 x 64 for trained tokens.
    let (tokens, trained) = (number(step, "tokens"), number(step, "trained_tokens"));
    let frozen = 4.0 * 4.0 * (24_576.0 + 512.0 + 2.0 * 18_432.0) * tokens + 4.0 * 201_088.0 * 64.0 * trained;
    let flops = number(step, "flops_per_second") * number(step, "step_seconds");
    assert!(flops > frozen && flops < 2.0 * frozen, "{flops:e} operations, of which {frozen:e} in frozen matrices");
    let (estimate, measured) = (number(&value["plan"], "memory.host_bytes"), number(step, "peak_memory_bytes"));
    eprintln!("memory of a nano run: {:.2} GB by the plan, {:.2} GB at the most", estimate / 1e9, measured / 1e9);
}
