//! A JSON value that knows where it stands, so that each error names its place.

use serde_json::{Map, Value};

use super::error::{DataError, NameKind, Place, nearest_name};

/// Longest name that an error message repeats in full, in characters.
const SHOWN_CHARACTERS: usize = 40;

/// A value in a line of a file.
#[derive(Debug, Clone)]
pub(super) struct Field<'v> {
    pub(super) place: &'v Place,
    /// Where in the line, as in `messages[2].content`; empty for the line itself.
    pub(super) at: String,
    pub(super) value: &'v Value,
}

impl<'v> Field<'v> {
    pub(super) fn new(place: &'v Place, at: impl Into<String>, value: &'v Value) -> Field<'v> {
        Field { place, at: at.into(), value }
    }

    /// The value under `key`; `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<Field<'v>> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        let at = if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) };
        Some(Field { place: self.place, at, value })
    }

    pub(super) fn require(&self, key: &'static str) -> Result<Field<'v>, DataError> {
        self.get(key).ok_or_else(|| DataError::MissingKey { place: self.place.clone(), at: self.at.clone(), key })
    }

    pub(super) fn object(&self) -> Result<&'v Map<String, Value>, DataError> {
        self.value.as_object().ok_or_else(|| self.wrong_type("an object"))
    }

    pub(super) fn string(&self) -> Result<&'v str, DataError> {
        self.value.as_str().ok_or_else(|| self.wrong_type("a string"))
    }

    pub(super) fn items(&self) -> Result<Vec<Field<'v>>, DataError> {
        let items = self.value.as_array().ok_or_else(|| self.wrong_type("a list"))?;
        Ok(items.iter().enumerate().map(|(index, value)| Field { place: self.place, at: format!("{}[{index}]", self.at), value }).collect())
    }

    /// The texts of a content: a string, or a list of `{"type": "text", "text": ...}`.
    pub(super) fn texts(&self) -> Result<Vec<String>, DataError> {
        match self.value {
            Value::String(text) => Ok(vec![text.clone()]),
            Value::Array(_) => self.items()?.iter().map(Field::text_part).collect(),
            _ => Err(self.wrong_type("a string or a list of text parts")),
        }
    }

    fn text_part(&self) -> Result<String, DataError> {
        if let Value::String(text) = self.value {
            return Ok(text.clone());
        }
        self.object()?;
        if let Some(kind) = self.get("type")
            && kind.string()? != "text"
        {
            return Err(kind.unknown_name(NameKind::ContentType, &["text"]));
        }
        Ok(self.require("text")?.string()?.to_owned())
    }

    /// Refuses keys that are not in `known`; those whose value says nothing pass.
    pub(super) fn only_keys(&self, known: &[&'static str]) -> Result<(), DataError> {
        match self.object()?.iter().find(|(key, value)| !is_empty(value) && !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => Err(self.unknown_key(key, known)),
        }
    }

    pub(super) fn unknown_key(&self, key: &str, known: &[&'static str]) -> DataError {
        DataError::UnknownKey { place: self.place.clone(), at: self.at.clone(), key: key.to_owned(), nearest: nearest_name(key, known) }
    }

    pub(super) fn unknown_name(&self, kind: NameKind, allowed: &[&'static str]) -> DataError {
        let found = self.value.as_str().unwrap_or_default();
        let mut shown: String = found.chars().take(SHOWN_CHARACTERS).collect();
        if shown.len() < found.len() {
            shown.push_str("...");
        }
        DataError::UnknownName {
            place: self.place.clone(),
            at: self.at.clone(),
            kind,
            nearest: nearest_name(&shown, allowed),
            found: shown,
            allowed: allowed.to_vec(),
        }
    }

    /// The value under `key` unless it says nothing.
    pub(super) fn said(&self, key: &str) -> Option<Field<'v>> {
        self.get(key).filter(|found| !is_empty(found.value))
    }

    pub(super) fn wrong_type(&self, expected: &'static str) -> DataError {
        let found = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        DataError::WrongType { place: self.place.clone(), at: self.at.clone(), expected, found }
    }
}

/// Whether a value says nothing: `null`, an empty text, list or object, as programs write for what is not there.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
