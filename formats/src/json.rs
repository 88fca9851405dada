//! Small files, of bounded size; JSON is read strictly, no key twice.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{Error, InFile, Result};

/// Reads the JSON object in `path`, of at most `limit_bytes`.
pub(crate) fn read_object(path: &Path, limit_bytes: u64) -> Result<Map<String, Value>> {
    object(&read_bytes(path, limit_bytes)?, path)
}

/// Reads the text in `path`, of at most `limit_bytes`.
pub(crate) fn read_text(path: &Path, limit_bytes: u64) -> Result<String> {
    String::from_utf8(read_bytes(path, limit_bytes)?).map_err(|_| Error::NotText { path: path.to_owned() })
}

/// Reads a file of at most `limit_bytes`.
pub(crate) fn read_bytes(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).in_file("read", path)?;
    // One byte more than allowed tells whether there is more; the length that a special file claims is not to be trusted.
    file.take(limit_bytes + 1).read_to_end(&mut bytes).in_file("read", path)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(Error::TooLarge { path: path.to_owned(), limit_bytes });
    }
    Ok(bytes)
}

/// Parses a JSON object; `path` is for the errors.
pub(crate) fn object(text: &[u8], path: &Path) -> Result<Map<String, Value>> {
    let duplicate = RefCell::new(None);
    let mut parser = serde_json::Deserializer::from_slice(text);
    let value = Strict { duplicate: &duplicate }.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    match (value, duplicate.into_inner()) {
        (_, Some(key)) => Err(Error::DuplicateKey { path: path.to_owned(), key }),
        (Ok(Value::Object(object)), None) => Ok(object),
        (Ok(_), None) => Err(Error::NotAnObject { path: path.to_owned() }),
        (Err(source), None) => Err(Error::Json { path: path.to_owned(), source }),
    }
}

/// Builds a [`Value`], and stops at a key that its object already has.
#[derive(Clone, Copy)]
struct Strict<'a> {
    duplicate: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                *self.duplicate.borrow_mut() = Some(key);
                return Err(A::Error::custom("duplicate key"));
            }
            let value = entries.next_value_seed(self)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Map<String, Value>> {
        object(text.as_bytes(), Path::new("config.json"))
    }

    #[test]
    fn values_are_those_of_serde_json() {
        let text = r#"{"a": [1, -2, 0.1, 1e300, null, true, "x\n"], "b": {"a": {}, "c": []}, "d": 18446744073709551615}"#;
        assert_eq!(Value::Object(parse(text).unwrap()), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_repeated_key_is_named_at_any_depth() {
        for text in [r#"{"a": 1, "a": 1}"#, r#"{"b": [{"a": 1, "a": 2}]}"#] {
            assert!(matches!(parse(text), Err(Error::DuplicateKey { key, .. }) if key == "a"), "{text}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for text in ["[]", "1", "null"] {
            assert!(matches!(parse(text), Err(Error::NotAnObject { .. })), "{text}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        for text in ["", "{", "{} x", r#"{"a": NaN}"#, r#"{"a": 1e999}"#, "\u{feff}{}", &deep] {
            assert!(matches!(parse(text), Err(Error::Json { .. })), "{}", &text[..text.len().min(20)]);
        }
    }
}
