//! JSON schema to the TypeScript types in which harmony shows tools to the model.
//!
//! Every line break, indent and comment is that of openai-harmony, its irregular ones included: the model was trained on
//! this text, and so must a fine-tune be. Property order is the order of the schema.
//! Source: openai/harmony `src/encoding.rs` `json_schema_to_typescript`; behaviour compared by running 0.0.8.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::json::json_text;

/// The type of `schema`, whose continuation lines start with `indent`.
pub(super) fn type_text(schema: &Value, indent: &str) -> String {
    if let Some(variants) = schema.get("oneOf").and_then(Value::as_array) {
        return variants.iter().map(|variant| type_variant(variant, indent)).collect();
    }
    match schema.get("type") {
        Some(Value::Array(names)) => union_of_names(names),
        Some(Value::String(name)) => match name.as_str() {
            "object" => object(schema, indent),
            "string" => string(schema),
            "number" | "integer" => "number".to_owned(),
            "boolean" => "boolean".to_owned(),
            "array" => match schema.get("items") {
                Some(items) => format!("{}[]", type_text(items, indent)),
                None => "Array<any>".to_owned(),
            },
            _ => "any".to_owned(),
        },
        _ => "any".to_owned(),
    }
}

/// One line of a `oneOf` that stands where a type stands: its comments are its own description and default.
fn type_variant(variant: &Value, indent: &str) -> String {
    let description = text_of(variant, "description").map(str::to_owned);
    // Here, and only here, the default of a string enum keeps its quotes.
    let default = variant.get("default").map(|value| match value {
        Value::String(text) if !is_enum(variant) => format!("default: \"{text}\""),
        other => format!("default: {}", json_text(other)),
    });
    let comment = trailing_comment(description.into_iter().chain(default).collect());
    format!("\n{indent} | {}{comment}", nullable_type(variant, &format!("{indent}   ")))
}

fn union_of_names(names: &[Value]) -> String {
    let names: Vec<&str> = names.iter().filter_map(Value::as_str).map(|name| if name == "integer" { "number" } else { name }).collect();
    if names.is_empty() { "any".to_owned() } else { names.join(" | ") }
}

fn string(schema: &Value) -> String {
    let values = schema.get("enum").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let quoted: Vec<String> = values.iter().filter_map(Value::as_str).map(|value| format!("\"{value}\"")).collect();
    if quoted.is_empty() { "string".to_owned() } else { quoted.join(" | ") }
}

fn object(schema: &Value, indent: &str) -> String {
    let mut text = String::new();
    if let Some(description) = text_of(schema, "description") {
        text += &format!("{indent}// {description}\n");
    }
    text += "{\n";
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let required = schema.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let required: HashSet<&str> = required.iter().filter_map(Value::as_str).collect();
        text += &properties_text(properties, &required, indent);
    }
    text + indent + "}"
}

fn properties_text(properties: &Map<String, Value>, required: &HashSet<&str>, indent: &str) -> String {
    let mut text = String::new();
    for (key, schema) in properties {
        let mark = if required.contains(key.as_str()) { "" } else { "?" };
        let one_of = schema.get("oneOf");
        if let Some(title) = text_of(schema, "title") {
            text += &format!("{indent}// {title}\n{indent}//\n");
        }
        if one_of.is_none()
            && let Some(description) = text_of(schema, "description")
        {
            text += &format!("{indent}// {description}\n");
        }
        text += &examples(schema, indent);
        if let Some(variants) = one_of.and_then(Value::as_array) {
            text += &choice_property(key, mark, schema, variants, indent);
            continue;
        }
        text += &format!("{indent}{key}{mark}: {},", nullable_type(schema, &format!("{indent}    ")));
        if one_of.is_none()
            && let Some(default) = default_comment(schema)
        {
            text += &format!(" // {default}");
        }
        text.push('\n');
    }
    text
}

/// A property whose type is a `oneOf`: one line for each variant, and a line with the comma.
fn choice_property(key: &str, mark: &str, schema: &Value, variants: &[Value], indent: &str) -> String {
    let description = text_of(schema, "description");
    let repeats_first = description.is_some() && description == variants.first().and_then(|variant| text_of(variant, "description"));
    let shown_above = description.filter(|_| !repeats_first);
    let mut text = String::new();
    if let Some(description) = shown_above {
        text += &format!("{indent}// {description}\n");
    }
    if let Some(default) = default_comment(schema) {
        text += &format!("{indent}// {default}\n");
    }
    text += &format!("{indent}{key}{mark}:\n");
    for (index, variant) in variants.iter().enumerate() {
        let is_said_above = index == 0 && shown_above.is_some();
        let own_description = text_of(variant, "description").filter(|own| !is_said_above && Some(*own) != description);
        let comments = own_description.map(str::to_owned).into_iter().chain(default_comment(variant)).collect();
        let variant_type = nullable_type(variant, &format!("{indent}   "));
        text += &format!("{indent} | {variant_type}{}\n", trailing_comment(comments));
    }
    text + indent + ",\n"
}

fn examples(schema: &Value, indent: &str) -> String {
    let Some(values) = schema.get("examples").and_then(Value::as_array).filter(|values| !values.is_empty()) else {
        return String::new();
    };
    let lines = values.iter().filter_map(Value::as_str).map(|value| format!("{indent}// - \"{value}\"\n"));
    std::iter::once(format!("{indent}// Examples:\n")).chain(lines).collect()
}

/// The type, with ` | null` where the schema says `nullable` and the type does not say it yet.
fn nullable_type(schema: &Value, indent: &str) -> String {
    let text = type_text(schema, indent);
    let is_nullable = schema.get("nullable").and_then(Value::as_bool).unwrap_or(false);
    if is_nullable && !text.contains("null") { text + " | null" } else { text }
}

/// `default: X`: a string in quotes, unless it is one of an enum's values.
fn default_comment(schema: &Value) -> Option<String> {
    Some(match schema.get("default")? {
        Value::String(text) if is_enum(schema) => format!("default: {text}"),
        Value::String(text) => format!("default: \"{text}\""),
        other => format!("default: {}", json_text(other)),
    })
}

fn trailing_comment(parts: Vec<String>) -> String {
    if parts.is_empty() { String::new() } else { format!(" // {}", parts.join(" ")) }
}

fn is_enum(schema: &Value) -> bool {
    schema.get("enum").and_then(Value::as_array).is_some_and(|values| !values.is_empty())
}

fn text_of<'v>(schema: &'v Value, key: &str) -> Option<&'v str> {
    schema.get(key).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Expected text printed by openai-harmony 0.0.8 for this schema.
    #[test]
    fn an_object_shows_comments_defaults_and_nesting() {
        let schema = json!({
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city"},
                "format": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "o": {"type": "object", "properties": {"a": {"type": "string", "description": "d"}}, "required": ["a"]},
                "s": {"type": "string", "nullable": true, "default": "x"},
            },
            "required": ["location"],
        });
        assert_eq!(
            type_text(&schema, ""),
            "{\n// The city\nlocation: string,\nformat?: \"celsius\" | \"fahrenheit\", // default: celsius\no?: {\n    \
             // d\n    a: string,\n    },\ns?: string | null, // default: \"x\"\n}"
        );
    }

    /// Expected text printed by openai-harmony 0.0.8 for this schema.
    #[test]
    fn large_defaults_have_no_sign_in_their_exponent() {
        let schema = json!({
            "type": "object",
            "properties": {
                "a": {"type": "number", "default": 1e20},
                "b": {"oneOf": [{"type": "number", "default": 1e20}], "default": {"x": [1e20, "1e+20"]}},
                "c": {"type": "array", "items": {"oneOf": [{"type": "number", "default": -1.5e300}, {"type": "string"}]}},
            },
        });
        assert_eq!(
            type_text(&schema, ""),
            "{\na?: number, // default: 1e20\n// default: {\"x\":[1e20,\"1e+20\"]}\nb?:\n | number // default: 1e20\n,\nc?: \n     \
             | number // default: -1.5e300\n     | string[],\n}"
        );
    }

    #[test]
    fn an_unknown_schema_is_any() {
        for schema in [json!({}), json!({"type": "null"}), json!({"type": []}), json!(true), json!({"oneOf": 1})] {
            assert_eq!(type_text(&schema, ""), "any", "{schema}");
        }
    }
}
