//! The resolved recipe, with what differs from the defaults marked.

use std::path::Path;

use ft_trainer::recipe::{Lora, Recipe};
use toml::{Table, Value};

use crate::page::escape::escape_lines;

/// Bytes of a recipe that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Letters of a value that are shown.
const MOST_LETTERS: usize = 600;

/// The recipe in `directory`, or nothing where there is none that can be read.
pub(super) fn read(directory: &Path) -> Option<Table> {
    let path = directory.join("recipe.toml");
    if std::fs::metadata(&path).ok()?.len() > MOST_BYTES {
        return None;
    }
    std::fs::read_to_string(path).ok()?.parse().ok()
}

/// The value of `table.key`.
pub(super) fn value<'a>(recipe: &'a Table, table: &str, key: &str) -> Option<&'a Value> {
    recipe.get(table)?.as_table()?.get(key)
}

/// A table for each of the recipe's.
pub(super) fn draw(recipe: &Table) -> String {
    // Tables of the recipe that have defaults of their own only where they are present.
    let complete = Recipe { lora: Some(Lora::default()), ..Recipe::default() };
    let defaults: Table = complete.to_toml().parse().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in recipe {
        let Value::Table(section) = value else { continue };
        let mut rows = Vec::new();
        collect(section, defaults.get(name).and_then(Value::as_table), "", &mut rows);
        let rows: String = rows
            .iter()
            .map(|row| {
                let (class, note) = match &row.default {
                    _ if !row.is_changed => ("", String::new()),
                    // Nobody needs to be told that a path has none.
                    Some(default) if !is_empty(default) => {
                        (" class=\"changed\"", format!(" <span class=\"quiet\">default {}</span>", shown(default)))
                    }
                    _ => (" class=\"changed\"", String::new()),
                };
                format!("<tr{class}><th scope=\"row\">{}</th><td>{}{note}</td></tr>", escape_lines(&row.key), shown(&row.value))
            })
            .collect();
        if !rows.is_empty() {
            text += &format!("<div class=\"section\"><h3>{}</h3><table>{rows}</table></div>\n", escape_lines(name));
        } else {
            text += &format!("<div class=\"section\"><h3>{}</h3><p class=\"quiet\">no settings</p></div>\n", escape_lines(name));
        }
    }
    format!("<div class=\"recipe\">\n{text}</div>\n")
}

struct Row {
    key: String,
    value: Value,
    default: Option<Value>,
    is_changed: bool,
}

/// The keys of a table and of those in it, as `wandb.project`.
fn collect(section: &Table, defaults: Option<&Table>, prefix: &str, rows: &mut Vec<Row>) {
    for (key, value) in section {
        let default = defaults.and_then(|defaults| defaults.get(key));
        let key = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => collect(inner, default.and_then(Value::as_table), &format!("{key}."), rows),
            value => {
                let default = default.cloned();
                rows.push(Row { key, value: value.clone(), is_changed: default.as_ref() != Some(value), default });
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty)
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) if text.is_empty() => return "<span class=\"quiet\">empty</span>".to_owned(),
        Value::Array(list) if list.is_empty() => return "<span class=\"quiet\">none</span>".to_owned(),
        Value::Float(number) if (1e-3..1e6).contains(&number.abs()) || *number == 0.0 => number.to_string(),
        Value::Float(number) => format!("{number:e}"),
        Value::Array(list) => {
            list.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect::<Vec<_>>().join(", ")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut cut: String = text.chars().take(MOST_LETTERS).collect();
    if cut.len() < text.len() {
        cut.push_str(" ...");
    }
    format!("<code>{}</code>", escape_lines(&cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_the_defaults_is_marked() {
        let recipe: Table = "[model]\npath = \"m<b>\"\n[lora]\nrank = 8\nalpha = 32.0\n[optimizer]\nlearning_rate = 1e-4\nbeta1 = 0.9\n\
                             [tracking]\ntensorboard = false\n[tracking.wandb]\nproject = \"p\"\n[later]\nkey = true\n"
            .parse()
            .unwrap();
        let drawn = draw(&recipe);
        let row = |key: &str| {
            let place = drawn.find(&format!("<th scope=\"row\">{key}</th>")).unwrap_or_else(|| panic!("no {key} in {drawn}"));
            let start = drawn[..place].rfind("<tr").unwrap();
            &drawn[start..start + drawn[start..].find("</tr>").unwrap()]
        };
        for key in ["path", "rank", "learning_rate", "wandb.project", "key"] {
            assert!(row(key).contains("changed"), "{}", row(key));
        }
        for key in ["alpha", "beta1", "tensorboard"] {
            assert!(!row(key).contains("changed"), "{}", row(key));
        }
        assert!(row("rank").contains("default <code>16</code>"), "{}", row("rank"));
        assert!(row("learning_rate").contains("<code>1e-4</code>"), "{}", row("learning_rate"));
        assert!(drawn.contains("m&lt;b&gt;"));
    }
}
