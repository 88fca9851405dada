//! Trackers: what a run leaves for TensorBoard and Weights & Biases, read with their packages; and networks that fail.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ft_tests::conversations::{conversations, jsonl};
use ft_tests::program::{ft, peer, repository, run, succeed};
use ft_tests::recording_server::{Manner, RecordingServer, history};
use ft_tests::scratch::Scratch;
use serde_json::Value;

const STEPS: usize = 8;

struct Project {
    scratch: Scratch,
}

impl Project {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let sizes = [
            "hidden_size=32",
            "intermediate_size=32",
            "num_hidden_layers=2",
            "num_attention_heads=4",
            "num_key_value_heads=2",
            "head_dim=16",
            "num_local_experts=4",
            "num_experts_per_tok=2",
        ];
        let mut init = ft(["init", "--preset", "nano", "--seed", "5"]);
        succeed(init.arg(scratch.join("model")).args(sizes.iter().flat_map(|size| ["--set", size])));
        scratch.write("train.jsonl", jsonl(&conversations(12)));
        scratch.write("validation.jsonl", jsonl(&conversations(2)));
        Self { scratch }
    }

    /// A run of this name, with this `[tracking]`.
    fn train(&self, name: &str, tracking: &str) -> Command {
        let at = |file: &str| self.scratch.join(file).display().to_string();
        let recipe = format!(
            "[model]\npath = \"{}\"\n[dataset]\ntrain = [\"{}\"]\nvalidation = [\"{}\"]\nmax_tokens = 256\n[lora]\nrank = 2\n\
             [training]\nsteps = {STEPS}\nbatch_sequences = 1\naccumulation_steps = 1\n[checkpoint]\nevery_steps = 2\n\
             [evaluation]\nevery_steps = 4\n[output]\ndirectory = \"{}\"\nname = \"{name}\"\n{tracking}\n",
            at("model"),
            at("train.jsonl"),
            at("validation.jsonl"),
            at("runs"),
        );
        let path = self.scratch.write(&format!("{name}.toml"), recipe);
        let mut command = ft(["train"]);
        command.arg(path).env_remove("WANDB_API_KEY").env("NETRC", "/dev/null");
        command
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.scratch.join("runs").join(name)
    }

    /// The run without any tracker: its losses.
    fn plain(&self) -> Vec<u64> {
        succeed(&mut self.train("plain", ""));
        losses(&self.directory("plain"))
    }
}

/// The lines of `metrics.jsonl`.
fn lines(directory: &Path) -> Vec<Value> {
    let text = fs::read_to_string(directory.join("metrics.jsonl")).expect("the run wrote its metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// The bits of each step's loss.
fn losses(directory: &Path) -> Vec<u64> {
    lines(directory).iter().filter_map(|line| line["loss"].as_f64()).map(f64::to_bits).collect()
}

/// Each number of `metrics.jsonl` under its tracker's name: (step, value).
fn expected(directory: &Path) -> BTreeMap<String, Vec<(u64, f64)>> {
    let mut all: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
    for line in lines(directory) {
        let step = line["step"].as_u64().expect("a line has its step");
        for (name, value) in line.as_object().expect("a line is an object") {
            if let Some(number) = value.as_f64().filter(|_| name != "step") {
                all.entry(name.clone()).or_default().push((step, number));
            }
            for (layer, value) in value.as_array().into_iter().flatten().enumerate() {
                if let Some(number) = value.as_f64() {
                    all.entry(format!("{name}/layer_{layer:02}")).or_default().push((step, number));
                }
            }
        }
    }
    all
}

fn read(directory: &Path) -> Value {
    serde_json::from_str(&succeed(&mut peer("trackers.py", [directory]))).expect("the peer prints JSON")
}

/// The event file and the log of `directory` hold what `metrics.jsonl` does, each step once.
fn check(directory: &Path, exit_code: u64) {
    let said = read(directory);
    for (name, values) in expected(directory) {
        let scalars = said["scalars"][&name].as_array().unwrap_or_else(|| panic!("no scalar `{name}`"));
        let found: Vec<(u64, f64)> =
            scalars.iter().map(|pair| (pair[0].as_u64().expect("a step"), pair[1].as_f64().expect("a number"))).collect();
        #[expect(clippy::cast_possible_truncation, reason = "event files hold f32")]
        let rounded: Vec<(u64, f64)> = values.iter().map(|(step, value)| (*step, f64::from(*value as f32))).collect();
        assert_eq!(found, rounded, "{name}");
        let rows = said["log"]["history"].as_array().expect("the log has a history");
        let of_rows: Vec<(u64, f64)> = rows.iter().filter_map(|row| Some((row["_step"].as_u64()?, row[&name].as_f64()?))).collect();
        assert_eq!(of_rows, values, "{name}");
    }
    let log = &said["log"];
    let steps: Vec<u64> = log["history"].as_array().expect("rows").iter().filter_map(|row| row["_step"].as_u64()).collect();
    assert_eq!(steps, (1..=STEPS as u64).collect::<Vec<_>>());
    assert_eq!(log["exit_code"], exit_code);
    let numbers: Vec<u64> = log["numbers"].as_array().expect("numbers").iter().filter_map(Value::as_u64).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(log["summary"]["_step"], STEPS);
    assert_eq!(log["config"]["training"]["steps"], STEPS);
}

const BOTH: &str =
    "[tracking]\ntensorboard = true\n[tracking.wandb]\nmode = \"offline\"\nproject = \"p\"\ntags = [\"a\", \"b\"]\nnotes = \"n\"";

#[test]
fn event_file_and_log_hold_every_metric() {
    let project = Project::new("trackers");
    let plain = project.plain();
    succeed(&mut project.train("both", BOTH));
    let directory = project.directory("both");
    assert_eq!(losses(&directory), plain);
    check(&directory, 0);
    let run = &read(&directory)["log"]["run"];
    assert_eq!((run["project"].as_str(), run["name"].as_str(), run["notes"].as_str()), (Some("p"), Some("both"), Some("n")));
    assert_eq!(run["tags"], serde_json::json!(["a", "b"]));
}

#[test]
fn a_killed_run_that_goes_on_has_every_step_once() {
    let project = Project::new("killed-trackers");
    let plain = project.plain();
    let directory = project.directory("killed");
    let mut command = project.train("killed", BOTH);
    let mut child = command.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().expect("ft starts");
    let steps = || fs::read_to_string(directory.join("metrics.jsonl")).map_or(0, |text| text.matches("\"loss\"").count());
    while steps() < 5 && child.try_wait().expect("the child is ours").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("the child can be killed");
    child.wait().expect("the child ends");
    // What a kill leaves can be read.
    let left = read(&directory);
    assert!(left["log"]["exit_code"].is_null() || steps() == STEPS);
    let id = left["log"]["run"]["id"].clone();
    succeed(project.train("killed", BOTH).arg("--resume"));
    assert_eq!(losses(&directory), plain);
    check(&directory, 0);
    assert_eq!(read(&directory)["log"]["run"]["id"], id);
}

#[test]
fn a_run_online_sends_every_step() {
    let project = Project::new("online");
    let server = RecordingServer::start(Manner::Well);
    let tracking = "[tracking.wandb]\nproject = \"coding\"\nentity = \"team\"\ngroup = \"g\"";
    let mut command = project.train("online", tracking);
    let said = run(command.env("WANDB_BASE_URL", &server.address).env("WANDB_API_KEY", "key"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(!said.stderr.contains("Weights & Biases"), "{}", said.stderr);
    let requests = server.requests();
    let variables = &requests[0].body["variables"];
    assert_eq!(
        (requests[0].path.as_str(), variables["project"].as_str(), variables["entity"].as_str()),
        ("/graphql", Some("coding"), Some("team"))
    );
    // `api:key` in base 64.
    assert!(requests.iter().all(|request| request.authorization == "Basic YXBpOmtleQ=="));
    let config: Value = serde_json::from_str(variables["config"].as_str().expect("a text")).expect("JSON");
    assert_eq!(config["training"]["value"]["steps"], STEPS);
    let id = variables["name"].as_str().expect("a run has an id");
    assert!(requests[1..].iter().all(|request| request.path == format!("/files/team/coding/{id}/file_stream")));
    let rows = history(&requests);
    for (name, values) in expected(&project.directory("online")) {
        let found: Vec<(u64, f64)> = rows.iter().filter_map(|row| Some((row["_step"].as_u64()?, row[&name].as_f64()?))).collect();
        assert_eq!(found, values, "{name}");
    }
    let last = &requests.last().expect("requests came").body;
    assert_eq!((last["complete"].as_bool(), last["exitcode"].as_u64()), (Some(true), Some(0)));
    // The same run is kept here, for `wandb sync`.
    assert_eq!(read(&project.directory("online"))["log"]["history"].as_array().map(Vec::len), Some(STEPS));
}

/// The Python server that the real client talks to; it ends with the test.
struct PythonServer {
    child: Child,
    address: String,
    record: PathBuf,
}

impl PythonServer {
    fn start(scratch: &Scratch) -> Self {
        let (port, record) = (scratch.join("port"), scratch.join("requests.jsonl"));
        let child = peer("wandb_server.py", [&port, &record]).spawn().expect("Python starts");
        let started = Instant::now();
        while !port.exists() {
            assert!(started.elapsed() < Duration::from_secs(60), "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let address = format!("http://127.0.0.1:{}", fs::read_to_string(port).expect("the port is written"));
        Self { child, address, record }
    }

    fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.record).expect("requests came");
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }
}

impl Drop for PythonServer {
    fn drop(&mut self) {
        // A server that is gone already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn wandb_sync_takes_the_directory_of_a_run() {
    let project = Project::new("sync");
    succeed(&mut project.train("offline", BOTH));
    let directory = project.directory("offline");
    let run = fs::read_dir(directory.join("wandb")).expect("a folder").next().expect("one run").expect("an entry").path();
    let server = PythonServer::start(&project.scratch);
    let mut sync = Command::new(repository().join(".venv/bin/wandb"));
    sync.args(["sync", "--yes"]).arg(run).current_dir(&*project.scratch);
    sync.env("WANDB_BASE_URL", &server.address).env("WANDB_API_KEY", "0123456789012345678901234567890123456789");
    succeed(&mut sync);
    let requests = server.requests();
    let streams: Vec<&Value> =
        requests.iter().filter(|request| request["path"].as_str().is_some_and(|path| path.ends_with("/file_stream"))).collect();
    let rows: Vec<Value> = streams
        .iter()
        .filter_map(|request| request["body"]["files"]["wandb-history.jsonl"]["content"].as_array())
        .flatten()
        .map(|line| serde_json::from_str(line.as_str().expect("a line is a text")).expect("a line is JSON"))
        .collect();
    for (name, values) in expected(&directory) {
        let found: Vec<(u64, f64)> = rows.iter().filter_map(|row| Some((row["_step"].as_u64()?, row[&name].as_f64()?))).collect();
        assert_eq!(found, values, "{name}");
    }
    assert!(streams.iter().any(|request| request["body"]["complete"] == true && request["body"]["exitcode"] == 0));
    let upsert = requests.iter().find(|request| request["path"] == "/graphql").expect("the run was made");
    let variables = &upsert["body"]["variables"];
    assert_eq!((variables["project"].as_str(), variables["displayName"].as_str()), (Some("p"), Some("offline")));
    let config: Value = serde_json::from_str(variables["config"].as_str().expect("a text")).expect("JSON");
    assert_eq!(config["training"]["value"]["steps"], STEPS);
}

#[test]
fn a_network_that_fails_costs_a_warning() {
    let project = Project::new("faults");
    let plain = project.plain();
    let refuse = "http://127.0.0.1:9".to_owned();
    let servers = [Manner::Status(500), Manner::Hangs, Manner::Status(401)].map(RecordingServer::start);
    let cases = [
        ("refuse", refuse, "it is tried again"),
        ("broken", servers[0].address.clone(), "the server answered 500"),
        ("hang", servers[1].address.clone(), "not"),
        ("unauthorized", servers[2].address.clone(), "to the key of WANDB_API_KEY; nothing more is sent"),
    ];
    for (name, address, expected) in cases {
        let mut command = project.train(name, "[tracking.wandb]\nproject = \"p\"");
        let said = run(command.env("WANDB_BASE_URL", address).env("WANDB_API_KEY", "secret-key"));
        assert_eq!(said.code, Some(0), "{name}: {}", said.stderr);
        assert_eq!(losses(&project.directory(name)), plain, "{name}");
        assert!(said.stderr.contains("Weights & Biases:") && said.stderr.contains(expected), "{name}: {}", said.stderr);
        assert!(said.stderr.contains("wandb sync"), "{name}: {}", said.stderr);
        assert!(!said.stderr.contains("secret-key"), "{name}: {}", said.stderr);
        assert_eq!(read(&project.directory(name))["log"]["history"].as_array().map(Vec::len), Some(STEPS), "{name}");
    }
}

#[test]
fn no_key_is_an_error_before_anything_begins() {
    let project = Project::new("no-key");
    let said = run(&mut project.train("run", "[tracking.wandb]\nproject = \"p\""));
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("no API key") && said.stderr.contains("WANDB_API_KEY"), "{}", said.stderr);
    assert!(!project.directory("run").exists());
    let mut disabled = project.train("run", "[tracking.wandb]\nproject = \"p\"");
    succeed(disabled.env("WANDB_MODE", "disabled"));
    assert!(!project.directory("run").join("wandb").exists());
}
