//! The template in minijinja, against the renderer. Other engines, and many more conversations, are compared in `tests/tests/template.rs`.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value as Argument};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::harmony::{
    Channel, Content, Conversation, DeveloperContent, Message, ReasoningEffort, Role, SystemContent, ToolDefinition, ToolNamespace,
    render_for_training,
};

/// The template with `variables`, in an environment as runtimes set it up.
fn render(variables: &Value) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap());
    environment.add_filter("tojson", |value: Argument| serde_json::to_string(&value).unwrap());
    environment.add_function("strftime_now", |format: String| format!("now as {format}"));
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.render_named_str("chat_template.jinja", &without_generation_marks(CHAT_TEMPLATE), Argument::from(Serde(variables)))
}

fn messages(messages: Value) -> Value {
    json!({ "messages": messages })
}

fn text(messages: Vec<Message>) -> String {
    let system = Message::system(SystemContent::default());
    render_for_training(&std::iter::once(system).chain(messages).collect::<Conversation>()).text()
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn call(id: &str, name: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[test]
fn thinking_becomes_analysis_and_the_last_answer_returns() {
    let found = render(&messages(json!([user("Q\n"), {"role": "assistant", "thinking": " T", "content": "A "}]))).unwrap();
    let expected = vec![Message::user("Q\n"), Message::assistant(Channel::Analysis, " T"), Message::assistant(Channel::Final, "A ")];
    assert_eq!(found, text(expected));
    assert!(found.ends_with("A <|return|>"));
}

#[test]
fn calls_side_by_side_are_answered_by_their_ids() {
    let found = render(&messages(json!([
        {"role": "system", "content": "One."},
        {"role": "developer", "content": [{"type": "text", "text": "Tw"}, {"type": "text", "text": "o."}]},
        user("Q"),
        {"role": "assistant", "content": "Wait.", "reasoning_content": "T",
         "tool_calls": [call("1", "f", json!("{\"raw\": 1}")), call("2", "functions.g", json!({"a": ["\"", 2.5, null], "items": {}}))]},
        {"role": "tool", "tool_call_id": "2", "content": "second \"raw\"\n"},
        {"role": "tool", "content": {"first": [1, "x"]}},
    ])))
    .unwrap();
    let expected = vec![
        Message::developer(DeveloperContent { instructions: Some("One.\n\nTwo.".to_owned()), tools: Vec::new() }),
        Message::user("Q"),
        Message::assistant(Channel::Analysis, "T"),
        Message::assistant(Channel::Commentary, "Wait."),
        Message::tool_call("functions.f", "{\"raw\": 1}"),
        Message::tool_call("functions.g", "{\"a\":[\"\\\"\",2.5,null],\"items\":{}}"),
        Message::tool_result("functions.g", "second \"raw\"\n"),
        Message::tool_result("functions.f", "{\"first\":[1,\"x\"]}"),
    ];
    assert_eq!(found, text(expected));
}

#[test]
fn channels_recipients_and_names_stand_as_the_data_has_them() {
    let found = render(&messages(json!([
        {"role": "user", "name": "ada", "content": "Q"},
        {"role": "assistant", "channel": "analysis", "recipient": "python", "content_type": "code", "content": "1"},
        {"role": "tool", "name": "python", "channel": "analysis", "content": "1"},
        {"role": "assistant", "channel": "commentary", "content": "Wait."},
        {"role": "assistant", "recipient": "functions.f", "content": "{}"},
    ])))
    .unwrap();
    let python = Message {
        recipient: Some("python".to_owned()),
        content_type: Some("code".to_owned()),
        ..Message::assistant(Channel::Analysis, "1")
    };
    let expected = vec![
        Message { name: Some("ada".to_owned()), ..Message::user("Q") },
        python,
        Message { channel: Some(Channel::Analysis), ..Message::tool_result("python", "1") },
        Message::assistant(Channel::Commentary, "Wait."),
        Message::tool_call("functions.f", "{}"),
    ];
    assert_eq!(found, text(expected));
}

#[test]
fn analysis_is_kept_until_an_answer_stands_after_it() {
    let calling = json!({"role": "assistant", "thinking": "First.", "tool_calls": [call("1", "f", json!("{}"))]});
    let result = json!({"role": "tool", "tool_call_id": "1", "content": "r"});
    let answer = json!({"role": "assistant", "thinking": "Second.", "content": "A"});
    let shows = |list: Value, is_prompt: bool| {
        let text = render(&json!({"messages": list, "add_generation_prompt": is_prompt})).unwrap();
        (text.contains("First."), text.contains("Second."), text.ends_with("<|start|>assistant"), text.ends_with("<|return|>"))
    };
    assert_eq!(shows(json!([user("Q"), calling, result]), true), (true, false, true, false));
    assert_eq!(shows(json!([user("Q"), calling, result, answer]), false), (true, true, false, true));
    assert_eq!(shows(json!([user("Q"), calling, result, answer]), true), (false, false, true, false));
    assert_eq!(shows(json!([user("Q"), calling, result, answer, user("R")]), false), (false, false, false, false));
    // A turn that never came to an answer keeps its analysis.
    assert_eq!(shows(json!([user("Q"), calling, result, user("R"), answer]), false), (true, true, false, true));
}

#[test]
fn the_system_message_says_what_the_variables_say() {
    let system = |variables: Value| {
        let text = render(&variables).unwrap();
        text.split_once("<|end|>").unwrap().0.to_owned()
    };
    let expected = |content: SystemContent| {
        let text = render_for_training(&std::iter::once(Message::system(content)).collect::<Conversation>()).text();
        text.strip_suffix("<|end|>").unwrap().to_owned()
    };
    let date = |date: &str| SystemContent { conversation_start_date: Some(date.to_owned()), ..SystemContent::default() };
    assert_eq!(system(json!({"messages": []})), expected(SystemContent::default()));
    for nothing in [json!(false), json!(""), json!(null)] {
        assert_eq!(system(json!({"messages": [], "current_date": nothing})), expected(SystemContent::default()));
    }
    assert_eq!(system(json!({"messages": [], "current_date": "2025-06-28"})), expected(date("2025-06-28")));
    assert_eq!(system(json!({"messages": [], "current_date": true})), expected(date("now as %Y-%m-%d")));
    assert_eq!(
        system(json!({"messages": [], "reasoning_effort": "high", "model_identity": "You are ft."})),
        expected(SystemContent {
            reasoning_effort: Some(ReasoningEffort::High),
            model_identity: Some("You are ft.".to_owned()),
            ..SystemContent::default()
        })
    );
}

#[test]
fn the_python_tool_is_a_section_of_the_system_message() {
    let found = render(&json!({"messages": [], "builtin_tools": ["python"]})).unwrap();
    let section = found.split_once("\n\n# Tools\n\n## python\n\n").unwrap().1.split_once("\n\n# Valid channels").unwrap().0;
    let python = ToolNamespace { name: "python".to_owned(), description: Some(section.to_owned()), tools: Vec::new() };
    assert_eq!(found, text_of_system(SystemContent { tools: vec![python], ..SystemContent::default() }));
}

fn text_of_system(content: SystemContent) -> String {
    render_for_training(&std::iter::once(Message::system(content)).collect::<Conversation>()).text()
}

#[test]
fn what_it_cannot_render_is_refused() {
    for (list, reason) in [
        (json!([{"role": "critic", "content": "x"}]), "a role that is none of"),
        (json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), "text only"),
        (json!([{"role": "user", "content": 3}]), "must be a text"),
        (json!([{"role": "tool", "content": "x"}]), "answers no tool call"),
    ] {
        let error = render(&messages(list)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn only_generation_marks_are_taken_away() {
    let template = "a {%- generation -%} b {% endgeneration %}\n{#- {% generation %} -#}{%+generation%}{% if generation %}c{% endif %}";
    assert_eq!(without_generation_marks(template), "a {#- -#} b {# #}\n{#- {% generation %} -#}{#+ #}{% if generation %}c{% endif %}");
    assert!(matches!(without_generation_marks("a {% if b %}c{% endif %}"), Cow::Borrowed(_)));
}

#[test]
fn the_marks_are_spelled_as_simple_readers_replace_them() {
    for mark in ["{% generation %}", "{% endgeneration %}"] {
        assert_eq!(CHAT_TEMPLATE.matches(mark).count(), 2, "{mark}");
    }
    let plain = without_generation_marks(CHAT_TEMPLATE);
    assert!(!plain.contains("{% generation %}") && !plain.contains("{% endgeneration %}"));
}

#[test]
fn llama_cpp_takes_it_for_harmony() {
    // Source: llama.cpp common/chat.cpp, common_chat_try_specialized_template; the second would be taken out of the template.
    assert!(CHAT_TEMPLATE.contains("<|channel|>"));
    assert!(!CHAT_TEMPLATE.contains("in message.content or"));
}

/// Any schema, with the keys that harmony looks at in any combination.
fn any_schema() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec!["a", "b", "Some words", "two\nlines", "", "say \"hi\"", "gr\u{f6}\u{df}e"]);
    let kind = prop::sample::select(vec![
        json!("string"),
        json!("number"),
        json!("integer"),
        json!("boolean"),
        json!("null"),
        json!("object"),
        json!("array"),
        json!(["string", "null"]),
        json!(["integer", 3]),
        json!([]),
    ]);
    let default = prop::sample::select(vec![
        json!("a"),
        json!(2),
        json!(2.5),
        json!(1e-7),
        json!(null),
        json!(true),
        json!(["b", 1]),
        json!({"k": "v"}),
    ]);
    let values = prop::sample::select(vec![json!(["a", "b"]), json!([]), json!([1, "a"]), json!("a")]);
    let decorated = move |inner: BoxedStrategy<Value>| {
        let pair = prop_oneof![
            3 => kind.clone().prop_map(|value| ("type", value)),
            2 => word.clone().prop_map(|value| ("description", json!(value))),
            1 => word.clone().prop_map(|value| ("title", json!(value))),
            2 => default.clone().prop_map(|value| ("default", value)),
            2 => values.clone().prop_map(|value| ("enum", value)),
            1 => values.clone().prop_map(|value| ("examples", value)),
            1 => values.clone().prop_map(|value| ("required", value)),
            1 => prop::sample::select(vec![json!(true), json!(false), json!("true")]).prop_map(|value| ("nullable", value)),
            1 => inner.clone().prop_map(|value| ("items", value)),
            2 => prop::collection::vec(inner.clone(), 0..3).prop_map(|value| ("oneOf", json!(value))),
            2 => prop::collection::vec((prop::sample::select(vec!["a", "b", "items", "type"]), inner), 0..3)
                .prop_map(|entries| ("properties", Value::Object(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()))),
        ];
        prop::collection::vec(pair, 0..6)
            .prop_map(|entries| Value::Object(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()))
    };
    let leaf = prop_oneof![4 => Just(json!({"type": "string"})), 1 => Just(json!(true)), 1 => Just(json!({}))].boxed();
    leaf.prop_recursive(4, 40, 4, move |inner| decorated(inner.boxed()))
}

proptest! {
    #[test]
    fn functions_show_as_the_renderer_shows_them(
        schema in any_schema(),
        description in prop::sample::select(vec!["", "Does it.", "One\nTwo\n", "One\r\n\r\nTwo"]),
        instructions in prop::option::of("[a-z \\n\u{e9}]{1,8}"),
        has_parameters in any::<bool>(),
    ) {
        let parameters = has_parameters.then_some(schema);
        let mut function = json!({"name": "f", "description": description});
        if let Some(parameters) = &parameters {
            function["parameters"] = parameters.clone();
        }
        let opening = instructions.iter().map(|text| json!({"role": "developer", "content": text}));
        let list: Vec<Value> = opening.chain([user("Q")]).collect();
        let found = render(&json!({"messages": list, "tools": [{"type": "function", "function": function}]})).unwrap();
        let tool = ToolDefinition { name: "f".to_owned(), description: description.to_owned(), parameters };
        let developer = DeveloperContent { instructions, tools: vec![ToolNamespace::functions(vec![tool])] };
        prop_assert_eq!(found, text(vec![Message::developer(developer), Message::user("Q")]));
    }

    #[test]
    fn any_text_stands_as_it_is(words in prop::collection::vec("[ \\t\\r\\na-z{}%#'\"\u{e9}\u{1f600}]{0,20}", 3)) {
        let found = render(&messages(json!([user(&words[0]), {"role": "assistant", "thinking": "T", "content": &words[1]}, user(&words[2])]))).unwrap();
        let assistant = Message { content: vec![Content::Text(words[1].clone())], ..Message::assistant(Channel::Final, "") };
        let expected: Conversation =
            [Message::system(SystemContent::default()), Message::user(&words[0]), assistant, Message::text(Role::User, &words[2])].into_iter().collect();
        prop_assert_eq!(found, render_for_training(&expected).text());
    }
}
