//! A GGUF file: its metadata and its tensors.

use std::path::{Path, PathBuf};

use ft_formats::gguf::{Array, GgufFile, Value};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use crate::error::Result;
use crate::terminal::Palette;
use crate::units;

/// Elements of an array that is shown in full at most.
const SHOWN_ELEMENTS: usize = 8;

/// Letters of a text that is shown in full at most.
const SHOWN_LETTERS: usize = 80;

#[derive(Debug, Serialize)]
pub(super) struct Gguf {
    path: PathBuf,
    format_version: u32,
    files: usize,
    /// Of all files.
    bytes: u64,
    /// Long arrays by the type and the number of their elements.
    metadata: Map<String, Json>,
    tensors: Vec<Tensor>,
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    #[serde(rename = "type")]
    tensor_type: &'static str,
    /// The last dimension is contiguous; a GGUF file lists them the other way round.
    shape: Vec<usize>,
    bytes: u64,
}

impl Gguf {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let tensors = file.tensors().map(|view| Tensor {
            name: view.name.to_owned(),
            tensor_type: view.tensor_type.name(),
            shape: view.shape.to_vec(),
            bytes: view.bytes.len() as u64,
        });
        Ok(Self {
            path: path.to_owned(),
            format_version: file.version(),
            files: file.files().len(),
            bytes: file.file_bytes(),
            metadata: file.metadata().map(|(key, value)| (key.to_owned(), json_of(value))).collect(),
            tensors: tensors.collect(),
        })
    }

    pub(super) fn words(&self, palette: Palette) -> String {
        let mut text = format!(
            "{} {}\nversion {}, {} in {}, {}\n",
            palette.heading("GGUF"),
            self.path.display(),
            self.format_version,
            units::counted(self.tensors.len(), "tensor"),
            units::counted(self.files, "file"),
            units::bytes(self.bytes),
        );
        let width = self.metadata.keys().map(String::len).max().unwrap_or(0);
        for (key, value) in &self.metadata {
            text += &format!("\n{key:<width$}  {}", words_of(value));
        }
        text += "\n";
        let width = self.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
        for Tensor { name, tensor_type, shape, bytes } in &self.tensors {
            text += &format!("\n{name:<width$}  {tensor_type:<6}  {shape:?}  {}", units::bytes(*bytes));
        }
        text
    }
}

fn json_of(value: &Value) -> Json {
    match value {
        Value::U8(value) => (*value).into(),
        Value::I8(value) => (*value).into(),
        Value::U16(value) => (*value).into(),
        Value::I16(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::F32(value) => decimal(*value),
        Value::Bool(value) => (*value).into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(array) if array.len() > SHOWN_ELEMENTS => {
            json!({"array": array.element_type().to_string(), "count": array.len()})
        }
        Value::Array(array) => elements(array),
        Value::U64(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::F64(value) => (*value).into(),
    }
}

fn elements(array: &Array) -> Json {
    match array {
        Array::U8(values) => json!(values),
        Array::I8(values) => json!(values),
        Array::U16(values) => json!(values),
        Array::I16(values) => json!(values),
        Array::U32(values) => json!(values),
        Array::I32(values) => json!(values),
        Array::F32(values) => values.iter().copied().map(decimal).collect(),
        Array::Bool(values) => json!(values),
        Array::String(values) => json!(values),
        Array::U64(values) => json!(values),
        Array::I64(values) => json!(values),
        Array::F64(values) => json!(values),
    }
}

/// The shortest decimal that reads back to the same f32; null for what is no number.
fn decimal(value: f32) -> Json {
    value.to_string().parse::<f64>().into_iter().find(|value| value.is_finite()).into()
}

/// A value on one line.
fn words_of(value: &Json) -> String {
    match value {
        Json::Object(array) => format!("{} of {}", array["count"], array["array"].as_str().unwrap_or_default()),
        Json::String(text) => match text.char_indices().nth(SHOWN_LETTERS) {
            Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], units::whole(text.len() as u64)),
            None => format!("{text:?}"),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_and_numbers_are_short() {
        assert_eq!(words_of(&json_of(&Value::F32(0.1))), "0.1");
        assert_eq!(words_of(&json_of(&Value::F32(f32::NAN))), "null");
        assert_eq!(words_of(&json_of(&Value::Array(Array::F32(vec![1e-5, 2.0])))), "[0.00001,2.0]");
        assert_eq!(words_of(&json_of(&Value::Array(Array::String(vec!["a".to_owned(); 9])))), "9 of string");
        assert_eq!(words_of(&json_of(&Value::String("a\nb".to_owned()))), r#""a\nb""#);
        let long = words_of(&json_of(&Value::String("\u{e9}".repeat(5000))));
        assert!(long.ends_with("... (10,000 bytes)") && long.chars().count() < 110, "{long}");
    }
}
