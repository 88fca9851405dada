//! A question and its answer: `prompt` and `completion`, `instruction` and `output`.

use ft_formats::harmony::{Channel, Message};
use serde_json::Value;

use super::builder::Builder;
use super::messages;
use crate::data::error::DataError;
use crate::data::field::Field;

/// Texts are the user's message and the answer; lists are messages, of which those of the prompt are not trained.
pub(super) fn read_prompt_completion(builder: &mut Builder, line: &Field<'_>) -> Result<(), DataError> {
    let prompt = line.require("prompt")?;
    match prompt.value {
        Value::String(text) => builder.push(Message::user(text.as_str()), 1.0),
        Value::Array(_) => {
            builder.is_context = true;
            messages::read(builder, &prompt)?;
            builder.is_context = false;
        }
        _ => return Err(prompt.wrong_type("a string or a list of messages")),
    }
    let completion = line.require("completion")?;
    match completion.value {
        Value::String(text) => builder.push_assistant(Channel::Final, text, 1.0),
        Value::Array(_) => messages::read(builder, &completion)?,
        _ => return Err(completion.wrong_type("a string or a list of messages")),
    }
    Ok(())
}

/// `input` follows the instruction after an empty line.
pub(super) fn read_instruction(builder: &mut Builder, line: &Field<'_>) -> Result<(), DataError> {
    let instruction = line.require("instruction")?.string()?;
    let input = line.get("input").map(|input| input.string()).transpose()?.unwrap_or_default();
    let question = match (instruction, input) {
        (instruction, "") => instruction.to_owned(),
        ("", input) => input.to_owned(),
        (instruction, input) => format!("{instruction}\n\n{input}"),
    };
    builder.push(Message::user(question), 1.0);
    builder.push_assistant(Channel::Final, line.require("output")?.string()?, 1.0);
    Ok(())
}
