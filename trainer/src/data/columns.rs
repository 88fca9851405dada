//! What the columns of a dataset are called.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::{DataError, Place};
use super::shape::Shape;

/// The column that stands for each key of a conversation, where it has another name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Holds `messages`: a list of messages with `role` and `content`, or the JSON text of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// Holds `conversations`: a list of messages with `from` and `value`, or the JSON text of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversations: Option<String>,
    /// Holds `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Holds `completion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// Holds `instruction`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// Holds `input`, which goes after the instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Holds `output`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Holds `text`, trained as it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Holds `system`, the instructions of the developer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Holds `tools`, a list of functions or the JSON text of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<String>,
    /// Holds `reasoning`: low, medium or high.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Holds `current_date`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_date: Option<String>,
}

impl Columns {
    /// A name for every key: what keys there are.
    pub(crate) fn example() -> Columns {
        let name = |name: &str| Some(name.to_owned());
        Columns {
            messages: name("dialogue"),
            conversations: name("turns"),
            prompt: name("question"),
            completion: name("answer"),
            instruction: name("task"),
            input: name("context"),
            output: name("response"),
            text: name("content"),
            system: name("system_prompt"),
            tools: name("functions"),
            reasoning: name("effort"),
            current_date: name("date"),
        }
    }

    /// (key, column) of each that is named.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("messages", &self.messages),
            ("conversations", &self.conversations),
            ("prompt", &self.prompt),
            ("completion", &self.completion),
            ("instruction", &self.instruction),
            ("input", &self.input),
            ("output", &self.output),
            ("text", &self.text),
            ("system", &self.system),
            ("tools", &self.tools),
            ("reasoning", &self.reasoning),
            ("current_date", &self.current_date),
        ]
        .into_iter()
        .filter_map(|(key, column)| Some((key, column.as_deref()?)))
    }

    /// `row` with its columns under the keys that they stand for, and lists of messages that were given as JSON text taken apart.
    ///
    /// # Errors
    /// A row of no shape, for want of a column that is named here.
    pub(super) fn apply(&self, place: &Place, row: Value) -> Result<Value, DataError> {
        let Value::Object(mut object) = row else { return Ok(row) };
        let moved: Vec<(&str, Option<Value>)> = self.named().map(|(key, column)| (key, object.shift_remove(column))).collect();
        for (key, value) in moved {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        }
        self.check_shape(place, &object)?;
        for key in ["messages", "conversations"] {
            if let Some(Value::String(text)) = object.get(key)
                && let Ok(list @ Value::Array(_)) = serde_json::from_str(text)
            {
                object.insert(key.to_owned(), list);
            }
        }
        Ok(Value::Object(object))
    }

    fn check_shape(&self, place: &Place, object: &Map<String, Value>) -> Result<(), DataError> {
        let missing = self.named().find(|(key, _)| !object.contains_key(*key));
        match (missing, Shape::of(place, object)) {
            (Some((key, column)), Err(_)) => Err(DataError::MissingColumn {
                place: place.clone(),
                key,
                column: column.to_owned(),
                found: object.keys().cloned().collect(),
            }),
            _ => Ok(()),
        }
    }

    /// Checks that a table with the columns `names` has every one that is named here.
    ///
    /// # Errors
    /// [`DataError::MissingColumn`].
    pub(super) fn check<'n>(&self, place: &Place, names: impl Iterator<Item = &'n str>) -> Result<(), DataError> {
        let found: Vec<String> = names.map(str::to_owned).collect();
        match self.named().find(|(_, column)| !found.iter().any(|name| name == column)) {
            None => Ok(()),
            Some((key, column)) => Err(DataError::MissingColumn { place: place.clone(), key, column: column.to_owned(), found }),
        }
    }

    /// `names` with what they stand for in the place of those that are named here.
    pub(super) fn renamed(&self, names: &[String]) -> Vec<String> {
        let key_of = |name: &String| self.named().find(|(_, column)| column == name).map(|(key, _)| key.to_owned());
        names.iter().map(|name| key_of(name).unwrap_or_else(|| name.clone())).collect()
    }

    /// Whether a column of this name is read at all.
    pub(super) fn is_wanted(&self, name: &str) -> bool {
        self.named().any(|(_, column)| column == name) || Shape::may_mean(name)
    }
}

#[cfg(test)]
mod tests {
    use ft_formats::Hint;
    use serde_json::json;

    use super::*;

    fn columns() -> Columns {
        Columns { prompt: Some("question".to_owned()), completion: Some("answer".to_owned()), ..Columns::default() }
    }

    fn apply(row: Value) -> Result<Value, DataError> {
        columns().apply(&Place { file: "d.jsonl".into(), line: 2 }, row)
    }

    #[test]
    fn columns_get_the_keys_that_they_stand_for() {
        let row = json!({"question": "Q", "answer": "A", "prompt": "something else", "id": 1});
        assert_eq!(apply(row).unwrap(), json!({"prompt": "Q", "completion": "A", "id": 1}));
    }

    #[test]
    fn a_column_that_is_missing_is_named_with_those_that_are_there() {
        let error = apply(json!({"question": "Q", "anwser": "A"})).unwrap_err();
        assert_eq!(error.to_string(), "d.jsonl:2: no column `answer`, which `dataset.columns.completion` names");
        assert_eq!(error.hint().unwrap(), "the columns are `anwser`, `prompt`");
    }

    #[test]
    fn lists_given_as_json_text_are_lists() {
        let messages = json!([{"role": "user", "content": "Q"}]);
        let row = Columns::default().apply(&Place { file: "d".into(), line: 1 }, json!({"messages": messages.to_string()})).unwrap();
        assert_eq!(row["messages"], messages);
    }

    #[test]
    fn every_key_has_a_name_of_its_own() {
        let example = Columns::example();
        let keys: Vec<&str> = example.named().map(|(key, _)| key).collect();
        let all = serde_json::to_value(&example).unwrap();
        assert_eq!(keys.len(), all.as_object().unwrap().len());
        assert!(keys.iter().all(|key| Shape::may_mean(key)));
    }
}
