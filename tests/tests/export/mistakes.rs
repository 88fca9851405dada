//! Mistakes that somebody could make when a model is written in another form, and `ft verify`, which has to name them.

use crate::{Project, keys};

const DOWN: &str = "model.layers.0.mlp.experts.down_proj of expert";

impl Project {
    /// `ft verify` fails and names what is wrong.
    fn finds(&self, file: &str, against: &str, names: &[&str]) {
        let said = self.verify(file, against, &[]);
        assert_eq!(said.code, Some(1), "{file} against {against}: {}", said.stdout);
        assert!(names.iter().any(|name| said.stderr.contains(name)), "{file} against {against}: {}", said.stderr);
    }

    fn spoil(&self, file: &str, mistake: &str) -> String {
        let spoilt = format!("{mistake}-{file}");
        let mut spoil = ft_tests::program::peer("export.py", ["spoil"]);
        ft_tests::program::succeed(spoil.arg(self.path(file)).arg(self.path(&spoilt)).arg(mistake));
        spoilt
    }
}

#[test]
fn mistakes_are_found_in_every_form_and_correct_models_pass() {
    let project = Project::new("verify-mistakes");
    project.init("model", "mxfp4", &[]);
    project.init("plain", "bf16", &[]);
    project.init_from(2, "other", "mxfp4", &[]);
    for (model, out, to) in [("model", "native.gguf", "gguf"), ("model", "q4.gguf", "gguf:q4_k_m"), ("plain", "plain.gguf", "gguf")] {
        project.exported(model, out, to, &[]);
    }
    for (file, against) in [("native.gguf", "model"), ("model", "native.gguf"), ("q4.gguf", "native.gguf"), ("plain.gguf", "plain")] {
        let said = project.verify(file, against, &["--json"]);
        assert_eq!(said.code, Some(0), "{file} against {against}: {}", said.stderr);
        let told = crate::json(&said.stdout);
        let all = ["counted_tokens", "kl_divergence", "model", "prompts", "same_top_fraction", "source", "tensors", "version"];
        assert_eq!(keys(&told), all);
    }

    let (swapped, of_one) = ([format!("{DOWN} 1"), format!("{DOWN} 2")], format!("{DOWN} 2"));
    let swapped = swapped.each_ref().map(String::as_str);
    for file in ["native.gguf", "q4.gguf"] {
        project.finds(&project.spoil(file, "swapped"), "model", &swapped);
    }
    project.finds(&project.spoil("native.gguf", "scale"), "model", &[&of_one]);
    project.finds(&project.spoil("plain.gguf", "transposed"), "plain", &[&format!("{DOWN} 3")]);
    for (file, source) in [("native.gguf", "model"), ("plain.gguf", "plain")] {
        project.finds(&project.spoil(file, "exchanged"), source, &["model.layers.1.mlp.experts.gate_up_proj of expert"]);
    }
    for file in ["native.gguf", "q4.gguf"] {
        project.finds(&project.spoil(file, "bias"), "model", &["model.layers.1.mlp.experts.down_proj_bias"]);
        project.finds(&project.spoil(file, "rope_theta"), "model", &["`rope_theta` is 10000 there, expected 150000"]);
    }
    project.finds("other", "model", &["model."]);
    project.finds("native.gguf", "other", &["model."]);
    project.finds("plain.gguf", "model", &["model."]);

    // The other way round, and directories with each other.
    for model in ["model", "plain"] {
        let spoilt = format!("{model}-spoilt");
        project.peer("export.py", "spoil_directory", &[model, &spoilt]);
        let file = if model == "model" { "native.gguf" } else { "plain.gguf" };
        let names = ["model.layers.1.mlp.experts.down_proj of expert 0", "model.layers.1.mlp.experts.down_proj of expert 4"];
        project.finds(&spoilt, model, &names);
        project.finds(&spoilt, file, &names);
        project.finds(file, &spoilt, &names);
    }
}

/// Beside the noise of all the others, one expert in the place of another is little.
#[test]
fn one_expert_of_many_is_found_among_quantized_ones() {
    let project = Project::new("verify-many");
    project.init("model", "mxfp4", &["num_local_experts=32", "num_hidden_layers=1"]);
    project.exported("model", "q4.gguf", "gguf:q4_0", &[]);
    project.finds(&project.spoil("q4.gguf", "swapped"), "model", &[&format!("{DOWN} 1"), &format!("{DOWN} 2")]);
}

#[test]
fn bounds_are_those_that_are_given() {
    let project = Project::new("verify-bounds");
    project.init("model", "bf16", &[]);
    project.exported("model", "q8.gguf", "gguf:q8_0", &["--fail-below", "30", "--fail-above-kl", "0.1"]);
    for (arguments, says) in [
        (["--fail-below", "70"], "below the bound of 70.00 dB"),
        (["--fail-above-kl", "0"], "above the bound of 0"),
        (["--fail-above-kl", "nan"], "nan"),
    ] {
        for said in [project.verify("q8.gguf", "model", &arguments), project.export("model", "out.gguf", "gguf:q8_0", &arguments)] {
            assert!(said.code == Some(1) && said.stderr.contains(says), "{arguments:?}: {:?} {}", said.code, said.stderr);
        }
        assert!(!project.path("out.gguf").exists());
    }
    // What was changed on purpose passes once it is said how far.
    project.peer("export.py", "spoil_directory", &["model", "spoilt"]);
    assert_eq!(project.verify("spoilt", "model", &["--fail-below=-10", "--fail-above-kl", "10"]).code, Some(0));
    assert_eq!(project.verify("spoilt", "model", &["--fail-above-kl", "10"]).code, Some(1));
}
