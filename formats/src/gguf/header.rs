//! The head of a file: metadata and the list of tensors, checked against the length of the file before anything is handed out.

use std::collections::HashSet;
use std::ops::Range;

use super::cursor::Cursor;
use super::problem::LIMIT_DIMENSIONS;
use super::{Array, DEFAULT_ALIGNMENT, GgufProblem, MAGIC, TensorType, VERSION, Value, ValueType};

/// The oldest version of the same layout; before it, counts had 32 bits. Source: the GGUF specification, "Historical state of affairs".
const OLDEST_VERSION: u32 = 2;

/// Bytes of a key with its value at least: lengths, a letter, a type and a byte.
const LEAST_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;

/// Bytes of a tensor in the list at least: a letter and its length, one dimension, type and offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// What the head of a file says, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufHeader {
    /// Version of the format: 2 or 3, which have the same layout.
    pub version: u32,
    /// Keys and values, in the order of the file; no key stands twice.
    pub metadata: Vec<(String, Value)>,
    /// The tensors, in the order of the file's list; no name stands twice.
    pub tensors: Vec<GgufEntry>,
}

/// A tensor in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufEntry {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub tensor_type: TensorType,
    /// Its dimensions, the last one contiguous.
    pub shape: Vec<usize>,
    /// Its bytes, counted from the file's first.
    pub range: Range<usize>,
}

impl GgufHeader {
    /// Parses the head of a file; `bytes` are the whole file, and only as much of it is looked at as the head has.
    ///
    /// # Errors
    /// The first rule of the format that it breaks.
    pub fn parse(bytes: &[u8]) -> Result<Self, GgufProblem> {
        let mut cursor = Cursor::new(bytes);
        let magic = bytes.get(..MAGIC.len()).unwrap_or(bytes);
        if magic != MAGIC {
            return Err(GgufProblem::Magic { found: magic.to_vec() });
        }
        cursor.u32("the magic number")?;
        let version = cursor.u32("the version")?;
        match version {
            OLDEST_VERSION..=VERSION => {}
            // No version is that high.
            _ if version & 0xffff == 0 && version != 0 => return Err(GgufProblem::BigEndian),
            _ => return Err(GgufProblem::Version { found: version }),
        }
        let num_tensors_offset = cursor.offset();
        let num_tensors = cursor.u64("the number of tensors")?;
        let num_pairs = cursor.count("keys", LEAST_PAIR_BYTES)?;
        cursor.check_count("tensors", num_tensors_offset, num_tensors, LEAST_TENSOR_BYTES)?;
        let metadata = metadata(&mut cursor, num_pairs)?;
        let alignment = alignment(&metadata)?;
        let num_tensors = cursor.check_count("tensors", num_tensors_offset, num_tensors, LEAST_TENSOR_BYTES)?;
        let listed = listed(&mut cursor, num_tensors)?;
        let tensors = placed(listed, cursor.offset(), alignment, bytes.len() as u64)?;
        Ok(Self { version, metadata, tensors })
    }
}

fn metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<(String, Value)>, GgufProblem> {
    // No capacity in advance: a pair in memory is larger than the least that one takes in the file.
    let (mut pairs, mut keys) = (Vec::new(), HashSet::new());
    for _ in 0..count {
        let offset = cursor.offset();
        let key = cursor.key()?;
        if !keys.insert(key) {
            return Err(GgufProblem::DuplicateKey { key: key.to_owned(), offset });
        }
        let value_type = value_type(cursor, key)?;
        pairs.push((key.to_owned(), value(cursor, key, value_type)?));
    }
    Ok(pairs)
}

fn value_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, GgufProblem> {
    let offset = cursor.offset();
    let found = cursor.u32("the type of a value")?;
    ValueType::from_number(found).ok_or_else(|| GgufProblem::UnknownValueType { key: key.to_owned(), offset, found })
}

fn value(cursor: &mut Cursor<'_>, key: &str, value_type: ValueType) -> Result<Value, GgufProblem> {
    const WHAT: &str = "a value";
    Ok(match value_type {
        ValueType::U8 => Value::U8(cursor.u8(WHAT)?),
        ValueType::I8 => Value::I8(cursor.number(WHAT, i8::from_le_bytes)?),
        ValueType::U16 => Value::U16(cursor.number(WHAT, u16::from_le_bytes)?),
        ValueType::I16 => Value::I16(cursor.number(WHAT, i16::from_le_bytes)?),
        ValueType::U32 => Value::U32(cursor.u32(WHAT)?),
        ValueType::I32 => Value::I32(cursor.number(WHAT, i32::from_le_bytes)?),
        ValueType::F32 => Value::F32(cursor.number(WHAT, f32::from_le_bytes)?),
        ValueType::Bool => Value::Bool(boolean(cursor, key)?),
        ValueType::String => Value::String(cursor.string(WHAT)?.to_owned()),
        ValueType::Array => Value::Array(array(cursor, key)?),
        ValueType::U64 => Value::U64(cursor.u64(WHAT)?),
        ValueType::I64 => Value::I64(cursor.number(WHAT, i64::from_le_bytes)?),
        ValueType::F64 => Value::F64(cursor.number(WHAT, f64::from_le_bytes)?),
    })
}

fn boolean(cursor: &mut Cursor<'_>, key: &str) -> Result<bool, GgufProblem> {
    let offset = cursor.offset();
    match cursor.u8("a bool")? {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(GgufProblem::BadBool { key: key.to_owned(), offset, found }),
    }
}

fn array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, GgufProblem> {
    const WHAT: &str = "an element of an array";
    let offset = cursor.offset();
    let element_type = value_type(cursor, key)?;
    if element_type == ValueType::Array {
        return Err(GgufProblem::NestedArray { key: key.to_owned(), offset });
    }
    let count = cursor.count("elements of an array", element_type.least_bytes())?;
    Ok(match element_type {
        ValueType::U8 => Array::U8(elements(count, || cursor.u8(WHAT))?),
        ValueType::I8 => Array::I8(elements(count, || cursor.number(WHAT, i8::from_le_bytes))?),
        ValueType::U16 => Array::U16(elements(count, || cursor.number(WHAT, u16::from_le_bytes))?),
        ValueType::I16 => Array::I16(elements(count, || cursor.number(WHAT, i16::from_le_bytes))?),
        ValueType::U32 => Array::U32(elements(count, || cursor.u32(WHAT))?),
        ValueType::I32 => Array::I32(elements(count, || cursor.number(WHAT, i32::from_le_bytes))?),
        ValueType::F32 => Array::F32(elements(count, || cursor.number(WHAT, f32::from_le_bytes))?),
        ValueType::Bool => Array::Bool(elements(count, || boolean(cursor, key))?),
        ValueType::String | ValueType::Array => Array::String(elements(count, || cursor.string(WHAT).map(str::to_owned))?),
        ValueType::U64 => Array::U64(elements(count, || cursor.u64(WHAT))?),
        ValueType::I64 => Array::I64(elements(count, || cursor.number(WHAT, i64::from_le_bytes))?),
        ValueType::F64 => Array::F64(elements(count, || cursor.number(WHAT, f64::from_le_bytes))?),
    })
}

/// As many elements as were counted, of which the file has the bytes.
fn elements<T>(count: usize, mut next: impl FnMut() -> Result<T, GgufProblem>) -> Result<Vec<T>, GgufProblem> {
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        elements.push(next()?);
    }
    Ok(elements)
}

fn alignment(metadata: &[(String, Value)]) -> Result<u64, GgufProblem> {
    match metadata.iter().find(|(key, _)| key == "general.alignment").map(|(_, value)| value) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(alignment)) if alignment.is_power_of_two() => Ok((*alignment).into()),
        Some(Value::U32(alignment)) => Err(GgufProblem::Alignment { found: alignment.to_string() }),
        Some(other) => Err(GgufProblem::Alignment { found: format!("of type {}", other.value_type()) }),
    }
}

/// A tensor before it is known where the tensors begin.
struct Listed {
    name: String,
    tensor_type: TensorType,
    shape: Vec<usize>,
    bytes: u64,
    /// Counted from the first tensor's first byte.
    offset: u64,
}

fn listed(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<Listed>, GgufProblem> {
    let (mut tensors, mut names) = (Vec::new(), HashSet::new());
    for _ in 0..count {
        let offset = cursor.offset();
        let name = cursor.tensor_name()?;
        if !names.insert(name) {
            return Err(GgufProblem::DuplicateTensor { tensor: name.to_owned(), offset });
        }
        let tensor = || name.to_owned();
        let found = cursor.u32("the number of dimensions")?;
        if !(1..=LIMIT_DIMENSIONS).contains(&found) {
            return Err(GgufProblem::Dimensions { tensor: tensor(), found });
        }
        // The file has the contiguous dimension first.
        let mut shape = (0..found).map(|_| cursor.u64("a dimension")).collect::<Result<Vec<u64>, _>>()?;
        shape.reverse();
        let number = cursor.u32("the type of a tensor")?;
        let tensor_type =
            TensorType::from_number(number).ok_or_else(|| GgufProblem::UnknownTensorType { tensor: tensor(), found: number })?;
        let (row, block) = (shape.last().copied().unwrap_or(0), tensor_type.block_elements());
        if row % block != 0 {
            return Err(GgufProblem::PartialBlock { tensor: tensor(), tensor_type, block, found: row });
        }
        let sizes: Option<Vec<usize>> = shape.iter().map(|&size| usize::try_from(size).ok().filter(|&size| size > 0)).collect();
        let sized = sizes.and_then(|sizes| tensor_type.byte_length(&sizes).map(|bytes| (sizes, bytes)));
        let Some((shape, bytes)) = sized else { return Err(GgufProblem::Size { tensor: tensor(), shape, tensor_type }) };
        let offset = cursor.u64("the place of a tensor")?;
        tensors.push(Listed { name: tensor(), tensor_type, shape, bytes, offset });
    }
    Ok(tensors)
}

/// Puts the tensors behind the head, which ends at `head_end`: each aligned, inside the file, and none inside another.
fn placed(listed: Vec<Listed>, head_end: u64, alignment: u64, file_bytes: u64) -> Result<Vec<GgufEntry>, GgufProblem> {
    // Far below 2^64: both are lengths, and 2^31 is the largest alignment.
    let data_start = head_end.next_multiple_of(alignment);
    let mut order: Vec<&Listed> = listed.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    let mut previous_end = data_start.min(file_bytes);
    for &&Listed { ref name, bytes, offset, .. } in &order {
        if offset % alignment != 0 {
            return Err(GgufProblem::Unaligned { tensor: name.clone(), offset, alignment });
        }
        let begin = data_start.saturating_add(offset);
        match begin.checked_add(bytes) {
            Some(end) if end <= file_bytes => {
                if begin < previous_end {
                    return Err(GgufProblem::Overlap { tensor: name.clone(), offset: begin, previous_end });
                }
                check_gap(previous_end, begin, alignment)?;
                previous_end = end;
            }
            _ => return Err(GgufProblem::TensorBeyondEnd { tensor: name.clone(), offset: begin, bytes, available: file_bytes }),
        }
    }
    check_gap(previous_end, file_bytes, alignment)?;
    let entry = |Listed { name, tensor_type, shape, bytes, offset }: Listed| {
        // Checked against the length of the file, which is in memory or mapped: a usize.
        let begin = (data_start + offset) as usize;
        GgufEntry { name, tensor_type, shape, range: begin..begin + bytes as usize }
    };
    Ok(listed.into_iter().map(entry).collect())
}

/// Refuses bytes that no tensor needs and that are no padding, in which anything could hide.
fn check_gap(previous_end: u64, next: u64, alignment: u64) -> Result<(), GgufProblem> {
    let gap = next - previous_end;
    if gap < alignment { Ok(()) } else { Err(GgufProblem::Hole { offset: next, gap }) }
}
