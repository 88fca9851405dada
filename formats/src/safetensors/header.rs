//! The header: parsed, and checked against the length of the file.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::dtype::Dtype;

/// Bytes of a header at most. Source: safetensors 0.8.0, `MAX_HEADER_SIZE`.
pub(super) const LIMIT_BYTES: u64 = 100_000_000;

/// Bytes of the number that says how long the header is.
pub(super) const PREFIX_BYTES: u64 = 8;

/// Dimensions of a tensor at most; numpy and torch stop at 64.
const LIMIT_DIMENSIONS: usize = 64;

/// The rule of the format that a file breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// It is too short to say how long its header is.
    #[error("it has {found} bytes, and the length of the header alone takes 8")]
    TooShort {
        /// Bytes of the file.
        found: u64,
    },
    /// The header exceeds what the format allows.
    #[error("it claims a header of {found} bytes, and {LIMIT_BYTES} is the limit")]
    HeaderTooLarge {
        /// The claimed length.
        found: u64,
    },
    /// The header ends after the file.
    #[error("it claims a header of {header_bytes} bytes, but only {available} bytes follow")]
    HeaderBeyondEnd {
        /// The claimed length.
        header_bytes: u64,
        /// Bytes after the length.
        available: u64,
    },
    /// The header does not begin with a brace.
    #[error("its header begins with byte {found:#04x} instead of an opening brace")]
    FirstByte {
        /// The byte.
        found: u8,
    },
    /// The header is not UTF-8.
    #[error("its header is not UTF-8 at byte {offset}")]
    NotUtf8 {
        /// Offset in the header.
        offset: usize,
    },
    /// The header is not JSON, or not of the shape that the format asks for.
    #[error("its header is not as the format says: {source}")]
    Syntax {
        /// Place and reason.
        source: serde_json::Error,
    },
    /// A name stands twice.
    #[error("its header names `{name}` twice")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A name that is empty or holds control characters.
    #[error("its header has the name {name:?}, which is empty or holds control characters")]
    BadName {
        /// The name.
        name: String,
    },
    /// A type that this version does not know.
    #[error("tensor `{tensor}` has the unknown dtype {found:?}")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// Its type's name.
        found: String,
    },
    /// More dimensions than anything can use.
    #[error("tensor `{tensor}` has {found} dimensions, and {LIMIT_DIMENSIONS} is the limit")]
    TooManyDimensions {
        /// The tensor.
        tensor: String,
        /// Number of dimensions.
        found: usize,
    },
    /// A shape whose size cannot be computed.
    #[error("tensor `{tensor}` has shape {shape:?} of {dtype}, whose size exceeds 2^63 bytes or ends within a byte")]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
    },
    /// A tensor that ends before it begins.
    #[error("tensor `{tensor}` ends at {end}, before it begins at {begin}")]
    Reversed {
        /// The tensor.
        tensor: String,
        /// Its first byte.
        begin: u64,
        /// The byte after its last.
        end: u64,
    },
    /// A tensor whose bytes are not those of its shape.
    #[error("tensor `{tensor}` takes {found} bytes, but shape {shape:?} of {dtype} takes {expected}")]
    SizeMismatch {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
        /// Bytes of the shape.
        expected: u64,
        /// Bytes by the offsets.
        found: u64,
    },
    /// Tensors that share bytes.
    #[error("tensor `{tensor}` begins at {begin}, inside the tensor that ends at {previous_end}")]
    Overlap {
        /// The later tensor.
        tensor: String,
        /// Its first byte.
        begin: u64,
        /// The byte after the last of the tensor before it.
        previous_end: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("tensor `{tensor}` begins at {begin}, and the {gap} bytes before it belong to no tensor")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// Its first byte.
        begin: u64,
        /// Bytes of the hole.
        gap: u64,
    },
    /// The file ends before its tensors do.
    #[error("its tensors take {expected} bytes, but only {found} are there: the file is truncated")]
    Truncated {
        /// Bytes by the header.
        expected: u64,
        /// Bytes after the header.
        found: u64,
    },
    /// The file goes on after its tensors.
    #[error("its tensors take {expected} bytes, but {found} are there: something follows them")]
    Trailing {
        /// Bytes by the header.
        expected: u64,
        /// Bytes after the header.
        found: u64,
    },
}

/// What a header says, checked.
#[derive(Debug)]
pub(super) struct Header {
    /// In the order of their bytes.
    pub(super) tensors: Vec<Entry>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// One tensor.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes after the end of the header.
    pub(super) range: Range<u64>,
}

/// Bytes of the header, from the first bytes of a file of `file_bytes`.
pub(super) fn length(prefix: &[u8], file_bytes: u64) -> Result<u64, HeaderProblem> {
    let Some(prefix) = prefix.first_chunk::<8>() else {
        return Err(HeaderProblem::TooShort { found: file_bytes });
    };
    let header_bytes = u64::from_le_bytes(*prefix);
    if header_bytes > LIMIT_BYTES {
        return Err(HeaderProblem::HeaderTooLarge { found: header_bytes });
    }
    let available = file_bytes.saturating_sub(PREFIX_BYTES);
    if header_bytes > available {
        return Err(HeaderProblem::HeaderBeyondEnd { header_bytes, available });
    }
    Ok(header_bytes)
}

/// Parses the header of a file with `data_bytes` after it.
pub(super) fn parse(header: &[u8], data_bytes: u64) -> Result<Header, HeaderProblem> {
    match header.first() {
        Some(b'{') => {}
        Some(&found) => return Err(HeaderProblem::FirstByte { found }),
        None => return Err(HeaderProblem::FirstByte { found: 0 }),
    }
    let text = std::str::from_utf8(header).map_err(|error| HeaderProblem::NotUtf8 { offset: error.valid_up_to() })?;
    let raw: RawHeader = serde_json::from_str(text).map_err(|source| HeaderProblem::Syntax { source })?;
    let mut names = HashSet::with_capacity(raw.tensors.len());
    for name in raw.tensors.iter().map(|(name, _)| name) {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(HeaderProblem::BadName { name: name.clone() });
        }
        if !names.insert(name.as_str()) {
            return Err(HeaderProblem::DuplicateName { name: name.clone() });
        }
    }
    drop(names);
    let mut tensors = raw.tensors.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    // An empty tensor sorts before the one that begins where it stands.
    tensors.sort_by_key(|entry| (entry.range.start, entry.range.end));
    let mut previous_end = 0;
    for Entry { name, range, .. } in &tensors {
        let (tensor, begin) = (name.clone(), range.start);
        if begin < previous_end {
            return Err(HeaderProblem::Overlap { tensor, begin, previous_end });
        }
        if begin > previous_end {
            return Err(HeaderProblem::Hole { tensor, begin, gap: begin - previous_end });
        }
        previous_end = range.end;
    }
    if previous_end > data_bytes {
        return Err(HeaderProblem::Truncated { expected: previous_end, found: data_bytes });
    }
    if previous_end < data_bytes {
        return Err(HeaderProblem::Trailing { expected: previous_end, found: data_bytes });
    }
    Ok(Header { tensors, metadata: metadata(raw.metadata)? })
}

fn entry((tensor, raw): (String, RawEntry)) -> Result<Entry, HeaderProblem> {
    let RawEntry { dtype, shape, data_offsets: [begin, end] } = raw;
    let Some(dtype) = Dtype::from_name(&dtype) else {
        return Err(HeaderProblem::UnknownDtype { tensor, found: dtype });
    };
    if shape.len() > LIMIT_DIMENSIONS {
        return Err(HeaderProblem::TooManyDimensions { tensor, found: shape.len() });
    }
    if end < begin {
        return Err(HeaderProblem::Reversed { tensor, begin, end });
    }
    let Some(expected) = dtype.byte_length(&shape) else {
        return Err(HeaderProblem::ShapeOverflow { tensor, shape, dtype });
    };
    if end - begin != expected {
        return Err(HeaderProblem::SizeMismatch { tensor, shape, dtype, expected, found: end - begin });
    }
    Ok(Entry { name: tensor, dtype, shape, range: begin..end })
}

fn metadata(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, HeaderProblem> {
    let mut metadata = BTreeMap::new();
    for (name, value) in pairs {
        if let Some(name) = metadata.contains_key(&name).then_some(&name) {
            return Err(HeaderProblem::DuplicateName { name: name.clone() });
        }
        metadata.insert(name, value);
    }
    Ok(metadata)
}

/// The header as written: lists, so that what stands twice is seen.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: Vec::new() };
                let mut has_metadata = false;
                while let Some(name) = entries.next_key::<String>()? {
                    if name != "__metadata__" {
                        header.tensors.push((name, entries.next_value()?));
                        continue;
                    }
                    if std::mem::replace(&mut has_metadata, true) {
                        return Err(serde::de::Error::custom("`__metadata__` stands twice"));
                    }
                    header.metadata = entries.next_value::<Pairs>()?.0;
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// An object of strings, as a list.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = entries.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
