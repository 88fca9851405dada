//! GGUF, the container of llama.cpp, Ollama and LM Studio: version 3, little endian.
//!
//! `value` and `tensor_type` are what a file is made of, `header` and `writer` how it is written; `names` is the architecture `gpt-oss`
//! in its terms.
//!
//! Source: the GGUF specification, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>; gguf 0.19.0 `constants.py`.

mod header;
mod names;
mod tensor_type;
mod value;
mod writer;

pub use header::{GgufSpec, TensorProblem};
pub use names::{ExpertRows, GgufTensor, Held, gguf_tensors};
pub use tensor_type::TensorType;
pub use value::{Array, Value, ValueType};
pub use writer::{GgufWriter, SealedGguf};

/// The first four bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is read and written.
pub const VERSION: u32 = 3;

/// Where tensors begin, unless `general.alignment` says otherwise: at multiples of this many bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The value of `general.architecture`, and the prefix of the model's own keys.
pub const ARCHITECTURE: &str = "gpt-oss";
