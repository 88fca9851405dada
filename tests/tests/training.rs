//! Loss curves against PEFT and transformers, and the adapters that come out of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use ft_tests::conversations::{conversations, jsonl};
use ft_tests::metrics::{self, Step};
use ft_tests::program::{ft, peer, succeed};
use ft_tests::scratch::Scratch;
use ft_tests::tensors;
use serde_json::Value;

const STEPS: usize = 20;
const BATCH_SEQUENCES: usize = 2;
const ACCUMULATION_STEPS: usize = 2;

/// One curve of a peer, the folder it was made in, and the conversations.
struct Curve {
    scratch: Scratch,
    kind: &'static str,
    learning_rate: f64,
}

impl Curve {
    fn by_peer(kind: &'static str, learning_rate: f64) -> Self {
        let scratch = Scratch::new(kind);
        let data = scratch.write("conversations.jsonl", jsonl(&conversations(16)));
        let rendered = succeed(ft(["render", "--tokens", "--training", "--json"]).arg(&data));
        let rendered = scratch.write("rendered.json", rendered);
        let mut command = peer("curves.py", [kind]);
        command.arg(scratch.join("peer")).arg(rendered).arg(STEPS.to_string());
        command.arg((BATCH_SEQUENCES * ACCUMULATION_STEPS).to_string()).arg(learning_rate.to_string());
        succeed(&mut command);
        Self { scratch, kind, learning_rate }
    }

    fn model(&self) -> PathBuf {
        self.scratch.join("peer/model")
    }

    fn run(&self) -> PathBuf {
        self.scratch.join("runs").join(self.kind)
    }

    /// Writes the recipe that says what the peer did.
    fn recipe(&self, method: &str) -> PathBuf {
        let Self { scratch, kind, learning_rate } = self;
        let text = format!(
            r#"
[model]
path = "{model}"
experts = "bf16"

[dataset]
train = ["{data}"]
packing = false
shuffle = false

{method}

[optimizer]
learning_rate = {learning_rate:e}

[schedule]
kind = "constant"
warmup_fraction = 0.0

[training]
steps = {STEPS}
batch_sequences = {BATCH_SEQUENCES}
accumulation_steps = {ACCUMULATION_STEPS}
dtype = "f32"

[output]
directory = "{runs}"
name = "{kind}"
"#,
            model = self.model().display(),
            data = scratch.join("conversations.jsonl").display(),
            runs = scratch.join("runs").display(),
        );
        scratch.write("recipe.toml", text)
    }

    fn losses(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.scratch.join("peer/losses.json")).expect("the peer writes its losses");
        serde_json::from_str(&text).expect("the peer writes JSON")
    }

    /// First loss within 1e-5, every loss within 1e-3, both relative.
    fn compare(&self, found: &[Step]) {
        let expected = self.losses();
        assert_eq!(found.len(), expected.len(), "steps in metrics.jsonl");
        let mut worst = 0.0_f64;
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(Some(found.step), expected["step"].as_u64());
            let theirs = expected["loss"].as_f64().expect("a loss");
            let difference = (found.loss - theirs).abs() / theirs;
            worst = worst.max(difference);
            let bar = if found.step == 1 { 1e-5 } else { 1e-3 };
            assert!(difference <= bar, "step {}: loss {} instead of {theirs}, {difference:.1e} apart", found.step, found.loss);
            let norm = expected["gradient_norm"].as_f64().expect("a norm");
            let difference = (found.gradient_norm - norm).abs() / norm;
            assert!(difference <= 5e-3, "step {}: gradient norm {} instead of {norm}", found.step, found.gradient_norm);
        }
        let fall = found[0].loss - found[found.len() - 1].loss;
        assert!(fall > 0.5, "the loss hardly moved, so that the comparison proves little: {found:?}");
        eprintln!("{}: {} losses within {worst:.1e} of the peer's", self.kind, found.len());
    }
}

fn train(recipe: &Path) -> Command {
    let mut command = ft(["train"]);
    command.arg(recipe);
    command
}

/// Logits by `ft` and by PEFT with an adapter that `ft` wrote, on ids that the adapter was not trained on.
fn compare_adapter(scratch: &Scratch, name: &str, model: &Path, adapter: &Path) {
    let ids: Vec<u32> = (0..48).map(|place| (place * 7919 + 17) % 200_000).collect();
    let tokens = scratch.write("tokens.json", format!("{ids:?}"));
    let theirs = scratch.join(format!("{name}.peft.safetensors"));
    let ours = scratch.join(format!("{name}.ft.safetensors"));
    let bare = scratch.join(format!("{name}.bare.safetensors"));
    succeed(peer("adapter_logits.py", [model, adapter]).arg(&tokens).arg(&theirs));
    let logits = |output: &Path| {
        let mut command = ft(["logits", "--dtype", "f32"]);
        command.arg(model).arg("--tokens").arg(&tokens).arg("--output").arg(output);
        command
    };
    succeed(logits(&ours).arg("--adapter").arg(adapter));
    succeed(&mut logits(&bare));
    let [theirs, ours, bare] = [theirs, ours, bare].map(|path| tensors::read(&path).remove("logits").expect("one sequence"));
    let difference = tensors::distance(name, &ours, &theirs).largest_in_deviations;
    let effect = tensors::distance(name, &bare, &theirs).largest_in_deviations;
    eprintln!("adapter `{name}`: {difference:.1e} of the logits' standard deviation from PEFT, moves them by {effect:.1e}");
    assert!(effect > 1e-2, "the adapter changes the logits by {effect:.1e} only: the comparison would prove nothing");
    assert!(difference <= 1e-4, "logits with adapter `{name}` differ by {difference:.1e}");
}

#[test]
fn lora_follows_the_losses_of_peft_and_its_adapter_loads_there() {
    let curve = Curve::by_peer("lora", 2e-3);
    let initial = curve.scratch.join("peer/initial_adapter");
    let method =
        format!("[lora]\nrank = 4\nalpha = 8.0\ntargets = [\"attention\", \"experts\"]\ninitial_adapter = \"{}\"", initial.display());
    let recipe = curve.recipe(&method);
    succeed(&mut train(&recipe));
    compare_adapter(&curve.scratch, "initial", &curve.model(), &initial);
    compare_adapter(&curve.scratch, "trained", &curve.model(), &curve.run().join("adapter"));

    // Every kind of target, some layers only, the other scaling.
    let everything = "[lora]\nrank = 3\nalpha = 7.0\nrslora = true\nlayers = [1]\n\
                      targets = [\"attention\", \"experts\", \"router\", \"lm_head\"]";
    let recipe = curve.recipe(everything);
    succeed(train(&recipe).args(["--set", "output.name=everything", "--set", "training.steps=4", "--set", "optimizer.learning_rate=1e-2"]));
    compare_adapter(&curve.scratch, "everything", &curve.model(), &curve.scratch.join("runs/everything/adapter"));

    curve.compare(&metrics::steps(&curve.run()));
}

#[test]
fn full_training_follows_the_losses_of_transformers() {
    let curve = Curve::by_peer("full", 1e-3);
    let recipe = curve.recipe("[full]");
    succeed(&mut train(&recipe));
    curve.compare(&metrics::steps(&curve.run()));
    assert!(curve.run().join("model/config.json").is_file(), "full training leaves a model directory");
}
