//! Lines of files as conversations.

use std::path::Path;

use ft_formats::harmony::Conversation;
use serde_json::Value;

use super::columns::Columns;
use super::error::{DataError, Place, nearest_name};
use super::field::Field;
use super::shape::Shape;
use super::{shapes, source};

/// A conversation, or a plain text, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedConversation {
    /// The file and line.
    pub place: Place,
    /// The shape that it was recognised by.
    pub shape: Shape,
    /// What it says.
    pub body: Body,
    /// Keys of the line that mean nothing in its shape.
    pub ignored_keys: Vec<String>,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A conversation in harmony, its system message first.
    Conversation {
        /// The messages, none dropped.
        conversation: Conversation,
        /// A factor on the loss weight of each message: 1, or what the data says (`weight`), or 0 in a prompt.
        message_weights: Vec<f32>,
    },
    /// A text that is trained as it stands.
    Text(String),
}

/// All conversations of `sources` (files, folders, patterns), in the order of the sources, their files and rows.
///
/// # Errors
/// The first row that is broken or not understood, and sources without any conversation.
pub fn load_conversations(sources: &[String], columns: &Columns) -> Result<Vec<LoadedConversation>, DataError> {
    let mut conversations = Vec::new();
    for origin in sources {
        let before = conversations.len();
        for file in source::files(origin)? {
            source::for_each_row(&file, columns, |row| {
                let (place, value) = row.parse()?;
                conversations.push(read_row(place, value, columns)?);
                Ok(())
            })?;
        }
        if conversations.len() == before {
            return Err(DataError::EmptySource { origin: origin.clone() });
        }
    }
    Ok(conversations)
}

/// All conversations of a text, a JSON object in each line; errors place them in the file `name`.
///
/// # Errors
/// The first line that is broken or not understood.
pub fn conversations_of_text(name: &Path, text: &str) -> Result<Vec<LoadedConversation>, DataError> {
    let mut conversations = Vec::new();
    source::for_each_line(text.as_bytes(), name, |row| {
        let (place, value) = row.parse()?;
        conversations.push(read_row(place, value, &Columns::default())?);
        Ok(())
    })?;
    Ok(conversations)
}

/// The conversation in one row.
pub(super) fn read_row(place: Place, value: Value, columns: &Columns) -> Result<LoadedConversation, DataError> {
    let value = columns.apply(&place, value)?;
    let line = Field::new(&place, "the line", &value);
    let object = line.object()?;
    let shape = Shape::of(&place, object)?;
    let known = shape.known_keys();
    let mut ignored_keys = Vec::new();
    for (key, _) in object.iter().filter(|(key, value)| !value.is_null() && !known.contains(&key.as_str())) {
        // Other columns are common and harmless; a misspelled key is neither.
        if nearest_name(key, known).is_some_and(|nearest| !object.contains_key(nearest)) {
            return Err(line.unknown_key(key, known));
        }
        ignored_keys.push(key.clone());
    }
    let body = shapes::read(shape, &Field::new(&place, "", &value))?;
    Ok(LoadedConversation { place, shape, body, ignored_keys })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use ft_formats::Hint;
    use ft_formats::harmony::render_for_training;
    use serde_json::json;

    use super::*;

    fn read(line: Value) -> Result<LoadedConversation, DataError> {
        read_row(Place { file: PathBuf::from("d.jsonl"), line: 3 }, line, &Columns::default())
    }

    /// The rendered text without the system message.
    fn text(line: Value) -> String {
        match read(line).unwrap().body {
            Body::Text(text) => text,
            Body::Conversation { conversation, .. } => {
                let text = render_for_training(&conversation).text();
                text.split_once("<|end|>").unwrap().1.to_owned()
            }
        }
    }

    fn complaint(line: Value) -> (String, String) {
        let error = read(line).unwrap_err();
        (error.to_string(), error.hint().unwrap_or_default())
    }

    #[test]
    fn every_shape_becomes_the_same_conversation() {
        let expected = "<|start|>user<|message|>Q<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>";
        let question = json!({"role": "user", "content": "Q"});
        let answer = json!({"role": "assistant", "content": "A"});
        for (line, shape) in [
            (json!({"messages": [question, answer]}), Shape::Messages),
            (
                json!({"messages": [question, {"role": "assistant", "channel": "final", "content": [{"type": "text", "text": "A"}]}]}),
                Shape::Messages,
            ),
            (json!({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}), Shape::ShareGpt),
            (json!({"prompt": "Q", "completion": "A"}), Shape::PromptCompletion),
            (json!({"prompt": [question], "completion": [answer]}), Shape::PromptCompletion),
            (json!({"instruction": "Q", "input": "", "output": "A"}), Shape::Instruction),
        ] {
            assert_eq!(read(line.clone()).unwrap().shape, shape, "{line}");
            assert_eq!(text(line.clone()), expected, "{line}");
        }
        assert!(text(json!({"instruction": "Q", "input": "I", "output": "A"})).contains("Q\n\nI<|end|>"));
        assert_eq!(text(json!({"text": "plain"})), "plain");
    }

    #[test]
    fn share_gpt_calls_and_observations_are_tool_messages() {
        let line = json!({"conversations": [
            {"from": "system", "value": "S"}, {"from": "human", "value": "Q"},
            {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"a\": 1}}"}, {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "A"},
        ]});
        assert_eq!(
            text(line),
            "<|start|>developer<|message|># Instructions\n\nS<|end|><|start|>user<|message|>Q<|end|><|start|>assistant \
             to=functions.f<|channel|>commentary <|constrain|>json<|message|>{\"a\":1}<|call|><|start|>functions.f \
             to=assistant<|channel|>commentary<|message|>r<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>"
        );
    }

    #[test]
    fn json_given_as_an_object_is_written_as_harmony_writes_it() {
        let line = json!({"messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": 1e20, "b": ["x y", 1e-7]}}}]},
            {"role": "tool", "tool_call_id": "1", "content": {"r": 1e16}},
            {"role": "assistant", "content": "A"},
        ]});
        let text = text(line);
        assert!(text.contains(r#"<|message|>{"a":1e20,"b":["x y",1e-7]}<|call|>"#), "{text}");
        assert!(text.contains(r#"<|message|>{"r":1e16}<|end|>"#), "{text}");
    }

    #[test]
    fn leading_instructions_are_one_developer_message() {
        let line = json!({"messages": [
            {"role": "system", "content": "One."}, {"role": "developer", "content": "Two."}, {"role": "user", "content": "Q"},
        ]});
        assert!(text(line).starts_with("<|start|>developer<|message|># Instructions\n\nOne.\n\nTwo.<|end|><|start|>user"));
    }

    #[test]
    fn a_prompts_own_answers_are_not_trained() {
        let question = json!({"role": "user", "content": "Q"});
        let answer = json!({"role": "assistant", "content": "A"});
        let loaded = read(json!({"prompt": [question, answer, question], "completion": [answer]})).unwrap();
        let Body::Conversation { message_weights, .. } = loaded.body else { panic!("a conversation") };
        assert_eq!(message_weights, [1.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn misspelled_names_are_errors_with_the_nearest_one() {
        let user = json!({"role": "user", "content": "Q"});
        let cases = [
            (
                json!({"messages": [{"role": "asistant", "content": "A"}]}),
                "d.jsonl:3: unknown role `asistant` in messages[0].role",
                "`assistant`?",
            ),
            (
                json!({"messages": [user, {"role": "assistant", "channel": "finale", "content": "A"}]}),
                "unknown channel `finale` in messages[1].channel",
                "`final`?",
            ),
            (json!({"messages": [user], "reasoning": "hgih"}), "unknown reasoning level `hgih` in reasoning", "`high`?"),
            (json!({"messages": [{"role": "user", "contnet": "A"}]}), "unknown key `contnet` in messages[0]", "`content`?"),
            (json!({"messages": [user], "tool": []}), "unknown key `tool` in the line", "`tools`?"),
            (json!({"mesages": [user]}), "no known conversation shape has the keys `mesages`", "`mesages` may mean `messages`"),
            (json!({"conversations": [{"from": "humman", "value": "Q"}]}), "unknown role `humman` in conversations[0].from", "`human`?"),
        ];
        for (line, says, hints) in cases {
            let (message, hint) = complaint(line);
            assert!(message.contains(says), "{message}");
            assert!(hint.contains(hints), "{hint}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_an_error_with_its_place() {
        let call = json!({"function": {"name": "f", "arguments": "{}"}});
        let cases = [
            (json!([]), "d.jsonl:3: the line should be an object, found a list"),
            (json!({"messages": "Q"}), "messages should be a list, found a string"),
            (json!({"messages": [3]}), "messages[0] should be an object, found a number"),
            (json!({"messages": [{"role": "user"}]}), "missing key `content` in messages[0]"),
            (json!({"messages": [{"role": "assistant", "content": null}]}), "missing key `content` in messages[0]"),
            (json!({"messages": [{"content": "Q"}]}), "missing key `role` in messages[0]"),
            (
                json!({"messages": [{"role": "user", "content": "Q", "channel": "final"}]}),
                "key `channel` in messages[0] is not for a message of role `user`",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "unknown content type `image_url` in messages[0].content[0].type",
            ),
            (json!({"messages": [{"role": "tool", "content": "r"}]}), "messages[0] does not say which tool it comes from"),
            (
                json!({"messages": [{"role": "tool", "tool_call_id": "7", "content": "r"}]}),
                "`tool_call_id` `7` in messages[0] is of no tool call before it",
            ),
            (
                json!({"messages": [{"role": "assistant", "channel": "final", "content": "A", "tool_calls": [call]}]}),
                "messages[0] is on channel `final` and has tool calls",
            ),
            (
                json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]}),
                "missing key `name` in messages[0].tool_calls[0].function",
            ),
            (json!({"messages": [], "tools": "nope"}), "tools should be a list of functions"),
            (json!({"prompt": 1, "completion": "A"}), "prompt should be a string or a list of messages, found a number"),
            (
                json!({"messages": [{"role": "assistant", "content": "A", "weight": 2}]}),
                "messages[0].weight should be a number from 0 to 1",
            ),
        ];
        for (line, says) in cases {
            let (message, _) = complaint(line);
            assert!(message.contains(says), "{message} instead of {says}");
        }
    }

    #[test]
    fn other_columns_are_passed_over_and_counted() {
        let loaded = read(json!({"messages": [], "id": 7, "source": "web", "score": null})).unwrap();
        assert_eq!(loaded.ignored_keys, ["id", "source"]);
        // The columns of HuggingFaceH4/Multilingual-Thinking.
        let columns = ["reasoning_language", "developer", "user", "analysis", "final"];
        let mut line = json!({"messages": [{"role": "user", "content": "Q", "thinking": null}]});
        for column in columns {
            line[column] = json!("text");
        }
        assert_eq!(read(line).unwrap().ignored_keys, columns);
    }
}
