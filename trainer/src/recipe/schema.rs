//! Keys, types and words of a recipe, checked against those that there are.
//!
//! What there is comes from the types themselves: a recipe in which every key has a value, serialised, is the tree of known keys
//! with a value of the right type for each.

use serde::Deserialize;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{Deserializer, Visitor};
use toml::{Table, Value};

use super::Recipe;
use super::choices::{ALL_LAYERS, Experts, LoraTarget, OptimizerKind, ScheduleKind, TrainingDtype, WandbMode};
use super::error::{Found, Origin, ProblemKind};
use super::nearest::{foreign, nearest};
use super::tree::{Content, Entry, Node};
use crate::data::{Overlong, Turns};

/// Keys without a default.
pub(super) const REQUIRED: [&str; 2] = ["model.path", "dataset.train"];

/// What a checked tree amounts to.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// The values that are right.
    pub(super) table: Table,
    /// The rest.
    pub(super) problems: Vec<Found>,
}

/// Checks every key and value of `tree`.
pub(super) fn check(tree: &Node) -> Checked {
    let reference = reference();
    let mut checked = Checked::default();
    if let Content::Table(entries) = &tree.content {
        checked.table = check_table(entries, "", &reference, &reference, &mut checked.problems);
    }
    for key in REQUIRED.into_iter().filter(|key| !tree.contains(key)) {
        let table = key.split('.').next().unwrap_or_default();
        // A table under a misspelt name is reported already, and may well have the key.
        if !tree.contains(table) && checked.problems.iter().any(|problem| may_mean(problem, table)) {
            continue;
        }
        let origin = tree.get(table).map_or(Origin::Whole, |entry| entry.origin.clone());
        let example = format!("`{}` under `[{table}]`", example(key));
        checked.problems.push(Found { origin, kind: ProblemKind::Missing { key, example } });
    }
    checked
}

/// Whether a problem is an unknown table that may be a misspelling of `table`.
fn may_mean(problem: &Found, table: &str) -> bool {
    match &problem.kind {
        ProblemKind::UnknownKey { table: within, nearest, .. } => within.is_empty() && nearest.iter().any(|name| name == table),
        _ => false,
    }
}

/// A recipe that has every key.
fn reference() -> Table {
    Table::try_from(Recipe::complete()).unwrap_or_default()
}

/// Every table and key, tables before what is in them.
pub(super) fn paths() -> Vec<String> {
    fn walk(table: &Table, prefix: &str, paths: &mut Vec<String>) {
        for (key, value) in table {
            let path = format!("{prefix}{key}");
            paths.push(path.clone());
            if let Value::Table(inner) = value {
                walk(inner, &format!("{path}."), paths);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&reference(), "", &mut paths);
    paths
}

/// Lines that set the key at `path` to its example, or open its table.
pub(super) fn assignment(path: &str) -> String {
    let value = value(path);
    match (path.rsplit_once('.'), value) {
        (_, Value::Table(_)) => format!("[{path}]"),
        // A setting is of interest where it asks for something.
        (Some((table, key)), Value::Boolean(_)) => format!("[{table}]\n{key} = true"),
        (Some((table, key)), value) => format!("[{table}]\n{key} = {value}"),
        (None, value) => format!("{path} = {value}"),
    }
}

/// The default of the key at `path`, or a likely value.
pub(super) fn value(path: &str) -> Value {
    path.split('.').fold(Value::Table(reference()), |value, part| value.get(part).cloned().unwrap_or(Value::Boolean(true)))
}

/// A line that sets the key at `path`, with its default or a likely value.
pub(super) fn example(path: &str) -> String {
    let key = path.rsplit('.').next().unwrap_or(path);
    match value(path) {
        Value::Table(_) => format!("[{path}]"),
        value => format!("{key} = {value}"),
    }
}

/// What the types refuse although the schema does not: a mistake of this module.
pub(super) fn unforeseen(error: &toml::de::Error) -> Found {
    Found { origin: Origin::Whole, kind: ProblemKind::Refused { message: error.message().to_owned() } }
}

fn check_table(entries: &[Entry], table: &str, known: &Table, root: &Table, problems: &mut Vec<Found>) -> Table {
    let mut right = Table::new();
    for entry in entries {
        let path = if table.is_empty() { entry.key.clone() } else { format!("{table}.{}", entry.key) };
        let Some(expected) = known.get(&entry.key) else {
            problems.push(unknown_key(entry, table, known, root));
            continue;
        };
        let value = match (&entry.node.content, expected) {
            (Content::Table(inner), Value::Table(known)) => Some(Value::Table(check_table(inner, &path, known, root, problems))),
            _ => check_value(&entry.node, &path, expected, problems),
        };
        if let Some(value) = value {
            right.insert(entry.key.clone(), value);
        }
    }
    right
}

fn unknown_key(entry: &Entry, table: &str, known: &Table, root: &Table) -> Found {
    let here = || nearest(&entry.key, known.keys().map(String::as_str));
    let elsewhere = || {
        let has_key = |value: &Value| value.as_table().is_some_and(|keys| keys.contains_key(&entry.key));
        root.iter().filter(|(_, value)| has_key(value)).map(|(name, _)| format!("{name}.{}", entry.key)).collect()
    };
    let found = [here(), elsewhere(), foreign(&entry.key).map(str::to_owned).into_iter().collect::<Vec<_>>()];
    let kind = ProblemKind::UnknownKey {
        key: entry.key.clone(),
        table: table.to_owned(),
        nearest: found.into_iter().find(|names| !names.is_empty()).unwrap_or_default(),
        known: known.keys().cloned().collect(),
    };
    Found { origin: entry.origin.clone(), kind }
}

/// The value of `node` when it is of the type of `expected`, and one of the words where `path` takes only some.
fn check_value(node: &Node, path: &str, expected: &Value, problems: &mut Vec<Found>) -> Option<Value> {
    if path == "lora.layers" {
        return check_layers(node, path, problems);
    }
    let wrong = |node: &Node, expected: &'static str| Found {
        origin: node.origin.clone(),
        kind: ProblemKind::WrongType { key: path.to_owned(), expected, found: type_of(node), example: example(path) },
    };
    match (expected, &node.content) {
        (Value::Array(list), Content::List(items)) if matches!(list.first(), Some(Value::Float(_))) => {
            let number = |item: &Node| match &item.content {
                Content::Leaf(value @ Value::Float(_)) => Some(value.clone()),
                #[expect(clippy::cast_precision_loss, reason = "a number that a person writes")]
                Content::Leaf(Value::Integer(number)) => Some(Value::Float(*number as f64)),
                _ => None,
            };
            let numbers: Option<Vec<Value>> = items.iter().map(number).collect();
            if numbers.is_none() {
                problems.push(wrong(node, "a list of numbers"));
            }
            numbers.map(Value::Array)
        }
        (Value::Array(_), Content::List(items)) => {
            let words = choices(path);
            let before = problems.len();
            let mut values = Vec::new();
            for item in items {
                match &item.content {
                    Content::Leaf(Value::String(text)) => {
                        values.extend(check_word(text, item, path, words, problems).map(Value::String));
                    }
                    _ => problems.push(wrong(item, "a list of texts")),
                }
            }
            (problems.len() == before).then_some(Value::Array(values))
        }
        // Quotes and brackets are a nuisance in a shell: there a word alone is a list of one.
        (Value::Array(_), Content::Leaf(Value::String(text))) if is_override(node) => {
            let word = check_word(text, node, path, choices(path), problems)?;
            Some(Value::Array(vec![Value::String(word)]))
        }
        (Value::Array(_), _) => {
            problems.push(wrong(node, "a list of texts"));
            None
        }
        (Value::String(_), content) => {
            let text = match (content, &node.origin) {
                (Content::Leaf(Value::String(text)), _) => text.clone(),
                // `--set output.name=7`: the text as it was given.
                (_, Origin::Override { argument }) => argument.split_once('=').map_or("", |(_, value)| value).to_owned(),
                _ => {
                    problems.push(wrong(node, if choices(path).is_empty() { "a text" } else { "a word in quotes" }));
                    return None;
                }
            };
            check_word(&text, node, path, choices(path), problems).map(Value::String)
        }
        (Value::Integer(_), Content::Leaf(value @ Value::Integer(number))) if *number >= 0 => Some(value.clone()),
        (Value::Integer(_), _) => {
            problems.push(wrong(node, "a whole number, not negative"));
            None
        }
        (Value::Float(_), Content::Leaf(value @ Value::Float(_))) => Some(value.clone()),
        #[expect(clippy::cast_precision_loss, reason = "a number that a person writes")]
        (Value::Float(_), Content::Leaf(Value::Integer(number))) => Some(Value::Float(*number as f64)),
        (Value::Float(_), _) => {
            problems.push(wrong(node, "a number"));
            None
        }
        (Value::Boolean(_), Content::Leaf(value @ Value::Boolean(_))) => Some(value.clone()),
        (Value::Boolean(_), _) => {
            problems.push(wrong(node, "true or false"));
            None
        }
        (Value::Table(_) | Value::Datetime(_), _) => {
            problems.push(wrong(node, "a table"));
            None
        }
    }
}

/// `all`, or a list of indices.
fn check_layers(node: &Node, path: &str, problems: &mut Vec<Found>) -> Option<Value> {
    let indices = |items: &[Node]| {
        let index = |item: &Node| match &item.content {
            Content::Leaf(value @ Value::Integer(0..)) => Some(value.clone()),
            _ => None,
        };
        items.iter().map(index).collect::<Option<Vec<_>>>()
    };
    let value = match &node.content {
        Content::Leaf(value @ Value::String(word)) if word == ALL_LAYERS => Some(value.clone()),
        Content::List(items) => indices(items).map(Value::Array),
        _ => None,
    };
    if value.is_none() {
        let kind = ProblemKind::WrongType {
            key: path.to_owned(),
            expected: "\"all\" or a list of indices from 0",
            found: type_of(node),
            example: "layers = [0, 1, 2]".to_owned(),
        };
        problems.push(Found { origin: node.origin.clone(), kind });
    }
    value
}

fn check_word(text: &str, node: &Node, path: &str, allowed: &'static [&'static str], problems: &mut Vec<Found>) -> Option<String> {
    if allowed.is_empty() || allowed.contains(&text) {
        return Some(text.to_owned());
    }
    let kind = ProblemKind::UnknownChoice {
        key: path.to_owned(),
        found: text.to_owned(),
        allowed: allowed.to_vec(),
        nearest: nearest(text, allowed.iter().copied()),
    };
    problems.push(Found { origin: node.origin.clone(), kind });
    None
}

fn is_override(node: &Node) -> bool {
    matches!(node.origin, Origin::Override { .. })
}

fn type_of(node: &Node) -> &'static str {
    match &node.content {
        Content::Table(_) => "a table",
        Content::List(_) => "a list",
        Content::Leaf(Value::String(_)) => "a text",
        Content::Leaf(Value::Integer(number)) if *number < 0 => "a negative number",
        Content::Leaf(Value::Integer(_)) => "a whole number",
        Content::Leaf(Value::Float(_)) => "a number with a fraction",
        Content::Leaf(Value::Boolean(true)) => "true",
        Content::Leaf(Value::Boolean(false)) => "false",
        Content::Leaf(_) => "a date",
    }
}

/// The words that the key at `path` takes, from its type; empty for a free text.
fn choices(path: &str) -> &'static [&'static str] {
    match path {
        "model.experts" => variants::<Experts>(),
        "dataset.overlong" => variants::<Overlong>(),
        "dataset.turns" => variants::<Turns>(),
        "lora.targets" => variants::<LoraTarget>(),
        "optimizer.kind" => variants::<OptimizerKind>(),
        "schedule.kind" => variants::<ScheduleKind>(),
        "tracking.wandb.mode" => variants::<WandbMode>(),
        "training.dtype" => variants::<TrainingDtype>(),
        _ => &[],
    }
}

/// The names of an enum's variants, as its `Deserialize` declares them.
fn variants<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = ValueError;

        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
            StrDeserializer::new("").deserialize_any(visitor)
        }

        fn deserialize_enum<V: Visitor<'de>>(
            self,
            _name: &'static str,
            variants: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, ValueError> {
            *self.0 = variants;
            self.deserialize_any(visitor)
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map struct identifier ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    // The value does not matter, and there is none: the names are the side effect.
    let _ = T::deserialize(Names(&mut names));
    names
}
