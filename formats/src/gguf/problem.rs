//! What can be wrong with a file.

use super::{TensorType, ValueType};
use crate::error::Hint;

/// Bytes of a key at most. Source: the GGUF specification, `gguf_metadata_kv_t`.
pub(super) const LIMIT_KEY_BYTES: u64 = 65_535;

/// Bytes of a tensor's name at most. Source: the GGUF specification, `gguf_tensor_info_t`.
pub(super) const LIMIT_NAME_BYTES: u64 = 64;

/// Dimensions of a tensor at most. Source: ggml `ggml.h`, `GGML_MAX_DIMS`.
pub(super) const LIMIT_DIMENSIONS: u32 = 4;

/// The rule of the format that a file breaks, or what it says that this program has no use for. Offsets count from the file's start.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufProblem {
    /// Another kind of file.
    #[error("it begins with the bytes {found:02x?} instead of \"GGUF\"")]
    Magic {
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// A version with another layout.
    #[error("it has version {found}, and only versions 2 and 3 are read")]
    Version {
        /// Its version.
        found: u32,
    },
    /// Numbers with the high byte first.
    #[error("it is big-endian, and only little-endian files are read")]
    BigEndian,
    /// The file ends within what it announces.
    #[error("it ends at byte {available} within {what}, which takes {bytes} bytes from byte {offset}: the file is truncated")]
    Truncated {
        /// What ends too soon.
        what: &'static str,
        /// Where that begins.
        offset: u64,
        /// Bytes that it takes.
        bytes: u64,
        /// Bytes of the file.
        available: u64,
    },
    /// More things than the rest of the file can hold.
    #[error("it claims {found} {what} at byte {offset}, but the {available} bytes that follow hold no more than {limit}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// Where the count stands.
        offset: u64,
        /// The count.
        found: u64,
        /// Bytes after it.
        available: u64,
        /// What these can hold.
        limit: u64,
    },
    /// A string that is longer than the rest of the file.
    #[error("{what} at byte {offset} claims {found} bytes, but only {available} follow")]
    StringBeyondEnd {
        /// What the string is.
        what: &'static str,
        /// Where its length stands.
        offset: u64,
        /// The claimed length.
        found: u64,
        /// Bytes after it.
        available: u64,
    },
    /// A string of no Unicode.
    #[error("{what} at byte {offset} is not UTF-8")]
    NotUtf8 {
        /// What the string is.
        what: &'static str,
        /// Where its first bad byte stands.
        offset: u64,
    },
    /// A key or a tensor's name that is empty, too long, or holds control characters.
    #[error("{what} {found:?} at byte {offset} is empty, longer than {limit_bytes} bytes, or holds control characters")]
    BadName {
        /// `key` or `tensor name`.
        what: &'static str,
        /// Where it stands.
        offset: u64,
        /// Its beginning.
        found: String,
        /// Bytes allowed.
        limit_bytes: u64,
    },
    /// A key that stands twice.
    #[error("it has the key `{key}` twice, again at byte {offset}")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Where it stands again.
        offset: u64,
    },
    /// A tensor that stands twice.
    #[error("it has the tensor `{tensor}` twice, again at byte {offset}")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// Where it stands again.
        offset: u64,
    },
    /// A number that stands for no type of values.
    #[error("the value of `{key}` at byte {offset} is of the unknown type {found}")]
    UnknownValueType {
        /// The key.
        key: String,
        /// Where the number stands.
        offset: u64,
        /// The number.
        found: u32,
    },
    /// An array of arrays.
    #[error("the value of `{key}` at byte {offset} is an array of arrays, which no model has")]
    NestedArray {
        /// The key.
        key: String,
        /// Where the type of the elements stands.
        offset: u64,
    },
    /// A bool that is neither.
    #[error("the value of `{key}` at byte {offset} is a bool of {found}, which is neither 0 nor 1")]
    BadBool {
        /// The key.
        key: String,
        /// Where it stands.
        offset: u64,
        /// The byte.
        found: u8,
    },
    /// An alignment that is none.
    #[error("`general.alignment` is {found}, expected a power of two as u32")]
    Alignment {
        /// Its value, or its type.
        found: String,
    },
    /// A number that stands for no type of tensors, or for one that is not read.
    #[error("tensor `{tensor}` is of type {found}, which is not known")]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// The number.
        found: u32,
    },
    /// Too few dimensions, or too many.
    #[error("tensor `{tensor}` has {found} dimensions, expected 1 to {LIMIT_DIMENSIONS}")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// Number of dimensions.
        found: u32,
    },
    /// A shape whose size cannot be computed.
    #[error("tensor `{tensor}` has shape {shape:?} of {tensor_type}, which is empty or exceeds 2^63 bytes")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its shape, the last dimension contiguous.
        shape: Vec<u64>,
        /// Its type.
        tensor_type: TensorType,
    },
    /// Rows that end within a block.
    #[error("tensor `{tensor}` has rows of {found} elements, and {tensor_type} needs a multiple of {block}")]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Its type.
        tensor_type: TensorType,
        /// Elements of a block.
        block: u64,
        /// Elements of a row.
        found: u64,
    },
    /// A tensor that begins between two multiples of the alignment.
    #[error("tensor `{tensor}` begins at byte {offset} of the tensors, which is no multiple of {alignment}")]
    Unaligned {
        /// The tensor.
        tensor: String,
        /// Its first byte, counted from that of the first tensor.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },
    /// A tensor that ends after the file.
    #[error("tensor `{tensor}` takes {bytes} bytes from byte {offset}, but the file has {available}: it is truncated")]
    TensorBeyondEnd {
        /// The tensor.
        tensor: String,
        /// Its first byte.
        offset: u64,
        /// Its bytes.
        bytes: u64,
        /// Bytes of the file.
        available: u64,
    },
    /// Tensors that share bytes.
    #[error("tensor `{tensor}` begins at byte {offset}, inside the tensor that ends at {previous_end}")]
    Overlap {
        /// The later tensor.
        tensor: String,
        /// Its first byte.
        offset: u64,
        /// The byte after the last of the tensor before it.
        previous_end: u64,
    },
    /// Bytes that belong to no tensor and are more than alignment asks for.
    #[error("the {gap} bytes before byte {offset} belong to no tensor")]
    Hole {
        /// The byte after the hole: the next tensor's first, or the end of the file.
        offset: u64,
        /// Bytes of the hole.
        gap: u64,
    },
    /// A key that has to be there.
    #[error("it has no key `{key}`")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A value of another type than its key needs.
    #[error("the value of `{key}` is of type {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// The types that it takes, in words.
        expected: &'static str,
        /// Its type.
        found: ValueType,
    },
    /// A model of another family.
    #[error("it holds a model of architecture {found:?}, expected \"gpt-oss\"")]
    Architecture {
        /// Its architecture.
        found: String,
    },
    /// A model that something was left out of.
    #[error("it is of the kind {found:?}, expected \"model\"")]
    Kind {
        /// The value of `general.type`.
        found: String,
    },
    /// A value that the architecture does not have.
    #[error("`{key}` is {found}, and only {supported} is supported")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is supported.
        supported: &'static str,
    },
    /// A type of tensors whose values cannot be read yet.
    #[error("tensor `{tensor}` is {tensor_type}, whose values cannot be read")]
    Undecodable {
        /// The tensor.
        tensor: String,
        /// Its type.
        tensor_type: TensorType,
    },
    /// A part of a model whose name does not say which.
    #[error("it is part {number} of {count}, but its name does not end in \"-{number:05}-of-{count:05}.gguf\"")]
    PartName {
        /// The part, counted from 1.
        number: u64,
        /// Parts of the model.
        count: u64,
    },
    /// A part of a model that is not there.
    #[error("it is part of a model in {count} files, and {file:?} is not beside it")]
    MissingPart {
        /// The name of the missing file.
        file: String,
        /// Parts of the model.
        count: u64,
    },
    /// A file that is another part than its name says.
    #[error("it says that it is part {found} of {found_count}, expected part {expected} of {count}")]
    OtherPart {
        /// The part that its name says, counted from 1.
        expected: u64,
        /// Parts of the model by the file that was opened.
        count: u64,
        /// The part that it says.
        found: u64,
        /// Parts of the model that it says.
        found_count: u64,
    },
    /// Parts that have fewer or more tensors than the model.
    #[error("`split.tensors.count` is {expected}, but its files hold {found} tensors")]
    TensorCount {
        /// Tensors by the metadata.
        expected: u64,
        /// Tensors of all parts.
        found: u64,
    },
    /// A vocabulary of another size than the embedding.
    #[error("it has {found} tokens, but `token_embd.weight` has {expected} rows")]
    TokenCount {
        /// Rows of the embedding.
        expected: usize,
        /// Tokens.
        found: usize,
    },
    /// A vocabulary that is not o200k.
    #[error("token {id} is {found:?}, expected {expected:?} as in o200k_harmony")]
    OtherToken {
        /// The token.
        id: usize,
        /// The token as o200k has it.
        expected: String,
        /// The token.
        found: String,
    },
}

impl Hint for GgufProblem {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Truncated { .. } | Self::TensorBeyondEnd { .. } | Self::StringBeyondEnd { .. } => {
                    "the file is incomplete: copy or download it again"
                }
                Self::MissingPart { .. } | Self::TensorCount { .. } => "the model is incomplete: copy or download all of its files",
                Self::PartName { .. } | Self::OtherPart { .. } => "give the files of the model the names that they were published under",
                Self::Version { .. } | Self::BigEndian => "convert the model again with a current version of its converter",
                Self::UnknownTensorType { .. } => {
                    "F32, F16, BF16, MXFP4, Q4_0, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K and IQ4_NL are known: quantize the model to one of these"
                }
                Self::Undecodable { .. } => "take a file of the model in another type, like Q8_0 or MXFP4",
                Self::Architecture { .. } => "only models of the gpt-oss architecture can be read",
                Self::Kind { .. } => "give the file of the model itself",
                Self::TokenCount { .. } | Self::OtherToken { .. } => {
                    "texts are turned into tokens by the vocabulary of gpt-oss, o200k_harmony; this model has another"
                }
                Self::Unsupported { .. } => return None,
                _ => "the file is damaged or no GGUF file: copy or download it again",
            }
            .to_owned(),
        )
    }
}
