//! The Modelfile as Ollama reads it, and its template against the renderer.

use serde_json::{Value, json};

use super::*;
use crate::harmony::{
    Channel, Conversation, DeveloperContent, Message, ReasoningEffort, SystemContent, ToolDefinition, ToolNamespace, render,
    render_for_completion,
};
use crate::tokenizer::Tokenizer;

fn modelfile(adapter: Option<&str>) -> String {
    let from = if adapter.is_some() { "gpt-oss:20b" } else { "./my model.gguf" };
    Modelfile { name: "mine".to_owned(), from: from.to_owned(), adapter: adapter.map(str::to_owned) }.text().unwrap()
}

/// Commands and their values. Source: ollama parser/parser.go: a value ends with its line, or with the quotation marks that it began with.
fn commands(text: &str) -> Vec<(String, String)> {
    let (mut found, mut rest) = (Vec::new(), text);
    while !rest.trim_start().is_empty() {
        rest = rest.trim_start();
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = after;
        if line.starts_with('#') {
            continue;
        }
        let (command, value) = line.split_once(' ').unwrap();
        if let Some(begun) = value.strip_prefix("\"\"\"") {
            let start = text.len() - after.len() - begun.len() - 1;
            let (value, after) = text[start..].split_once("\"\"\"").unwrap();
            found.push((command.to_owned(), value.to_owned()));
            rest = after;
        } else {
            found.push((command.to_owned(), value.to_owned()));
        }
    }
    found
}

#[test]
fn a_modelfile_names_weights_template_and_sampling() {
    let found = commands(&modelfile(None));
    let pairs: Vec<(&str, &str)> = found.iter().map(|(command, value)| (command.as_str(), value.as_str())).collect();
    let expected = [
        ("FROM", "./my model.gguf"),
        ("TEMPLATE", OLLAMA_TEMPLATE),
        ("PARAMETER", "temperature 1.0"),
        ("PARAMETER", "top_k 0"),
        ("PARAMETER", "top_p 1.0"),
    ];
    assert_eq!(pairs, expected);
}

#[test]
fn an_adapter_stands_on_its_base() {
    let found = commands(&modelfile(Some("./adapter.gguf")));
    assert_eq!(found[..2], [("FROM".to_owned(), "gpt-oss:20b".to_owned()), ("ADAPTER".to_owned(), "./adapter.gguf".to_owned())]);
    assert!(modelfile(None).contains("#   ollama create mine -f Modelfile\n#   ollama run mine\n"));
}

#[test]
fn ollama_takes_the_template_for_harmony() {
    // Source: ollama server/routes.go, shouldUseHarmony. The value ends at three quotation marks.
    assert!(OLLAMA_TEMPLATE.contains("<|start|>") && OLLAMA_TEMPLATE.contains("<|end|>") && !OLLAMA_TEMPLATE.contains("\"\"\""));
    assert!(!modelfile(None).contains("PARAMETER stop"));
}

#[test]
fn a_name_that_would_be_read_as_another_is_refused() {
    for from in ["", " a", "a\nPARAMETER stop x", "\"a\"", "a\u{0}"] {
        let error = Modelfile { name: "mine".to_owned(), from: from.to_owned(), adapter: None }.text().unwrap_err();
        assert_eq!(error, ModelfileError { what: "FROM", found: from.to_owned() });
    }
}

/// The prompt of a request, given as Ollama gives it to a template.
fn prompt(mut variables: Value) -> String {
    for (key, value) in [("System", json!("")), ("Think", json!(false)), ("ThinkLevel", json!("")), ("IsThinkSet", json!(false))] {
        variables.as_object_mut().unwrap().entry(key).or_insert(value);
    }
    super::go_template::render(OLLAMA_TEMPLATE, &variables).unwrap()
}

fn expected(system: SystemContent, messages: Vec<Message>) -> String {
    let conversation: Conversation = std::iter::once(Message::system(system)).chain(messages).collect();
    String::from_utf8(Tokenizer::o200k_harmony().decode(&render_for_completion(&conversation))).unwrap()
}

fn user(text: &str) -> Value {
    json!({"Role": "user", "Content": text})
}

#[test]
fn levels_of_thinking_stand_in_the_system_message() {
    let effort = |effort| SystemContent { reasoning_effort: Some(effort), ..SystemContent::default() };
    for (think, level) in [
        (json!({}), ReasoningEffort::Medium),
        (json!({"IsThinkSet": true, "Think": true, "ThinkLevel": "high"}), ReasoningEffort::High),
        (json!({"IsThinkSet": true, "Think": true, "ThinkLevel": "max"}), ReasoningEffort::High),
        (json!({"IsThinkSet": true, "Think": false}), ReasoningEffort::Low),
    ] {
        let mut variables = think;
        variables["Messages"] = json!([user("Q")]);
        assert_eq!(prompt(variables), expected(effort(level), vec![Message::user("Q")]));
    }
}

#[test]
fn analysis_is_kept_until_an_answer_stands_after_it() {
    let call = json!({"Function": {"Name": "f", "Arguments": {"a": "b"}}});
    let calling = json!({"Role": "assistant", "Content": "Wait.", "Thinking": "T", "ToolCalls": [call, {"Function": {"Name": "g", "Arguments": {}}}]});
    let results =
        [json!({"Role": "tool", "ToolName": "f", "Content": "\"raw\"\n"}), json!({"Role": "tool", "ToolName": "", "Content": "s"})];
    let mut messages = vec![json!({"Role": "system", "Content": "Be brief."}), user("Q"), calling, results[0].clone(), results[1].clone()];
    let instructions = DeveloperContent { instructions: Some("Be brief.".to_owned()), tools: Vec::new() };
    let told = |has_analysis: bool| {
        let mut told = vec![Message::developer(instructions.clone()), Message::user("Q")];
        told.extend(has_analysis.then(|| Message::assistant(Channel::Analysis, "T")));
        told.extend([
            Message::assistant(Channel::Commentary, "Wait."),
            Message::tool_call("functions.f", "{\"a\":\"b\"}"),
            Message::tool_call("functions.g", "{}"),
            Message::tool_result("functions.f", "\"raw\"\n"),
            Message::tool_result("functions.g", "s"),
        ]);
        told
    };
    let variables = |messages: &[Value]| json!({"Messages": messages, "System": "Be brief."});
    assert_eq!(prompt(variables(&messages)), expected(SystemContent::default(), told(true)));
    messages.extend([json!({"Role": "assistant", "Content": "A", "Thinking": "U"}), user("R")]);
    let mut answered = told(false);
    answered.extend([Message::assistant(Channel::Final, "A"), Message::user("R")]);
    assert_eq!(prompt(variables(&messages)), expected(SystemContent::default(), answered));
}

#[test]
fn an_answer_that_was_begun_is_left_open() {
    let begun = json!({"Messages": [user("Q"), {"Role": "assistant", "Content": "An", "Thinking": "T"}]});
    let closed: Conversation = [
        Message::system(SystemContent::default()),
        Message::user("Q"),
        Message::assistant(Channel::Analysis, "T"),
        Message::assistant(Channel::Final, "An"),
    ]
    .into_iter()
    .collect();
    assert_eq!(prompt(begun) + "<|end|>", render(&closed).text());
}

#[test]
fn functions_show_as_the_renderer_shows_them() {
    let properties = json!({
        "a": {"Type": "string", "Description": "The a."},
        "b": {"Type": "integer"},
        "c": {"Type": "string", "Enum": ["x", "y"]},
        "d": {"Type": "array", "Items": {"type": "string"}},
        "e": {"Type": "array", "Items": null},
        "f": {"Type": "boolean"},
    });
    let tools = json!([
        {"Function": {"Name": "f", "Description": "Does it.", "Parameters": {"Required": ["a", "d"], "Properties": properties}}},
        {"Function": {"Name": "g", "Description": "", "Parameters": {"Required": null, "Properties": {}}}},
    ]);
    let schema = json!({"type": "object", "required": ["a", "d"], "properties": {
        "a": {"type": "string", "description": "The a."},
        "b": {"type": "integer"},
        "c": {"type": "string", "enum": ["x", "y"]},
        "d": {"type": "array", "items": {"type": "string"}},
        "e": {"type": "array"},
        "f": {"type": "boolean"},
    }});
    let functions = vec![
        ToolDefinition { name: "f".to_owned(), description: "Does it.".to_owned(), parameters: Some(schema) },
        ToolDefinition { name: "g".to_owned(), description: String::new(), parameters: None },
    ];
    for system in ["", "Be brief."] {
        let instructions = (!system.is_empty()).then(|| system.to_owned());
        let developer = DeveloperContent { instructions, tools: vec![ToolNamespace::functions(functions.clone())] };
        let found = prompt(json!({"Messages": [user("Q")], "System": system, "Tools": tools}));
        assert_eq!(found, expected(SystemContent::default(), vec![Message::developer(developer), Message::user("Q")]));
    }
}

#[test]
fn the_interpreter_of_these_tests_refuses_what_it_does_not_know() {
    for template in [
        "{{ if .A }}x",
        "{{ end }}",
        "{{ $a }}",
        "{{ $a = 1 }}",
        "{{ upper .A }}",
        "{{ eq .A \"x\" }}",
        "{{ .A",
        "{{ if .A }}{{ else }}{{ else }}{{ end }}",
    ] {
        assert!(super::go_template::render(template, &json!({})).is_err(), "{template}");
    }
}
