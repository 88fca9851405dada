//! A model that has learned something, in llama.cpp: it says what it says in `ft`.

use ft_tests::program::{ft, peer, succeed};
use serde_json::{Value, json};

use crate::Project;

/// Enough for a small model to know three answers by heart.
const RECIPE: &str = r#"
[full]

[optimizer]
learning_rate = 1.5e-2
beta2 = 0.95

[schedule]
warmup_fraction = 0.05
min_fraction = 0.02

[training]
steps = 60
batch_sequences = 1
accumulation_steps = 1
dtype = "f32"
checkpoint_activations = false

[checkpoint]
every_steps = 1000
"#;

const TURNS: [(&str, &str); 3] = [
    (
        "Name the seasons.",
        "Spring, summer, autumn and winter; then spring again, as it has always been and as far as anyone can tell. Spring brings flowers, summer long days, autumn wind and apples, and winter snow on the hills; after that the whole round begins once more, and nobody has ever seen it begin with anything else.",
    ),
    ("Count to five.", "One, two, three, four, five."),
    ("What is a byte?", "Eight bits, the least that most machines can address; two digits in base sixteen, né octet."),
];

#[test]
fn a_trained_model_says_the_same_in_llama_cpp() {
    let project = Project::new("export-greedy");
    let full = ["vocab_size=201088", "hidden_size=64", "intermediate_size=96", "num_local_experts=8", "num_hidden_layers=1", "head_dim=32"];
    project.init("model", "mxfp4", &full);
    let conversation = |(question, answer): &(&str, &str)| {
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}).to_string()
    };
    let data = project.scratch.write("data.jsonl", TURNS.iter().map(conversation).collect::<Vec<_>>().join("\n"));
    let (model, runs) = (project.path("model"), project.path("runs"));
    let places = format!("[model]\npath = {model:?}\n[dataset]\ntrain = [{data:?}]\n[output]\ndirectory = {runs:?}\nname = \"run\"\n");
    let recipe = project.scratch.write("recipe.toml", places + RECIPE);
    succeed(ft(["train"]).arg(recipe));
    let told = project.exported("runs/run/model", "run.gguf", "gguf", &["--name", "Small Talk"]);
    assert_eq!(told["verification"]["prompts"], "conversations");

    // The ids that `ft generate` starts from: the question in harmony, and the beginning of an answer.
    let questions = TURNS.map(|(question, _)| json!({"messages": [{"role": "user", "content": question}]}).to_string());
    let questions = project.scratch.write("questions.jsonl", questions.join("\n"));
    let rendered = crate::json(&succeed(ft(["render", "--tokens", "--json"]).arg(questions)));
    let conversations = rendered["conversations"].as_array().expect("conversations");
    let start = [json!(200_006), json!(173_781)];
    let prompts: Vec<Vec<Value>> = conversations.iter().map(|each| [each["ids"].as_array().expect("ids"), &start[..]].concat()).collect();
    project.scratch.write("prompts.json", json!(prompts).to_string());
    let mut judge = peer("export.py", ["greedy"]);
    let judge = judge.arg(project.path("run.gguf")).arg(project.path("runs/run/model")).arg(project.path("prompts.json")).arg("96");
    let theirs = crate::json(&succeed(judge));
    for (((question, answer), prompt), theirs) in TURNS.iter().zip(&prompts).zip(theirs.as_array().expect("answers")) {
        let mut command = ft(["generate", "--json", "--temperature", "0", "--max-tokens", "96", "--dtype", "f32", "--prompt", question]);
        let ours = crate::json(&succeed(command.arg(project.path("runs/run/model"))));
        assert_eq!(ours["prompt_tokens"], prompt.len(), "{question}");
        let texts: Vec<&Value> = ours["messages"].as_array().expect("messages").iter().map(|message| &message["content"]).collect();
        assert_eq!(json!(texts), *theirs, "{question}");
        assert_eq!(texts, [answer], "it has not learned its answer: the comparison proves little");
    }
}
