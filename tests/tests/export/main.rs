//! `ft export` and `ft verify` as their users see them: what is written, in the programs that it is for; what must be found; what must be
//! refused.

mod greedy;
mod lora;
mod mistakes;
mod refused;
mod targets;

use std::path::PathBuf;

use ft_tests::program::{Said, ft, peer, run, succeed};
use ft_tests::scratch::{Scratch, names};
use serde_json::Value;

/// Sizes of which none is another, a vocabulary that makes small files, and a ramp of rotary periods that llama.cpp can express.
const SIZES: [&str; 10] = [
    "hidden_size=96",
    "intermediate_size=64",
    "num_local_experts=5",
    "num_experts_per_tok=2",
    "num_hidden_layers=3",
    "num_attention_heads=4",
    "num_key_value_heads=2",
    "head_dim=64",
    "vocab_size=1000",
    "rope_scaling.truncate=true",
];

/// A folder with models in it, and what is done to them.
struct Project {
    scratch: Scratch,
}

impl Project {
    fn new(name: &str) -> Self {
        Self { scratch: Scratch::new(name) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A random model.
    fn init(&self, name: &str, experts: &str, settings: &[&str]) {
        self.init_from(1, name, experts, settings);
    }

    /// The same from another seed.
    fn init_from(&self, seed: u32, name: &str, experts: &str, settings: &[&str]) {
        let mut init = ft(["init", "--preset", "nano", "--experts", experts, "--seed", &seed.to_string()]);
        succeed(init.arg(self.path(name)).args(SIZES.iter().chain(settings).flat_map(|size| ["--set", size])));
    }

    /// `ft export MODEL OUT --to TARGET` with further arguments.
    fn export(&self, model: &str, out: &str, to: &str, arguments: &[&str]) -> Said {
        run(ft(["export"]).args([model, out].map(|name| self.path(name))).args(["--to", to]).args(arguments))
    }

    /// The same, which has to succeed, and what it printed as JSON.
    fn exported(&self, model: &str, out: &str, to: &str, arguments: &[&str]) -> Value {
        let said = self.export(model, out, to, &[&["--json"], arguments].concat());
        assert_eq!(said.code, Some(0), "{model} to {to}: {}", said.stderr);
        json(&said.stdout)
    }

    fn verify(&self, file: &str, against: &str, arguments: &[&str]) -> Said {
        run(ft(["verify"]).arg(self.path(file)).arg("--against").arg(self.path(against)).args(arguments))
    }

    /// A script with a verb, and names of files in the folder.
    fn peer(&self, script: &str, verb: &str, names: &[&str]) -> String {
        succeed(peer(script, [verb]).args(names.iter().map(|name| self.path(name))))
    }

    /// What is in the folder.
    fn names(&self) -> Vec<String> {
        names(&self.scratch)
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:.300}"))
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
