//! The chat template that `ft init` writes against openai-harmony, in the engines that runtimes use: jinja2 as transformers sets it up,
//! minijinja, and llama.cpp's own.

use std::fs;

use ft_tests::program::{ft, peer, succeed};
use ft_tests::scratch::Scratch;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value as Argument};
use serde_json::Value;

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:.200}"))
}

/// The template in minijinja, set up as the runtimes that use it do.
fn environment(template: &str) -> Environment<'_> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the usual delimiters"));
    environment.add_filter("tojson", |value: Argument| serde_json::to_string(&value).expect("what came from JSON is JSON"));
    environment.add_template("template", template).expect("minijinja reads the template");
    environment
}

#[test]
fn every_engine_renders_what_harmony_renders() {
    let scratch = Scratch::new("template");
    let model = scratch.join("model");
    let sizes = ["hidden_size=32", "intermediate_size=32", "num_hidden_layers=1", "num_local_experts=2", "num_experts_per_tok=1"];
    succeed(ft(["init", "--preset", "nano"]).arg(&model).args(sizes.iter().flat_map(|size| ["--set", size])));

    // Text, ids and assistant mask in transformers.
    let said = read(&succeed(&mut peer("template.py", [&model, &scratch.join("cases")])));
    let compared = said["compared_ids"].as_u64().expect("the peer counts");
    assert!(compared >= 350, "{compared} renderings only");
    let cases_path = scratch.join("cases").join("cases.json");
    let cases = read(&fs::read_to_string(&cases_path).expect("the peer wrote it"));
    let cases = cases.as_array().expect("a list");

    // Text in minijinja, which does not know the marks of what the model writes.
    let template = fs::read_to_string(model.join("chat_template.jinja")).expect("ft wrote it");
    assert!(
        Environment::new().add_template("marked", &template).is_err(),
        "minijinja knows the generation marks: export one template for all"
    );
    let plain = template.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    let environment = environment(&plain);
    for case in cases {
        let text = environment.get_template("template").and_then(|template| template.render(Serde(&case["variables"])));
        assert_eq!(text.ok().as_deref(), case["text"].as_str(), "{} in minijinja", case["name"]);
    }

    // Text of ft's own renderer, for the renderings that leave nothing out.
    let (lines, expected): (Vec<String>, Vec<&Value>) =
        cases.iter().filter(|case| !case["in_data"].is_null()).map(|case| (case["in_data"].to_string(), &case["text"])).unzip();
    assert!(lines.len() >= 120, "{} conversations only", lines.len());
    let data = scratch.write("conversations.jsonl", lines.join("\n"));
    let rendered = read(&succeed(ft(["render", "--training", "--json"]).arg(&data)));
    let rendered: Vec<&Value> = rendered["conversations"].as_array().expect("a list").iter().map(|each| &each["text"]).collect();
    assert_eq!(rendered, expected);

    // Text in llama.cpp, with the template in a GGUF.
    let plain_path = scratch.write("plain.jinja", &plain);
    let said = read(&succeed(&mut peer("template_llama.py", [&model, &plain_path, &cases_path])));
    let in_llama = said["compared"].as_u64().expect("the peer counts");
    assert!(in_llama >= 250, "{in_llama} prompts only");
    eprintln!("{} renderings, {compared} with ids and mask, {} by ft, {in_llama} in llama.cpp: all equal", cases.len(), rendered.len());
}
