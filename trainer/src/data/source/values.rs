//! Cells of a table as JSON values.
//!
//! A cell that is null is absent: a table has every key in every row, and a conversation is told by the keys that it has.

use arrow::array::{Array, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Number, Value};

use super::super::error::{DataError, Place};

/// Lists and structs in one another, at most.
const DEPTH_LIMIT: usize = 64;

/// Row `index` of `batch` as an object.
///
/// # Errors
/// A number that is none (NaN, infinite), and types that JSON has no value for.
pub(super) fn row(batch: &RecordBatch, index: usize, place: &Place) -> Result<Value, DataError> {
    let schema = batch.schema();
    let mut object = Map::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let cell = Cell { place, column: field.name(), depth: 0 };
        if let Some(value) = cell.value(column, index)? {
            object.insert(field.name().clone(), value);
        }
    }
    Ok(Value::Object(object))
}

/// Where a value is, for messages.
#[derive(Clone, Copy)]
struct Cell<'a> {
    place: &'a Place,
    column: &'a str,
    depth: usize,
}

impl Cell<'_> {
    /// The value at `index` of `array`; `None` for null.
    fn value(self, array: &dyn Array, index: usize) -> Result<Option<Value>, DataError> {
        if array.is_null(index) || array.data_type() == &DataType::Null {
            return Ok(None);
        }
        if self.depth > DEPTH_LIMIT {
            return Err(self.unsupported(array));
        }
        let inner = Cell { depth: self.depth + 1, ..self };
        let value = match array.data_type() {
            DataType::Utf8 => Value::from(array.as_string::<i32>().value(index)),
            DataType::LargeUtf8 => Value::from(array.as_string::<i64>().value(index)),
            DataType::Utf8View => Value::from(array.as_string_view().value(index)),
            DataType::Boolean => Value::from(array.as_boolean().value(index)),
            DataType::Int8 => Value::from(array.as_primitive::<Int8Type>().value(index)),
            DataType::Int16 => Value::from(array.as_primitive::<Int16Type>().value(index)),
            DataType::Int32 => Value::from(array.as_primitive::<Int32Type>().value(index)),
            DataType::Int64 => Value::from(array.as_primitive::<Int64Type>().value(index)),
            DataType::UInt8 => Value::from(array.as_primitive::<UInt8Type>().value(index)),
            DataType::UInt16 => Value::from(array.as_primitive::<UInt16Type>().value(index)),
            DataType::UInt32 => Value::from(array.as_primitive::<UInt32Type>().value(index)),
            DataType::UInt64 => Value::from(array.as_primitive::<UInt64Type>().value(index)),
            DataType::Float16 => self.number(array.as_primitive::<Float16Type>().value(index).to_f64())?,
            DataType::Float32 => self.number(array.as_primitive::<Float32Type>().value(index).into())?,
            DataType::Float64 => self.number(array.as_primitive::<Float64Type>().value(index))?,
            DataType::Struct(_) => Value::Object(inner.object(array.as_struct(), index)?),
            DataType::List(_) => inner.list(&array.as_list::<i32>().value(index))?,
            DataType::LargeList(_) => inner.list(&array.as_list::<i64>().value(index))?,
            DataType::ListView(_) => inner.list(&array.as_list_view::<i32>().value(index))?,
            DataType::LargeListView(_) => inner.list(&array.as_list_view::<i64>().value(index))?,
            DataType::FixedSizeList(_, _) => inner.list(&array.as_fixed_size_list().value(index))?,
            DataType::Map(_, _) => inner.map(&array.as_map().value(index))?,
            DataType::Dictionary(_, _) => return inner.dictionary(array, index),
            DataType::Timestamp(_, _)
            | DataType::Date32
            | DataType::Date64
            | DataType::Time32(_)
            | DataType::Time64(_)
            | DataType::Decimal32(_, _)
            | DataType::Decimal64(_, _)
            | DataType::Decimal128(_, _)
            | DataType::Decimal256(_, _) => self.text(array, index)?,
            _ => return Err(self.unsupported(array)),
        };
        Ok(Some(value))
    }

    fn object(self, fields: &StructArray, index: usize) -> Result<Map<String, Value>, DataError> {
        let mut object = Map::new();
        for (name, column) in fields.column_names().into_iter().zip(fields.columns()) {
            if let Some(value) = self.value(column, index)? {
                object.insert(name.to_owned(), value);
            }
        }
        Ok(object)
    }

    fn list(self, items: &dyn Array) -> Result<Value, DataError> {
        let value = |index| Ok(self.value(items, index)?.unwrap_or(Value::Null));
        (0..items.len()).map(value).collect::<Result<_, _>>().map(Value::Array)
    }

    fn map(self, entries: &StructArray) -> Result<Value, DataError> {
        let mut object = Map::new();
        let [keys, values] = entries.columns() else { return Ok(Value::Object(object)) };
        for index in 0..entries.len() {
            let key = match self.value(keys, index)? {
                Some(Value::String(key)) => key,
                Some(other) => other.to_string(),
                None => continue,
            };
            if let Some(value) = self.value(values, index)? {
                object.insert(key, value);
            }
        }
        Ok(Value::Object(object))
    }

    fn dictionary(self, array: &dyn Array, index: usize) -> Result<Option<Value>, DataError> {
        let dictionary = array.as_any_dictionary();
        let key = self.value(dictionary.keys(), index)?.and_then(|key| usize::try_from(key.as_u64()?).ok());
        match key {
            Some(key) if key < dictionary.values().len() => self.value(dictionary.values(), key),
            _ => Err(self.unsupported(array)),
        }
    }

    fn text(self, array: &dyn Array, index: usize) -> Result<Value, DataError> {
        let unsupported = |_| self.unsupported(array);
        let formatter = ArrayFormatter::try_new(array, &FormatOptions::new()).map_err(unsupported)?;
        formatter.value(index).try_to_string().map(Value::String).map_err(unsupported)
    }

    fn number(self, number: f64) -> Result<Value, DataError> {
        let column = || self.column.to_owned();
        let place = || self.place.clone();
        Number::from_f64(number).map(Value::Number).ok_or_else(|| DataError::NotANumber { place: place(), column: column() })
    }

    fn unsupported(self, array: &dyn Array) -> DataError {
        let (place, column) = (self.place.clone(), self.column.to_owned());
        DataError::ColumnType { place, column, found: array.data_type().to_string() }
    }
}
