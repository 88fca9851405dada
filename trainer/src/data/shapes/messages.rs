//! `messages` with `role` and `content`: harmony's channels, and OpenAI chat.

use ft_formats::harmony::{Channel, Message, Role, ToolNamespace, json_text};
use serde_json::Value;

use super::builder::{Builder, message_of};
use super::{share_gpt, tools};
use crate::data::error::{DataError, NameKind};
use crate::data::field::Field;

/// Keys of a message.
const KEYS: [&str; 12] = [
    "role",
    "content",
    "channel",
    "thinking",
    "reasoning_content",
    "reasoning",
    "tool_calls",
    "tool_call_id",
    "name",
    "recipient",
    "content_type",
    "weight",
];
/// Keys that hold the chain of thought; the first that holds one counts.
const THINKING_KEYS: [&str; 3] = ["thinking", "reasoning_content", "reasoning"];
/// Keys that mean something for some roles only.
const KEYS_OF_ROLES: [(&str, &[Role]); 9] = [
    ("thinking", &[Role::Assistant]),
    ("reasoning_content", &[Role::Assistant]),
    ("reasoning", &[Role::Assistant]),
    ("tool_calls", &[Role::Assistant]),
    ("channel", &[Role::Assistant, Role::Tool]),
    ("recipient", &[Role::Assistant, Role::Tool]),
    ("content_type", &[Role::Assistant, Role::Tool]),
    ("tool_call_id", &[Role::Tool]),
    ("name", &[Role::User, Role::Assistant, Role::Tool]),
];

/// Reads a list of messages.
pub(super) fn read(builder: &mut Builder, list: &Field<'_>) -> Result<(), DataError> {
    for field in list.items()? {
        let object = field.object()?;
        if object.contains_key("from") && !object.contains_key("role") {
            share_gpt::read_message(builder, &field)?;
        } else {
            read_message(builder, &field)?;
        }
    }
    Ok(())
}

pub(super) fn read_message(builder: &mut Builder, field: &Field<'_>) -> Result<(), DataError> {
    field.only_keys(&KEYS)?;
    let role_field = field.require("role")?;
    let role =
        Role::from_name(role_field.string()?).ok_or_else(|| role_field.unknown_name(NameKind::Role, &Role::ALL.map(Role::as_str)))?;
    for (key, roles) in KEYS_OF_ROLES {
        if !roles.contains(&role) && field.said(key).is_some() {
            let (place, at) = (field.place.clone(), field.at.clone());
            return Err(DataError::KeyNotForRole { place, at, key, role: role.as_str() });
        }
    }
    match role {
        Role::System | Role::Developer => builder.push_instructions(field.require("content")?.texts()?.concat()),
        Role::User => {
            let message = message_of(role, field.require("content")?.texts()?);
            builder.push(Message { name: text_of(field, "name")?, ..message }, 1.0);
        }
        Role::Assistant => read_assistant(builder, field)?,
        Role::Tool => {
            let name = builder.tool_name(field)?;
            let message = Message {
                content: message_of(role, result_texts(&field.require("content")?)?).content,
                recipient: Some(text_of(field, "recipient")?.unwrap_or_else(|| Role::Assistant.as_str().to_owned())),
                channel: Some(channel_of(field)?.unwrap_or(Channel::Commentary)),
                content_type: text_of(field, "content_type")?,
                ..Message::tool_result(name, "")
            };
            builder.push(message, 1.0);
        }
    }
    Ok(())
}

/// One entry of the assistant, which may be several messages: its thinking, words to the user, tool calls.
fn read_assistant(builder: &mut Builder, field: &Field<'_>) -> Result<(), DataError> {
    let weight = weight_of(field)?;
    let channel = channel_of(field)?;
    let name = text_of(field, "name")?;
    let thinking = THINKING_KEYS.iter().find_map(|key| field.said(key));
    if let Some(thinking) = &thinking {
        builder.push_assistant(Channel::Analysis, thinking.string()?, weight);
    }
    let calls = field.said("tool_calls").map(|calls| calls.items()).transpose()?.unwrap_or_default();
    let content = field.get("content").map(|content| content.texts()).transpose()?;
    if let Some(recipient) = text_of(field, "recipient")? {
        let content = content.map_or_else(|| field.require("content").and_then(|content| content.texts()), Ok)?;
        let is_function = recipient.starts_with(ToolNamespace::FUNCTIONS);
        let default_type = is_function.then(|| "<|constrain|>json".to_owned());
        let message = Message {
            name,
            recipient: Some(recipient),
            channel: Some(channel.unwrap_or(Channel::Commentary)),
            content_type: text_of(field, "content_type")?.or(default_type),
            ..message_of(Role::Assistant, content)
        };
        builder.push(message, weight);
    } else if calls.is_empty() {
        match content {
            Some(texts) => {
                let message = Message {
                    name,
                    channel: Some(channel.unwrap_or(Channel::Final)),
                    content_type: text_of(field, "content_type")?,
                    ..message_of(Role::Assistant, texts)
                };
                builder.push(message, weight);
            }
            None if thinking.is_some() => {}
            None => {
                field.require("content")?;
            }
        }
    } else {
        if channel == Some(Channel::Final) {
            return Err(DataError::FinalWithToolCalls { place: field.place.clone(), at: field.at.clone() });
        }
        // Words beside a call go before it: a preamble, unless the data names their channel.
        if let Some(texts) = content.filter(|texts| texts.iter().any(|text| !text.is_empty())) {
            let channel = Some(channel.unwrap_or(Channel::Commentary));
            builder.push(Message { name, channel, ..message_of(Role::Assistant, texts) }, weight);
        }
    }
    for call in &calls {
        let call = tools::call(call)?;
        builder.push_call(call.id, call.name, call.arguments, weight);
    }
    Ok(())
}

/// The texts of a tool's result: as for any message, and JSON that is no text written without blanks.
fn result_texts(content: &Field<'_>) -> Result<Vec<String>, DataError> {
    let is_text_part = |part: &Value| part.is_string() || part.get("type").is_some();
    match content.value {
        Value::Object(_) => Ok(vec![json_text(content.value)]),
        Value::Array(parts) if !parts.iter().all(is_text_part) => Ok(vec![json_text(content.value)]),
        _ => content.texts(),
    }
}

fn text_of(field: &Field<'_>, key: &str) -> Result<Option<String>, DataError> {
    field.said(key).map(|text| text.string().map(str::to_owned)).transpose()
}

fn channel_of(field: &Field<'_>) -> Result<Option<Channel>, DataError> {
    let Some(found) = field.get("channel") else {
        return Ok(None);
    };
    let channel = Channel::from_name(found.string()?);
    channel.map(Some).ok_or_else(|| found.unknown_name(NameKind::Channel, &Channel::ALL.map(Channel::as_str)))
}

/// `weight` as OpenAI's fine-tuning files have it: 0 keeps a message as context only.
pub(super) fn weight_of(field: &Field<'_>) -> Result<f32, DataError> {
    let Some(found) = field.get("weight") else {
        return Ok(1.0);
    };
    match found.value.as_f64() {
        Some(weight) if (0.0..=1.0).contains(&weight) => Ok(weight as f32),
        _ => Err(found.wrong_type("a number from 0 to 1")),
    }
}
