//! A recipe's text as a tree in which every key and value knows where it comes from.

use toml::de::{DeTable, DeValue};

use super::error::{Found, Origin, ProblemKind};

/// Settings of which a recipe has only one. An override of one takes the place of the other in the file.
pub(super) const EXCLUSIVE: [(&str, &str); 3] =
    [("lora", "full"), ("training.epochs", "training.steps"), ("dataset.validation", "dataset.validation_fraction")];

/// A value, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) content: Content,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    Table(Vec<Entry>),
    List(Vec<Node>),
    Leaf(toml::Value),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) origin: Origin,
    pub(super) node: Node,
}

impl Node {
    /// The entry at a path such as `output.name`.
    pub(super) fn get(&self, path: &str) -> Option<&Entry> {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let Content::Table(entries) = &self.content else { return None };
        let entry = entries.iter().find(|entry| entry.key == first)?;
        rest.map_or(Some(entry), |rest| entry.node.get(rest))
    }

    /// Whether something stands at a path.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.get(path).is_some()
    }

    /// Puts `node` at a path, in the place of what is there.
    fn set(&mut self, path: &[&str], node: Node) {
        let Some((first, rest)) = path.split_first() else {
            *self = node;
            return;
        };
        if !matches!(self.content, Content::Table(_)) {
            self.content = Content::Table(Vec::new());
        }
        let Content::Table(entries) = &mut self.content else { return };
        let index = entries.iter().position(|entry| entry.key == *first).unwrap_or_else(|| {
            let empty = Node { origin: node.origin.clone(), content: Content::Table(Vec::new()) };
            entries.push(Entry { key: (*first).to_owned(), origin: node.origin.clone(), node: empty });
            entries.len() - 1
        });
        if rest.is_empty() {
            entries[index].origin = node.origin.clone();
        }
        entries[index].node.set(rest, node);
    }

    /// Removes what the file has at a path; what an override put there stays.
    fn remove_written(&mut self, path: &[&str]) {
        let (Some((first, rest)), Content::Table(entries)) = (path.split_first(), &mut self.content) else { return };
        if rest.is_empty() {
            entries.retain(|entry| entry.key != *first || matches!(entry.origin, Origin::Override { .. }));
        } else if let Some(entry) = entries.iter_mut().find(|entry| entry.key == *first) {
            entry.node.remove_written(rest);
        }
    }

    /// The value as it would be written.
    pub(super) fn text(&self) -> String {
        match &self.content {
            Content::Table(_) => "a table".to_owned(),
            Content::List(nodes) => format!("[{}]", nodes.iter().map(Self::text).collect::<Vec<_>>().join(", ")),
            Content::Leaf(value) => value.to_string(),
        }
    }
}

/// The tree of `text` with `overrides` put in, and the overrides that are none.
///
/// # Errors
/// [`ProblemKind::Syntax`] where the text is no TOML.
pub(super) fn read(text: &str, overrides: &[String]) -> Result<(Node, Vec<Found>), Box<Found>> {
    let table = DeTable::parse(text).map_err(|error| {
        Box::new(Found {
            origin: error.span().map_or(Origin::Whole, Origin::File),
            kind: ProblemKind::Syntax { message: error.message().replace('\n', ", ") },
        })
    })?;
    let mut tree = Node { origin: Origin::Whole, content: table_content(table.get_ref(), &Origin::File) };
    let mut problems = Vec::new();
    for argument in overrides {
        let origin = Origin::Override { argument: argument.clone() };
        let Some((path, value)) = argument.split_once('=') else {
            problems.push(Found { origin, kind: ProblemKind::Override });
            continue;
        };
        let path: Vec<&str> = path.split('.').map(str::trim).collect();
        if path.iter().any(|key| key.is_empty()) {
            problems.push(Found { origin, kind: ProblemKind::Override });
            continue;
        }
        tree.set(&path, override_node(value.trim(), &origin));
        for (first, second) in EXCLUSIVE {
            let (first, second): (Vec<&str>, Vec<&str>) = (first.split('.').collect(), second.split('.').collect());
            if path.starts_with(&first) {
                tree.remove_written(&second);
            } else if path.starts_with(&second) {
                tree.remove_written(&first);
            }
        }
    }
    Ok((tree, problems))
}

/// The value of an override: TOML, or, where it is none, the text itself, so that words need no quotes within quotes.
fn override_node(value: &str, origin: &Origin) -> Node {
    let content = match DeValue::parse(value) {
        Ok(parsed) => content(parsed.get_ref(), &|_| origin.clone()),
        Err(_) => Content::Leaf(toml::Value::String(value.to_owned())),
    };
    Node { origin: origin.clone(), content }
}

fn table_content(table: &DeTable<'_>, origin: &dyn Fn(std::ops::Range<usize>) -> Origin) -> Content {
    let entries = table.iter().map(|(key, value)| Entry {
        key: key.get_ref().to_string(),
        origin: origin(key.span()),
        node: Node { origin: origin(value.span()), content: content(value.get_ref(), origin) },
    });
    Content::Table(entries.collect())
}

fn content(value: &DeValue<'_>, origin: &dyn Fn(std::ops::Range<usize>) -> Origin) -> Content {
    match value {
        DeValue::Table(table) => table_content(table, origin),
        DeValue::Array(list) => {
            Content::List(list.iter().map(|item| Node { origin: origin(item.span()), content: content(item.get_ref(), origin) }).collect())
        }
        DeValue::String(text) => Content::Leaf(toml::Value::String(text.to_string())),
        DeValue::Boolean(boolean) => Content::Leaf(toml::Value::Boolean(*boolean)),
        DeValue::Datetime(date) => Content::Leaf(toml::Value::Datetime(*date)),
        // Out of the range of i64: a number all the same.
        DeValue::Integer(integer) => Content::Leaf(
            i64::from_str_radix(integer.as_str(), integer.radix())
                .map_or_else(|_| toml::Value::Float(integer.as_str().parse().unwrap_or(f64::INFINITY)), toml::Value::Integer),
        ),
        DeValue::Float(float) => Content::Leaf(toml::Value::Float(float.as_str().parse().unwrap_or(f64::NAN))),
    }
}
