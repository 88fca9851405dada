//! Every target, verified as it is written, in the program that it is for.

use std::fs;

use ft_formats::template::{CHAT_TEMPLATE, without_generation_marks};
use ft_tests::program::{peer, succeed};
use serde_json::{Value, json};

use crate::{Project, keys, names};

impl Project {
    /// llama.cpp loads the file and answers.
    fn loads(&self, file: &str) {
        let prompts = self.scratch.write("prompts.json", "[[5, 17, 999, 0, 256, 3]]");
        succeed(peer("gguf_export.py", ["logprobs"]).arg(self.path(file)).arg(prompts).arg(self.path("answer.json")));
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }
}

fn check_outcome(told: &Value, to: &str, num_files: usize) {
    assert_eq!(keys(told), ["bytes", "files", "seconds", "source", "target", "to", "types", "verification", "version"]);
    assert_eq!((&told["version"], &told["to"]), (&1.into(), &to.into()));
    let files = told["files"].as_array().expect("a list");
    assert_eq!(files.len(), num_files, "{files:?}");
    let sizes = files.iter().map(|file| fs::metadata(file.as_str().expect("a path")).expect("a file that is there").len());
    assert_eq!(told["bytes"], sizes.sum::<u64>());
    let verification = &told["verification"];
    assert_eq!(keys(verification), ["counted_tokens", "kl_divergence", "prompts", "same_top_fraction", "tensors"]);
    assert_eq!((&verification["tensors"]["count"], &verification["prompts"]), (&54.into(), &"tokens".into()));
}

#[test]
fn gguf_files_load_in_llama_cpp_and_say_what_they_are() {
    let project = Project::new("export-gguf");
    project.init("model", "mxfp4", &[]);
    for (to, name, exact) in
        [("gguf", "gguf:native", 54), ("gguf:f32", "gguf:f32", 54), ("gguf:q8_0", "gguf:q8_0", 0), ("gguf:q4_k_m", "gguf:q4_k_m", 0)]
    {
        let file = format!("{}.gguf", to.replace(':', "-"));
        let told = project.exported("model", &file, to, &["--name", "Odd Sizes"]);
        check_outcome(&told, name, 1);
        let found = &told["verification"]["tensors"];
        if exact == 54 {
            assert_eq!((&found["exact"], &found["worst"]), (&54.into(), &Value::Null), "{to}");
        } else {
            assert!(found["exact"].as_u64() < Some(54) && found["worst"]["sqnr_db"].as_f64() > Some(15.0), "{to}: {found}");
        }
        project.loads(&file);
        let metadata = crate::json(&project.peer("export.py", "metadata", &[&file]));
        let template = without_generation_marks(CHAT_TEMPLATE);
        assert_ne!(template, CHAT_TEMPLATE);
        let expected = json!({"general.architecture": "gpt-oss", "general.type": "model", "general.name": "Odd Sizes",
            "tokenizer.chat_template": template});
        assert_eq!(metadata, expected, "{to}");
    }

    let told = project.exported("model", "folder", "gguf", &["--split-size", "100KB"]);
    let parts = told["files"].as_array().expect("a list").len() - 1;
    assert!(parts > 2, "{told}");
    check_outcome(&told, "gguf:native", parts + 1);
    project.loads(&format!("folder/model-MXFP4-00001-of-{parts:05}.gguf"));
    let front = crate::json(&project.peer("export.py", "page", &["folder/README.md"]));
    assert_eq!((&front["library_name"], &front["license"]), (&"gguf".into(), &"apache-2.0".into()), "{front}");

    let told = project.exported("model", "ollama", "ollama:q8_0", &[]);
    check_outcome(&told, "ollama:q8_0", 3);
    let modelfile = project.text("ollama/Modelfile");
    let from = modelfile.lines().find_map(|line| line.strip_prefix("FROM ./")).expect("a file to start from");
    assert_eq!(names(&project.path("ollama")), ["Modelfile", "README.md", from]);
    project.loads(&format!("ollama/{from}"));
    // Ollama knows the ends of harmony's messages; a `stop` would end an answer at its analysis.
    assert!(modelfile.contains("TEMPLATE \"\"\"") && !modelfile.to_lowercase().contains("stop "), "{modelfile}");
    project.peer("export.py", "page", &["ollama/README.md"]);
}

#[test]
fn directories_hold_the_bytes_of_their_source_and_load_in_transformers() {
    let project = Project::new("export-directories");
    project.init("model", "mxfp4", &["rope_scaling.truncate=false"]);
    project.exported("model", "model.gguf", "gguf", &[]);
    let told = project.exported("model.gguf", "again", "safetensors", &[]);
    assert_eq!((&told["to"], &told["verification"]["tensors"]["exact"]), (&"safetensors".into(), &54.into()));
    project.peer("export.py", "tensors", &["model", "again"]);
    assert_eq!(project.text("again/chat_template.jinja"), CHAT_TEMPLATE);
    project.scratch.write("tokens.json", "[[5, 17, 999, 0, 256, 3]]");
    for model in ["model", "again"] {
        project.peer("quantize.py", "logits", &[model, "tokens.json", &format!("{model}.safetensors")]);
    }
    assert_eq!(ft_tests::tensors::read(&project.path("again.safetensors")), ft_tests::tensors::read(&project.path("model.safetensors")));
    let front = crate::json(&project.peer("export.py", "page", &["again/README.md"]));
    assert_eq!(front["library_name"], "transformers", "{front}");

    let told = project.exported("model", "plain", "safetensors:bf16", &[]);
    assert_eq!((&told["to"], &told["verification"]["tensors"]["exact"]), (&"safetensors:bf16".into(), &54.into()));
    project.peer("quantize.py", "logits", &["plain", "tokens.json", "plain.safetensors"]);
    assert_eq!(ft_tests::tensors::read(&project.path("plain.safetensors")), ft_tests::tensors::read(&project.path("model.safetensors")));

    for (source, out) in [("model", "openai"), ("again", "openai-again")] {
        let told = project.exported(source, out, "openai", &[]);
        assert_eq!((&told["to"], &told["verification"]["tensors"]["exact"]), (&"openai".into(), &54.into()));
        project.peer("export.py", "original", &[source, out]);
        assert_eq!(project.verify(out, "model.gguf", &[]).code, Some(0));
    }
}
