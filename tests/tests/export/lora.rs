//! Adapters in llama.cpp: on the model that they change they make the model that `ft merge` makes of both.

use ft_tests::program::{ft, peer, succeed};

use crate::Project;

/// What llama.cpp may differ by from single precision, in nats.
const BAR: &str = "0.02";

impl Project {
    /// What llama.cpp computes with these files, the first of which is the model, is what `ft logits` does within [`BAR`].
    fn computes(&self, files: &[&str], logits: &str) {
        let answer = self.path("answer.json");
        let [model, adapters @ ..] = files else { panic!("there is a model") };
        let mut judge = peer("gguf_export.py", ["logprobs"]);
        judge.arg(self.path(model)).arg(self.path("prompts.json")).arg(&answer).args(adapters.iter().map(|name| self.path(name)));
        succeed(&mut judge);
        eprint!("{files:?}: {}", succeed(peer("gguf_export.py", ["judge"]).arg(answer).arg(self.path(logits)).arg(BAR)));
    }

    fn logits(&self, model: &str, adapter: Option<&str>, output: &str) {
        let mut command = ft(["logits", "--dtype", "f32"]);
        command.arg(self.path(model)).arg("--tokens").arg(self.path("prompts.json")).arg("--output").arg(self.path(output));
        succeed(command.args(adapter.iter().flat_map(|adapter| ["--adapter".into(), self.path(adapter)])));
    }
}

/// Attention, router, head and experts, ranks and alphas of their own, and rsLoRA.
#[test]
fn adapters_make_of_their_model_in_llama_cpp_what_merging_makes() {
    let project = Project::new("export-lora");
    project.init("random", "bf16", &[]);
    project.peer("export.py", "widen", &["random", "model"]);
    project.peer("export.py", "adapters", &["model", "adapters"]);
    succeed(peer("gguf_export.py", ["prompts"]).arg(project.path("prompts.json")).arg("1000"));
    project.exported("model", "model.gguf", "gguf", &[]);
    project.logits("model", None, "model.safetensors");
    let base = project.path("model");
    let base = base.to_str().expect("UTF-8");
    for name in ["usual", "rslora"] {
        let (adapter, merged) = (format!("adapters/{name}"), format!("{name}-merged"));
        let told = project.exported(&adapter, &format!("{name}.gguf"), "gguf-lora", &["--base", base]);
        // Two halves for four projections, the router, gate, up and down in each of three layers, and for the head.
        assert_eq!((&told["to"], &told["types"]), (&"gguf-lora:f32".into(), &serde_json::json!({"F32": 2 * (3 * 8 + 1)})));
        succeed(ft(["merge"]).args([base.into(), project.path(&adapter), project.path(&merged)]));
        project.exported(&merged, &format!("{merged}.gguf"), "gguf", &[]);
        project.logits(&merged, None, "merged.safetensors");
        project.computes(&["model.gguf", &format!("{name}.gguf")], "merged.safetensors");
        let effect = project.peer("export.py", "effect", &["answer.json", "model.safetensors"]);
        assert!(effect.trim().parse::<f64>().expect("a number") > 0.5, "adapters that do so little prove nothing: {effect}");
        project.computes(&[&format!("{merged}.gguf")], "merged.safetensors");
    }

    // The adapter as an option to its model, in half the bytes, in a folder with a card.
    let adapter = project.path("adapters/usual");
    let told = project.exported("model", "folder", "gguf-lora:f16", &["--adapter", adapter.to_str().expect("UTF-8")]);
    assert_eq!((&told["to"], &told["verification"]), (&"gguf-lora:f16".into(), &serde_json::Value::Null));
    assert_eq!(crate::names(&project.path("folder")), ["README.md", "usual.gguf"]);
    project.logits("model", Some("adapters/usual"), "adapted.safetensors");
    project.computes(&["model.gguf", "folder/usual.gguf"], "adapted.safetensors");
    let front = crate::json(&project.peer("export.py", "page", &["folder/README.md"]));
    assert!(front["tags"].as_array().is_some_and(|tags| tags.contains(&"lora".into())), "{front}");
}
