//! Tool definitions and tool calls, as OpenAI chat writes them.

use ft_formats::harmony::{ToolDefinition, json_text};
use serde_json::Value;

use crate::data::error::{DataError, NameKind};
use crate::data::field::Field;

/// The functions in `tools`: a list, or the JSON text of one (tables store it so).
pub(super) fn read(tools: &Field<'_>) -> Result<Vec<ToolDefinition>, DataError> {
    if let Value::String(text) = tools.value {
        let Ok(value) = serde_json::from_str::<Value>(text) else {
            return Err(tools.wrong_type("a list of functions, or the JSON text of one"));
        };
        return definitions(&Field::new(tools.place, tools.at.clone(), &value));
    }
    definitions(tools)
}

fn definitions(tools: &Field<'_>) -> Result<Vec<ToolDefinition>, DataError> {
    tools.items()?.iter().map(definition).collect()
}

/// `{"type": "function", "function": {...}}`, or what stands inside it by itself.
fn definition(tool: &Field<'_>) -> Result<ToolDefinition, DataError> {
    tool.object()?;
    check_function_type(tool)?;
    let function = match tool.get("function") {
        Some(function) => {
            tool.only_keys(&["type", "function"])?;
            function
        }
        None => tool.clone(),
    };
    function.only_keys(&["type", "name", "description", "parameters", "strict"])?;
    let parameters = function.get("parameters");
    if let Some(parameters) = &parameters {
        parameters.object()?;
    }
    Ok(ToolDefinition {
        name: function.require("name")?.string()?.to_owned(),
        description: function.get("description").map(|text| text.string()).transpose()?.unwrap_or_default().to_owned(),
        parameters: parameters.map(|parameters| parameters.value.clone()),
    })
}

/// A call that the assistant makes.
pub(super) struct ToolCall<'v> {
    pub(super) id: Option<&'v str>,
    pub(super) name: &'v str,
    /// JSON text: as it stands when the data holds text, else written without blanks.
    pub(super) arguments: String,
}

/// One entry of `tool_calls`: `{"id", "type": "function", "function": {"name", "arguments"}}`, or name and arguments by
/// themselves.
pub(super) fn call<'v>(field: &Field<'v>) -> Result<ToolCall<'v>, DataError> {
    field.object()?;
    check_function_type(field)?;
    let function = match field.get("function") {
        Some(function) => {
            field.only_keys(&["id", "type", "index", "function"])?;
            function.only_keys(&["name", "arguments"])?;
            function
        }
        None => {
            field.only_keys(&["id", "type", "index", "name", "arguments"])?;
            field.clone()
        }
    };
    let arguments = match function.get("arguments") {
        None => "{}".to_owned(),
        Some(arguments) => match arguments.value {
            Value::String(text) => text.clone(),
            value @ Value::Object(_) => json_text(value),
            _ => return Err(arguments.wrong_type("a JSON text or an object")),
        },
    };
    Ok(ToolCall { id: field.get("id").map(|id| id.string()).transpose()?, name: function.require("name")?.string()?, arguments })
}

fn check_function_type(field: &Field<'_>) -> Result<(), DataError> {
    match field.get("type") {
        Some(kind) if kind.string()? != "function" => Err(kind.unknown_name(NameKind::ToolType, &["function"])),
        _ => Ok(()),
    }
}
