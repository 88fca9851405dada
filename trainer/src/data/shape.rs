//! Which of the widely used shapes a line has.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::{DataError, Place, nearest_name};

/// The shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// `messages` with `role` and `content`: harmony's channels, or OpenAI chat with `thinking` and `tool_calls`.
    Messages,
    /// `conversations` with `from` and `value`.
    ShareGpt,
    /// `prompt` and `completion`, each a text or a list of messages.
    #[serde(rename = "prompt/completion")]
    PromptCompletion,
    /// `instruction`, perhaps `input`, and `output`.
    Instruction,
    /// `text`, trained as it stands.
    Text,
}

impl Shape {
    /// All shapes, in the order in which they are looked for.
    pub const ALL: [Shape; 5] = [Shape::Messages, Shape::ShareGpt, Shape::PromptCompletion, Shape::Instruction, Shape::Text];

    /// The name that people know it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Shape::Messages => "messages",
            Shape::ShareGpt => "sharegpt",
            Shape::PromptCompletion => "prompt/completion",
            Shape::Instruction => "instruction",
            Shape::Text => "text",
        }
    }

    /// The keys that make the shape.
    const fn required_keys(self) -> &'static [&'static str] {
        match self {
            Shape::Messages => &["messages"],
            Shape::ShareGpt => &["conversations"],
            Shape::PromptCompletion => &["prompt", "completion"],
            Shape::Instruction => &["instruction", "output"],
            Shape::Text => &["text"],
        }
    }

    /// All keys that mean something in the shape.
    pub(super) const fn known_keys(self) -> &'static [&'static str] {
        match self {
            Shape::Messages => &["messages", "tools", "reasoning", "reasoning_effort", "current_date", "conversation_start_date"],
            Shape::ShareGpt => {
                &["conversations", "system", "tools", "reasoning", "reasoning_effort", "current_date", "conversation_start_date"]
            }
            Shape::PromptCompletion => {
                &["prompt", "completion", "system", "tools", "reasoning", "reasoning_effort", "current_date", "conversation_start_date"]
            }
            Shape::Instruction => {
                &["instruction", "input", "output", "system", "reasoning", "reasoning_effort", "current_date", "conversation_start_date"]
            }
            Shape::Text => &["text"],
        }
    }

    /// The shape of a line's object.
    ///
    /// # Errors
    /// [`DataError::UnknownShape`] names the keys that are there.
    pub(super) fn of(place: &Place, line: &Map<String, Value>) -> Result<Shape, DataError> {
        let has = |key: &str| line.get(key).is_some_and(|value| !value.is_null());
        let found = Shape::ALL.into_iter().find(|shape| shape.required_keys().iter().all(|key| has(key)));
        found.ok_or_else(|| Shape::unknown(place, line.keys().cloned().collect()))
    }

    /// Checks that rows with the columns `names` can have a shape.
    ///
    /// # Errors
    /// [`DataError::UnknownShape`] names the columns that are there.
    pub(super) fn check_names(place: &Place, names: &[String]) -> Result<(), DataError> {
        let has = |key: &&str| names.iter().any(|name| name == key);
        if Shape::ALL.into_iter().any(|shape| shape.required_keys().iter().all(has)) {
            return Ok(());
        }
        Err(Shape::unknown(place, names.to_vec()))
    }

    /// Whether `key` means something in some shape, or may be a misspelling of a key that does.
    pub(super) fn may_mean(key: &str) -> bool {
        Shape::ALL.into_iter().any(|shape| shape.known_keys().contains(&key) || nearest_name(key, shape.known_keys()).is_some())
    }

    fn unknown(place: &Place, keys: Vec<String>) -> DataError {
        let known: Vec<&'static str> = Shape::ALL.iter().flat_map(|shape| shape.required_keys()).copied().collect();
        let nearest =
            keys.iter().filter(|key| !known.contains(&key.as_str())).find_map(|key| Some((key.clone(), nearest_name(key, &known)?)));
        DataError::UnknownShape { place: place.clone(), keys, nearest }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
