//! The JSON schema of a recipe, for editors.
//!
//! Keys, types, words, defaults and descriptions come from the types by `schemars`: doc comments are the descriptions, `Default` the defaults.
//! What types cannot say is put in here: required keys and tables that exclude each other, from the checks that `ft` makes itself, and the
//! ranges of `ranges`. A recipe that the schema accepts may still be wrong where a rule takes more than one key, or the model.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::error::{ProblemKind, RecipeError};
use super::tree::EXCLUSIVE;
use super::{Recipe, ranges, schema};

/// The schema's `$id`, by which a copy is known for one of ft's.
pub const SCHEMA_ID: &str = "ft:recipe.schema.json";

impl Recipe {
    /// The JSON schema (draft 2020-12) that recipes are valid by.
    #[must_use]
    pub fn json_schema() -> Value {
        let generator = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).into_generator();
        let mut root = generator.into_root_schema_for::<Self>().to_value();
        tidy(&mut root);
        for path in schema::REQUIRED {
            let (table, key) = path.split_once('.').unwrap_or(("", path));
            require(&mut root, table);
            if let Some(table) = at(&mut root, table) {
                require(table, key);
            }
            if let Some(Value::Object(key)) = at(&mut root, path) {
                key.remove("default");
            }
        }
        for (path, rule) in ranges::keys_with_rules() {
            if let (Some(schema), Some(bounds)) = (at(&mut root, path), ranges::bounds(rule)) {
                merge(schema, bounds);
            }
        }
        for (first, second) in EXCLUSIVE {
            exclude(&mut root, first, second);
        }
        for path in unsupported() {
            if let Some(schema) = at(&mut root, &path) {
                mark_unsupported(schema);
            }
        }
        head(&root)
    }

    /// The same as the text of a file.
    #[must_use]
    pub fn json_schema_text() -> String {
        format!("{:#}\n", Self::json_schema())
    }
}

/// The keys that this version knows and refuses.
pub(super) fn unsupported() -> Vec<String> {
    let refuses = |path: &&String| {
        let text = format!("[model]\npath = \"m\"\n[dataset]\ntrain = [\"d\"]\n{}\n", schema::assignment(path));
        match Recipe::from_text(&text, std::path::Path::new("recipe.toml"), &[]) {
            Err(RecipeError::Invalid(problems)) => {
                problems.list().iter().any(|problem| matches!(problem.kind, ProblemKind::NotSupported { key } if key == path.as_str()))
            }
            _ => false,
        }
    };
    schema::paths().iter().filter(refuses).cloned().collect()
}

/// The schema of the key at `path`, the root's for an empty one.
fn at<'a>(root: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    path.split('.').filter(|part| !part.is_empty()).try_fold(root, |schema, key| schema.get_mut("properties")?.get_mut(key))
}

fn require(schema: &mut Value, key: &str) {
    let Value::Object(schema) = schema else { return };
    if let Value::Array(keys) = schema.entry("required").or_insert_with(|| json!([]))
        && !keys.iter().any(|known| known == key)
    {
        keys.push(key.into());
    }
}

/// Says that two keys are not given together, which is said where both are near.
fn exclude(root: &mut Value, first: &str, second: &str) {
    let split =
        |path: &str| path.rsplit_once('.').map_or((String::new(), path.to_owned()), |(table, key)| (table.to_owned(), key.to_owned()));
    let ((table, first), (_, second)) = (split(first), split(second));
    // As `ranges::check` sees it: what is empty or 0 excludes nothing.
    let counts = |schema: &Value| match schema["type"].as_str() {
        Some("array") => json!({ "minItems": 1 }),
        Some("number" | "integer") => json!({ "exclusiveMinimum": 0 }),
        _ => json!({}),
    };
    let Some(Value::Object(schema)) = at(root, &table) else { return };
    let both = json!({
        "required": [&first, &second],
        "properties": { &first: counts(&schema["properties"][&first]), &second: counts(&schema["properties"][&second]) },
    });
    schema.insert("not".to_owned(), both);
}

fn mark_unsupported(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    schema.insert("description".to_owned(), format!("{description} Not supported by this version.").trim_start().into());
    if schema.get("type").is_some_and(|kind| kind == "boolean") {
        schema.insert("const".to_owned(), false.into());
    }
}

/// Puts the keys of `more` into `schema`, tables into tables.
fn merge(schema: &mut Value, more: Value) {
    match (schema, more) {
        (Value::Object(schema), Value::Object(more)) => {
            // A rule for lists means the list of what is a word or a list.
            if let Some(Value::Array(forms)) = schema.get_mut("anyOf") {
                if let Some(list) = forms.iter_mut().find(|form| form["type"] == "array") {
                    merge(list, Value::Object(more));
                }
                return;
            }
            for (key, value) in more {
                merge(schema.entry(key).or_insert(Value::Null), value);
            }
        }
        (schema, more) => *schema = more,
    }
}

/// What TOML and editors have no use for: `null`, formats of numbers, and words one by one.
fn tidy(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    object.remove("format");
    object.remove("title");
    if object.get("default").is_some_and(|default| default.is_null() || default.is_object()) {
        object.remove("default");
    }
    if let Some(Value::Array(kinds)) = object.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [kind] = &kinds[..] {
            let kind = kind.clone();
            object.insert("type".to_owned(), kind);
        }
    }
    if let Some(Value::Array(mut forms)) = object.remove("anyOf") {
        forms.retain(|form| form["type"] != "null");
        match &mut forms[..] {
            [Value::Object(form)] => {
                for (key, value) in std::mem::take(form) {
                    object.entry(key).or_insert(value);
                }
            }
            _ => {
                object.insert("anyOf".to_owned(), Value::Array(forms));
            }
        }
    }
    if let Some(Value::Array(forms)) = object.get("oneOf")
        && let Some(words) = words(forms)
    {
        object.remove("oneOf");
        object.extend(words);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(schema) = object.get_mut(inner) {
            tidy(schema);
        }
    }
    if let Some(Value::Object(keys)) = object.get_mut("properties") {
        keys.values_mut().for_each(tidy);
    }
}

/// Words with a meaning each, as a list of words and, where taplo looks for them, one of meanings.
///
/// Source: taplo 0.10, "Special schema extensions": `x-taplo.docs.enumValues`.
fn words(forms: &[Value]) -> Option<Map<String, Value>> {
    let words: Vec<&Value> = forms.iter().map(|form| form.get("const")).collect::<Option<_>>()?;
    let meanings: Vec<&Value> = forms.iter().map(|form| &form["description"]).collect();
    let Value::Object(words) = json!({ "type": "string", "enum": words, "x-taplo": { "docs": { "enumValues": meanings } } }) else {
        return None;
    };
    Some(words)
}

/// The schema under its name, which stands first.
fn head(root: &Value) -> Value {
    let mut whole = Map::new();
    whole.insert("$schema".to_owned(), "https://json-schema.org/draft/2020-12/schema".into());
    whole.insert("$id".to_owned(), SCHEMA_ID.into());
    whole.insert("title".to_owned(), "A recipe of ft".into());
    whole.insert("description".to_owned(), "What is trained, on what, and how. Generated by `ft recipes schema`.".into());
    if let Value::Object(root) = root {
        for (key, value) in root {
            whole.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    Value::Object(whole)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The schema of the key at `path`.
    fn of(root: &Value, path: &str) -> Value {
        at(&mut root.clone(), path).unwrap_or_else(|| panic!("{path} is not in the schema")).clone()
    }

    fn accepts(path: &str, value: &str) -> bool {
        let (table, key) = path.rsplit_once('.').unwrap();
        let other = if path == "model.path" { "" } else { "[model]\npath = \"m\"\n" };
        let data = if path == "dataset.train" { "" } else { "train = [\"d\"]\n" };
        let text = match table {
            "dataset" => format!("{other}[dataset]\n{data}{key} = {value}\n"),
            _ => format!("{other}[dataset]\n{data}[{table}]\n{key} = {value}\n"),
        };
        Recipe::from_text(&text, Path::new("r.toml"), &[]).is_ok()
    }

    /// What the schema says of a number.
    fn is_within(schema: &Value, number: f64) -> bool {
        let bound = |name: &str| schema[name].as_f64();
        bound("minimum").is_none_or(|bound| number >= bound)
            && bound("exclusiveMinimum").is_none_or(|bound| number > bound)
            && bound("maximum").is_none_or(|bound| number <= bound)
            && bound("exclusiveMaximum").is_none_or(|bound| number < bound)
    }

    #[test]
    fn every_key_of_a_recipe_is_in_the_schema_with_type_and_description() {
        let root = Recipe::json_schema();
        for path in schema::paths() {
            let schema = of(&root, &path);
            assert!(schema["description"].as_str().is_some_and(|text| text.len() > 3), "{path}: {schema}");
            assert!(schema.get("type").is_some() || schema.get("anyOf").is_some(), "{path}: {schema}");
            let is_table = schema["type"] == "object";
            assert!(!is_table || schema.get("additionalProperties").is_some(), "{path}: {schema}");
        }
        let text = root.to_string();
        assert!(!text.contains("null") && !text.contains("\"format\"") && !text.contains("$ref"), "{text}");
    }

    #[test]
    fn every_rule_is_in_the_schema() {
        for (path, rule) in ranges::keys_with_rules() {
            assert!(ranges::bounds(rule).is_some(), "`{path}`: `BOUNDS` of ranges.rs has no line for \"{rule}\"");
        }
    }

    #[test]
    fn numbers_are_bounded_as_recipes_are() {
        let root = Recipe::json_schema();
        let mut tried = 0;
        for path in schema::paths() {
            let schema = of(&root, &path);
            let numbers: &[&str] = match schema["type"].as_str() {
                Some("integer") => &["-1", "0", "1", "2", "3"],
                Some("number") => &["-1.0", "-1e-9", "0.0", "1e-9", "0.5", "1.0", "1.5", "1e9"],
                _ => continue,
            };
            for number in numbers {
                let says = is_within(&schema, number.parse().unwrap());
                assert_eq!(says, accepts(&path, number), "{path} = {number}: {schema}");
                tried += 1;
            }
        }
        assert!(tried > 100, "{tried}");
    }

    #[test]
    fn what_this_version_refuses_is_said() {
        let root = Recipe::json_schema();
        for path in unsupported() {
            assert!(of(&root, &path)["description"].as_str().unwrap().ends_with("Not supported by this version."), "{path}");
        }
        assert!(!unsupported().contains(&"optimizer.kind".to_owned()));
    }
}
