//! The vocabulary in a file: it has to be the one that texts are turned into tokens by.
//!
//! Source: gguf 0.19.0 `constants.py`, `Keys.Tokenizer`; llama.cpp `conversion/base.py`, `get_vocab_base`.

use crate::error::{Error, Result};
use crate::gguf::{Array, GgufFile, GgufProblem, Value};
use crate::tokenizer::{ORDINARY_TOKENS, Tokenizer, special, visible};

/// Characters of a token that an error shows.
const SHOWN: usize = 40;

impl GgufFile {
    /// Checks that the tokens in the file are those of o200k_harmony, as far as a token has a meaning: spellings of reserved ones differ
    /// between writers. A file without tokens says nothing that could be wrong.
    ///
    /// # Errors
    /// [`Error::Gguf`] with the first token that differs, or when their number is not that of the embedding's rows.
    pub fn check_vocabulary(&self) -> Result<()> {
        let malformed = |problem| Error::Gguf { path: self.main_file().to_owned(), problem };
        let tokens = match self.get("tokenizer.ggml.tokens") {
            None => return Ok(()),
            Some(Value::Array(Array::String(tokens))) => tokens,
            Some(other) => {
                let key = "tokenizer.ggml.tokens".to_owned();
                return Err(malformed(GgufProblem::WrongType { key, expected: "an array of strings", found: other.value_type() }));
            }
        };
        let rows = self.tensor("token_embd.weight")?.shape[0];
        if tokens.len() != rows {
            return Err(malformed(GgufProblem::TokenCount { expected: rows, found: tokens.len() }));
        }
        let tokenizer = Tokenizer::o200k_harmony();
        for (id, found) in tokens.iter().enumerate() {
            let expected = u32::try_from(id).ok().and_then(|id| match tokenizer.token_bytes(id) {
                Some(bytes) => Some(visible(bytes)),
                None => named(id),
            });
            if let Some(expected) = expected.filter(|expected| expected != found) {
                let found = found.chars().take(SHOWN).collect();
                return Err(malformed(GgufProblem::OtherToken { id, expected, found }));
            }
        }
        Ok(())
    }
}

/// The spelling of a special token that harmony uses.
fn named(id: u32) -> Option<String> {
    let is_used = (ORDINARY_TOKENS as u32..special::END_OF_PROMPT).contains(&id);
    special::name(id).filter(|name| is_used && !name.starts_with("<|reserved_")).map(std::borrow::Cow::into_owned)
}
