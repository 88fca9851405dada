//! GGUF, the container of llama.cpp, Ollama and LM Studio: version 3, little endian.
//!
//! `value` and `tensor_type` are what a file is made of, `header` and `reader` read it, `writer` writes it. `names`, `metadata` and
//! `vocabulary` are a model of the architecture `gpt-oss` in its terms; `export` makes a file of a checkpoint, with the types that `target`
//! or `mix` chooses, and `adapter` one of an adapter. The reader accepts what the specification allows and llama.cpp writes, and nothing
//! else.
//!
//! Source: the GGUF specification, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>; gguf 0.19.0 `constants.py`.

mod adapter;
mod blocks;
mod cursor;
mod export;
mod file_type;
mod header;
#[cfg(test)]
mod malformed;
mod metadata;
mod mix;
mod names;
mod problem;
mod reader;
mod target;
mod tensor_type;
#[cfg(test)]
pub(crate) mod testing;
mod value;
mod vocabulary;
mod writer;

pub use adapter::GgufAdapter;
pub use export::{ChooseType, ExportedGguf, GgufExport, GgufReport};
pub use file_type::FileType;
pub use header::{GgufEntry, GgufHeader};
pub use metadata::{Metadata, model_metadata};
pub use mix::{Mix, MixModel};
pub use names::{ExpertRows, GgufTensor, Held, gguf_tensors};
pub use problem::GgufProblem;
pub use reader::{GgufFile, GgufView};
pub use target::GgufTarget;
pub use tensor_type::TensorType;
pub use value::{Array, Value, ValueType};
pub use vocabulary::TokenizerProblem;
pub use writer::{GgufSpec, GgufWriter, SealedGguf, TensorProblem};

/// The first four bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is read and written.
pub const VERSION: u32 = 3;

/// Where tensors begin, unless `general.alignment` says otherwise: at multiples of this many bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The value of `general.architecture`, and the prefix of the model's own keys.
pub const ARCHITECTURE: &str = "gpt-oss";

/// What Ollama's own files said instead of [`ARCHITECTURE`] before it took to that of llama.cpp.
///
/// Source: ollama `llama/compat/llama-ollama-compat.cpp`, `handle_gptoss`.
pub const OLLAMA_ARCHITECTURE: &str = "gptoss";
