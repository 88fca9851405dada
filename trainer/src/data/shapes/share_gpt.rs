//! ShareGPT: `conversations` with `from` and `value`.

use ft_formats::harmony::{Channel, Message, Role};
use serde_json::Value;

use super::builder::{Builder, message_of};
use super::{messages, tools};
use crate::data::error::{DataError, NameKind};
use crate::data::field::Field;

/// The names that `from` takes in the wild, and who they are.
const AUTHORS: [(&str, Author); 13] = [
    ("human", Author::Role(Role::User)),
    ("user", Author::Role(Role::User)),
    ("gpt", Author::Role(Role::Assistant)),
    ("assistant", Author::Role(Role::Assistant)),
    ("chatgpt", Author::Role(Role::Assistant)),
    ("model", Author::Role(Role::Assistant)),
    ("system", Author::Role(Role::System)),
    ("developer", Author::Role(Role::Developer)),
    ("tool", Author::Role(Role::Tool)),
    ("observation", Author::Role(Role::Tool)),
    ("function_response", Author::Role(Role::Tool)),
    ("function_call", Author::FunctionCall),
    ("tool_call", Author::FunctionCall),
];

#[derive(Debug, Clone, Copy)]
enum Author {
    Role(Role),
    /// The assistant, whose value is `{"name", "arguments"}` as JSON text.
    FunctionCall,
}

/// Reads a list of messages.
pub(super) fn read(builder: &mut Builder, list: &Field<'_>) -> Result<(), DataError> {
    for field in list.items()? {
        let object = field.object()?;
        if object.contains_key("role") && !object.contains_key("from") {
            messages::read_message(builder, &field)?;
        } else {
            read_message(builder, &field)?;
        }
    }
    Ok(())
}

pub(super) fn read_message(builder: &mut Builder, field: &Field<'_>) -> Result<(), DataError> {
    field.only_keys(&["from", "value", "name", "tool_call_id", "weight"])?;
    let from = field.require("from")?;
    let name = from.string()?;
    let author = AUTHORS.iter().find(|(known, _)| *known == name).map(|(_, author)| *author);
    let author = author.ok_or_else(|| from.unknown_name(NameKind::Role, &AUTHORS.map(|(known, _)| known)))?;
    let weight = messages::weight_of(field)?;
    let value = field.require("value")?;
    match author {
        Author::Role(Role::System | Role::Developer) => builder.push_instructions(value.texts()?.concat()),
        Author::Role(Role::User) => builder.push(message_of(Role::User, value.texts()?), 1.0),
        Author::Role(Role::Assistant) => {
            let message = message_of(Role::Assistant, value.texts()?);
            builder.push(Message { channel: Some(Channel::Final), ..message }, weight);
        }
        Author::Role(Role::Tool) => {
            let tool = builder.tool_name(field)?;
            let content = message_of(Role::Tool, value.texts()?).content;
            builder.push(Message { content, ..Message::tool_result(tool, "") }, 1.0);
        }
        Author::FunctionCall => {
            let Ok(call @ Value::Object(_)) = serde_json::from_str::<Value>(value.string()?) else {
                return Err(value.wrong_type("the JSON text of a function call"));
            };
            let call_field = Field::new(field.place, value.at.clone(), &call);
            let call = tools::call(&call_field)?;
            builder.push_call(call.id, call.name, call.arguments, weight);
        }
    }
    Ok(())
}
