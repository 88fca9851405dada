//! Cards as readers of Markdown and YAML see them.

use super::*;

fn card(kind: CardKind) -> ModelCard {
    ModelCard {
        name: "coding".to_owned(),
        kind,
        base_model: Some("openai/gpt-oss-20b".to_owned()),
        recipe: None,
        data_fingerprint: None,
        metrics: None,
        quantization: None,
    }
}

fn kinds() -> [CardKind; 6] {
    let file = "coding.gguf".to_owned();
    [
        CardKind::Safetensors,
        CardKind::OpenAi,
        CardKind::Gguf { file: file.clone() },
        CardKind::Ollama { file: file.clone() },
        CardKind::GgufAdapter { file },
        CardKind::PeftAdapter,
    ]
}

#[test]
fn an_adapter_says_so_to_the_hub() {
    assert_eq!(
        card(CardKind::PeftAdapter).front_matter(),
        "---\nlicense: apache-2.0\nbase_model: openai/gpt-oss-20b\nbase_model_relation: adapter\npipeline_tag: text-generation\n\
         library_name: peft\nmodel_name: coding\ntags:\n- gpt-oss\n- lora\n---\n"
    );
}

#[test]
fn a_base_that_is_no_repository_is_named_in_the_text_alone() {
    for base in ["runs/coding/model", "models", "/models/a", "../a", "a/b\nlicense: mit", "a/-b"] {
        let text = ModelCard { base_model: Some(base.to_owned()), ..card(CardKind::Safetensors) }.text();
        assert!(!text.contains("base_model:"), "{text}");
        assert!(text.contains(&one_line(base)));
    }
}

#[test]
fn each_kind_names_the_runtimes_that_take_it() {
    let expected: [&[&str]; 6] = [
        &["transformers", "vLLM", "llama.cpp, LM Studio, Ollama"],
        &["gpt-oss"],
        &["llama.cpp", "LM Studio", "Ollama"],
        &["Ollama", "llama.cpp", "LM Studio"],
        &["llama.cpp", "Ollama"],
        &["PEFT", "vLLM", "llama.cpp, Ollama"],
    ];
    for (kind, expected) in kinds().into_iter().zip(expected) {
        let text = card(kind).text();
        let found: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        assert_eq!(found, expected);
        assert!(!text.contains("## Training") && !text.contains("## Quantization"));
    }
}

#[test]
fn a_run_is_told_by_its_figures_and_its_recipe() {
    let text = ModelCard {
        recipe: Some("[model]\npath = \"a```b\"\n".to_owned()),
        data_fingerprint: Some("0123abcd".to_owned()),
        metrics: Some(TrainingFigures { steps: Some(120), loss: Some(0.51239), validation_loss: Some(0.75) }),
        quantization: Some(QuantizationFigures {
            from: "bf16".to_owned(),
            to: "mxfp4".to_owned(),
            signal_to_noise_db: Some(18.256),
            relative_error: 0.122_25,
            worst: Some(("a|b".to_owned(), 17.5)),
        }),
        ..card(CardKind::Safetensors)
    }
    .text();
    for line in [
        "| steps | 120 |",
        "| loss of the last step | 0.5124 |",
        "| validation loss | 0.7500 |",
        "| fingerprint of the data | `0123abcd` |",
        "````toml",
        "| stored as | mxfp4, made of experts in bf16 |",
        "| signal to noise | 18.26 dB |",
        "| relative error | 12.2250% |",
        "| worst tensor | `a\\|b`, 17.50 dB |",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
}

#[test]
fn no_name_leaves_its_place() {
    let name = "a\"`'\\: #\n---\n# b\u{0}";
    for kind in kinds() {
        let text = ModelCard { name: name.to_owned(), base_model: Some(name.to_owned()), ..card(kind) }.text();
        let (front, body) = text.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
        let keys: Vec<&str> = front.lines().filter(|line| !line.starts_with("- ")).map(|line| line.split_once(':').unwrap().0).collect();
        assert!(["license", "pipeline_tag", "model_name", "tags"].iter().all(|key| keys.contains(key)), "{keys:?}");
        assert_eq!(body.lines().filter(|line| line.starts_with("# ")).count(), 1, "{body}");
    }
}

#[test]
fn the_last_figures_are_found_among_the_lines() {
    let lines = "{\"step\":1,\"loss\":2.0}\n{\"step\":1,\"validation_loss\":1.5}\n{\"step\":2,\"loss\":1.0}\n{\"step\":3,\"lo";
    let figures = TrainingFigures { steps: Some(2), loss: Some(1.0), validation_loss: Some(1.5) };
    assert_eq!(TrainingFigures::last_of(lines), Some(figures));
    assert_eq!(TrainingFigures::last_of("\n{}\n[1]\n"), None);
}
