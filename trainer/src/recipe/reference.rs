//! The page about every table and key of a recipe, written from its schema: `docs/recipe.md`.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::json_schema::unsupported;
use super::tree::EXCLUSIVE;
use super::{Recipe, ranges, schema};

const HEAD: &str = "\
# The recipe

Every table and key of a recipe, with its default. This page is written by `ft recipes reference`.

A recipe is TOML. Only `model.path` and `dataset.train` have no default; everything else may be left out. A key that does not exist, a value of
another type or one out of range is an error with its line and the nearest right name. `--set table.key=value` changes one value for one run. A
relative path starts at the current directory or, where nothing is there, at the recipe's folder.

Editors that know `#:schema` (Even Better TOML, taplo) complete and check recipes while they are written: `ft recipes copy` puts the schema
beside the recipe, `ft recipes schema` prints it.
";

impl Recipe {
    /// The reference of recipes, in Markdown.
    #[must_use]
    pub fn reference() -> String {
        let mut page = HEAD.to_owned();
        let root = Self::json_schema();
        let refused = unsupported();
        if let Value::Object(tables) = &root["properties"] {
            for (name, table) in tables {
                section(name, table, &refused, &mut page);
            }
        }
        page
    }
}

/// A heading, a line for each key, an example; then the tables within.
fn section(path: &str, table: &Value, refused: &[String], page: &mut String) {
    let empty = Map::new();
    let keys = table["properties"].as_object().unwrap_or(&empty);
    let is_table = |schema: &Value| schema["type"] == "object";
    // Writing to a string does not fail.
    let _ = write!(page, "\n## `[{path}]`\n\n{}\n", text(&table["description"]));
    for (one, other) in EXCLUSIVE {
        let within = |name: &str| name == path || name.rsplit_once('.').is_some_and(|(table, _)| table == path);
        if within(one) && within(other) || one == path || other == path {
            let _ = write!(page, "\n`{one}` and `{other}` exclude each other.\n");
        }
    }
    if keys.values().any(|schema| !is_table(schema)) {
        page.push_str("\n| key | value | default | |\n| --- | --- | --- | --- |\n");
        for (key, schema) in keys.iter().filter(|(_, schema)| !is_table(schema)) {
            let default = match schema.get("default") {
                Some(default) => format!("`{}`", value(default)),
                None if schema::REQUIRED.contains(&format!("{path}.{key}").as_str()) => "required".to_owned(),
                None => "none".to_owned(),
            };
            let _ = writeln!(page, "| `{key}` | {} | {default} | {} |", kind(&format!("{path}.{key}"), schema), meaning(schema));
        }
    }
    if let Some(values) = table.get("additionalProperties").filter(|values| values.is_object()) {
        let _ = write!(page, "\nKeys are names of your own, each with {}.\n", kind(path, values));
    }
    let example = example(path, refused);
    if !example.is_empty() {
        let _ = write!(page, "\n```toml\n{example}```\n");
    }
    for (key, schema) in keys.iter().filter(|(_, schema)| is_table(schema)) {
        section(&format!("{path}.{key}"), schema, refused, page);
    }
}

/// What a value may be, in words.
fn kind(path: &str, schema: &Value) -> String {
    let words = |schema: &Value| {
        let words = schema["enum"].as_array()?;
        Some(words.iter().map(|word| format!("`{}`", text(word))).collect::<Vec<_>>().join(", "))
    };
    let name = match schema["type"].as_str() {
        Some("boolean") => "true or false".to_owned(),
        Some("integer") => "whole number".to_owned(),
        Some("number") => "number".to_owned(),
        Some("string") => words(schema).unwrap_or_else(|| "text".to_owned()),
        Some("array") => words(&schema["items"]).map_or_else(|| "list of texts".to_owned(), |words| format!("list of {words}")),
        _ => String::new(),
    };
    let rule = ranges::keys_with_rules().find(|(key, _)| *key == path).map(|(_, rule)| rule);
    match (rule, name.is_empty() || name == "list of texts") {
        (Some(rule), true) => rule.to_owned(),
        (Some(rule), false) => format!("{name}: {rule}"),
        (None, _) => name,
    }
}

/// The description of a key, and what its words mean.
fn meaning(schema: &Value) -> String {
    let mut meaning = text(&schema["description"]);
    for words in [schema, &schema["items"]] {
        let meanings = words["x-taplo"]["docs"]["enumValues"].as_array();
        for (word, of) in words["enum"].as_array().into_iter().flatten().zip(meanings.into_iter().flatten()) {
            let _ = write!(meaning, "<br>`{}`: {}", text(word), text(of));
        }
    }
    meaning
}

/// A text of the schema on one line of a table.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// A default as TOML writes it.
fn value(default: &Value) -> String {
    toml::Value::try_from(default).map_or_else(|_| default.to_string(), |value| value.to_string())
}

/// The table with a value for each of its keys, except the second of two that exclude each other and what this version refuses.
fn example(path: &str, refused: &[String]) -> String {
    let toml::Value::Table(table) = schema::value(path) else { return String::new() };
    let is_refused = |path: &str| refused.iter().any(|refused| path == refused || path.starts_with(&format!("{refused}.")));
    let is_shown = |key: &str| {
        let path = format!("{path}.{key}");
        !is_refused(&path) && !EXCLUSIVE.iter().any(|(_, second)| *second == path)
    };
    let mut lines = String::new();
    for (key, value) in table.iter().filter(|(key, value)| !value.is_table() && is_shown(key)) {
        let _ = writeln!(lines, "{key} = {value}");
    }
    let is_whole = table.is_empty() && !is_refused(path);
    if lines.is_empty() && !is_whole { String::new() } else { format!("[{path}]\n{lines}") }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_key_has_a_line_and_every_table_a_heading() {
        let page = Recipe::reference();
        for path in schema::paths() {
            match schema::value(&path) {
                toml::Value::Table(_) => assert!(page.contains(&format!("\n## `[{path}]`\n")), "{path}"),
                _ => assert!(page.contains(&format!("\n| `{}` | ", path.rsplit('.').next().unwrap())), "{path}"),
            }
        }
        for words in ["| required |", "| whole number: 1 or more | `16` |", "<br>`truncate`: It is cut", "`full` exclude each other"] {
            assert!(page.contains(words), "{words}");
        }
    }

    #[test]
    fn every_example_is_a_recipe() {
        let page = Recipe::reference();
        let mut tried = 0;
        for block in page.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            let mut whole = block.to_owned();
            for (table, rest) in [("[model]\n", "path = \"m\"\n"), ("[dataset]\n", "train = [\"d\"]\n")] {
                if !block.starts_with(table) {
                    whole += &format!("{table}{rest}");
                }
            }
            Recipe::from_text(&whole, Path::new("r.toml"), &[]).unwrap_or_else(|error| panic!("{error}\n{whole}"));
            tried += 1;
        }
        assert!(tried >= 10, "{tried}");
    }
}
