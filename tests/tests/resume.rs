//! Stopping and going on: kill -9, SIGINT, damaged checkpoints.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ft_tests::conversations::{conversations, jsonl};
use ft_tests::metrics;
use ft_tests::program::{ft, run, succeed};
use ft_tests::scratch::Scratch;

const STEPS: usize = 24;

/// A random model, conversations and a recipe, all in one folder.
struct Project {
    scratch: Scratch,
    recipe: PathBuf,
}

impl Project {
    fn new(name: &str, method: &str) -> Self {
        let scratch = Scratch::new(name);
        let model = scratch.join("model");
        let sizes = [
            "hidden_size=32",
            "intermediate_size=32",
            "num_hidden_layers=2",
            "num_attention_heads=4",
            "num_key_value_heads=2",
            "head_dim=16",
            "num_local_experts=4",
            "num_experts_per_tok=2",
            "sliding_window=16",
        ];
        let mut init = ft(["init", "--preset", "nano", "--seed", "5"]);
        succeed(init.arg(&model).args(sizes.iter().flat_map(|size| ["--set", size])));
        let data = scratch.write("train.jsonl", jsonl(&conversations(40)));
        let validation = scratch.write("validation.jsonl", jsonl(&conversations(4)));
        let recipe = format!(
            r#"
[model]
path = "{}"

[dataset]
train = ["{}"]
validation = ["{}"]

{method}

[optimizer]
learning_rate = 1e-3

[training]
steps = {STEPS}
batch_sequences = 2
accumulation_steps = 2

[checkpoint]
every_steps = 3
keep = 2

[evaluation]
every_steps = 5

[sampling]
every_steps = 10
prompts = ["What is 2 plus 2?"]

[output]
directory = "{}"
name = "unnamed"
"#,
            model.display(),
            data.display(),
            validation.display(),
            scratch.join("runs").display(),
        );
        let recipe = scratch.write("recipe.toml", recipe);
        Self { scratch, recipe }
    }

    fn train(&self, name: &str) -> std::process::Command {
        let mut command = ft(["train"]);
        command.arg(&self.recipe).arg("--set").arg(format!("output.name={name}"));
        command
    }

    fn run(&self, name: &str) -> PathBuf {
        self.scratch.join("runs").join(name)
    }

    /// Starts a run in the background and waits until `metrics.jsonl` holds `lines` steps.
    fn start_until(&self, name: &str, resume: bool, lines: usize) -> Child {
        let mut command = self.train(name);
        if resume {
            command.arg("--resume");
        }
        let log = fs::File::create(self.scratch.join(format!("{name}.log"))).expect("a log can be made");
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn().expect("ft starts");
        let metrics = self.run(name).join("metrics.jsonl");
        let patience = Instant::now() + Duration::from_secs(180);
        while count_lines(&metrics) < lines {
            assert!(Instant::now() < patience, "no {lines} lines in {} after 180 s", metrics.display());
            if let Some(status) = child.try_wait().expect("a child can be asked") {
                assert!(count_lines(&metrics) >= lines, "ft ended early with {status}: see {}.log", name);
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }
}

/// Steps that are written down.
fn count_lines(path: &Path) -> usize {
    let is_step = |line: &&[u8]| line.ends_with(b"\n") && line.windows(15).any(|key| key == b"\"learning_rate\"");
    fs::read(path).map_or(0, |bytes| bytes.split_inclusive(|&byte| byte == b'\n').filter(is_step).count())
}

/// Every file below a folder with its bytes.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![directory.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).expect("a file can be read");
                found.insert(path.strip_prefix(directory).expect("a file below the folder").to_path_buf(), bytes);
            }
        }
    }
    found
}

fn assert_same_outcome(project: &Project, whole: &str, pieced: &str, result: &str) {
    assert_eq!(metrics::repeatable(&project.run(pieced)), metrics::repeatable(&project.run(whole)), "metrics.jsonl");
    let (whole, pieced) = (contents(&project.run(whole).join(result)), contents(&project.run(pieced).join(result)));
    assert!(whole.keys().eq(pieced.keys()), "files: {:?} and {:?}", whole.keys(), pieced.keys());
    for (file, bytes) in whole {
        assert!(pieced[&file] == bytes, "{result}/{} is not the same", file.display());
    }
}

/// A number below `limit`, another one each time: the moments of death are meant to differ from run to run.
fn anything_below(limit: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    (u64::from(now.subsec_nanos()) / 1000).wrapping_mul(6_364_136_223_846_793_005) % limit
}

/// Kills a run with SIGKILL at random moments, resumes it each time, and lets the last one finish.
fn kill_and_resume(project: &Project, name: &str, deaths: usize) {
    for death in 0..deaths {
        let reached = count_lines(&project.run(name).join("metrics.jsonl"));
        let further = 1 + usize::try_from(anything_below(4)).expect("a small number");
        let mut child = project.start_until(name, death > 0, (reached + further).min(STEPS - 1));
        let delay = Duration::from_micros(anything_below(400_000));
        std::thread::sleep(delay);
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
        eprintln!("killed {delay:?} after line {} of metrics.jsonl", reached + further);
    }
    succeed(project.train(name).arg("--resume"));
}

#[test]
fn a_run_killed_five_times_ends_as_if_it_never_was() {
    let project = Project::new("kill-lora", "[lora]\nrank = 4\nalpha = 8.0");
    succeed(&mut project.train("whole"));
    kill_and_resume(&project, "pieced", 5);
    assert_same_outcome(&project, "whole", "pieced", "adapter");
}

#[test]
fn full_training_survives_kills_too() {
    let project = Project::new("kill-full", "[full]");
    succeed(&mut project.train("whole"));
    kill_and_resume(&project, "pieced", 2);
    assert_same_outcome(&project, "whole", "pieced", "model");
}

/// The wide ranks make the updates of experts large enough to have moments of 8 bits; those of attention keep f32 ones.
#[test]
fn moments_of_eight_bits_survive_kills_and_are_told_from_others() {
    let project = Project::new("kill-8bit", "[lora]\nrank = 48\nalpha = 96.0");
    let recipe = fs::read_to_string(&project.recipe).expect("the recipe can be read");
    let recipe = recipe.replace("[optimizer]\n", "[optimizer]\nkind = \"adamw_8bit\"\n");
    fs::write(&project.recipe, recipe).expect("the recipe can be written");
    succeed(&mut project.train("whole"));
    let losses = |run: &str| metrics::steps(&project.run(run)).iter().map(|step| step.loss).collect::<Vec<_>>();
    succeed(project.train("float").args(["--set", "optimizer.kind=adamw"]));
    assert_ne!(losses("whole"), losses("float"), "moments of 8 bits change the losses");
    kill_and_resume(&project, "pieced", 2);
    assert_same_outcome(&project, "whole", "pieced", "adapter");

    let said = run(project.train("pieced").args(["--resume", "--set", "optimizer.kind=adamw"]));
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    for words in ["8-bit moments", "f32 moments", "optimizer.kind"] {
        assert!(said.stderr.contains(words), "nothing about `{words}`:\n{}", said.stderr);
    }
}

#[test]
fn interrupts_write_a_checkpoint_and_a_damaged_one_is_passed_over() {
    let project = Project::new("interrupt", "[lora]\nrank = 4\nalpha = 8.0");
    succeed(&mut project.train("whole"));

    for signal in [libc::SIGINT, libc::SIGTERM] {
        let lines = count_lines(&project.run("pieced").join("metrics.jsonl"));
        let mut child = project.start_until("pieced", lines > 0, lines + 4);
        let id = i32::try_from(child.id()).expect("process ids are small");
        // SAFETY: the child has not been waited for, so that its id is still its own.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
        let status = child.wait().expect("a child can be waited for");
        assert_eq!(status.code(), Some(4), "exit code after signal {signal}");
        let step = metrics::steps(&project.run("pieced")).last().expect("steps were made").step;
        let newest = newest_checkpoint(&project.run("pieced"));
        assert_eq!(newest.file_name().and_then(|name| name.to_str()), Some(format!("step-{step}").as_str()));
    }

    // One flipped byte in the largest file of the newest checkpoint.
    let newest = newest_checkpoint(&project.run("pieced"));
    let (file, mut bytes) = contents(&newest).into_iter().max_by_key(|(_, bytes)| bytes.len()).expect("a checkpoint has files");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(newest.join(&file), bytes).expect("the checkpoint can be damaged");
    let said = run(project.train("pieced").arg("--resume"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let name = newest.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(said.stderr.contains(&name), "the damaged {name} is passed over without a word:\n{}", said.stderr);
    assert_same_outcome(&project, "whole", "pieced", "adapter");

    // Going on with a finished run changes nothing.
    let before = contents(&project.run("pieced").join("adapter"));
    succeed(project.train("pieced").arg("--resume"));
    assert!(before == contents(&project.run("pieced").join("adapter")), "resuming a finished run changed its adapter");
    assert_same_outcome(&project, "whole", "pieced", "adapter");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_is_never_saved() {
    let project = Project::new("diverge", "[lora]\nrank = 4\nalpha = 8.0");
    let settings = ["optimizer.learning_rate=1e30", "training.dtype=f32", "checkpoint.every_steps=1", "checkpoint.keep=100"];
    let said = run(project.train("diverged").args(settings.iter().flat_map(|setting| ["--set", setting])));
    assert!(said.code.is_some_and(|code| code != 0), "{said:?}");
    for word in ["error: ", "hint: ", "train.jsonl:", "step"] {
        assert!(said.stderr.contains(word), "nothing about `{word}`:\n{}", said.stderr);
    }
    let directory = project.run("diverged");
    let steps = metrics::steps(&directory);
    assert!(steps.iter().all(|step| step.loss.is_finite() && step.gradient_norm.is_finite()), "{steps:?}");
    let last = steps.last().expect("the first step is sound").step;
    let newest = newest_checkpoint(&directory);
    assert!(newest.ends_with(format!("step-{last}")), "{} after {last} sound steps", newest.display());
    assert!(!directory.join("adapter").exists(), "a run that broke off leaves no adapter");
}

fn newest_checkpoint(run: &Path) -> PathBuf {
    let folder = run.join("checkpoints");
    let number = |path: &Path| -> Option<u64> { path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok() };
    fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a folder can be read").path())
        .filter(|path| number(path).is_some())
        .max_by_key(|path| number(path))
        .expect("there is a checkpoint")
}
