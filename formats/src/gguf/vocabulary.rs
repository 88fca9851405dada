//! The tokenizer in GGUF: tokens, their kinds, and merges.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rayon::prelude::*;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::json::read_bytes;
use crate::tokenizer::{ORDINARY_TOKENS, Tokenizer, listed_specials, merges_into, special, visible};

/// Bytes of a `tokenizer.json` at most; that of gpt-oss has 28 MB.
const LIMIT_BYTES: u64 = 256 << 20;

/// Kinds of tokens. Source: gguf 0.19.0 `constants.py`, `TokenType`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// The tokenizer of a model, as GGUF has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Vocabulary {
    /// Every token of the embedding, in the visible alphabet of GPT-2.
    pub(super) tokens: Vec<String>,
    /// Their kinds.
    pub(super) kinds: Vec<i32>,
    /// Pairs of tokens that are joined, the first ones first.
    pub(super) merges: Vec<String>,
}

/// How a `tokenizer.json` differs from that of gpt-oss.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerProblem {
    /// It has more tokens, or fewer.
    #[error("it has {found} ordinary tokens, expected {expected}")]
    Size {
        /// Tokens of gpt-oss.
        expected: usize,
        /// Its tokens.
        found: usize,
    },
    /// A token has another number, or none.
    #[error("token `{token}` has the id {found:?}, expected {expected}")]
    Token {
        /// The token, in the visible alphabet of GPT-2.
        token: String,
        /// Its id in gpt-oss.
        expected: u32,
        /// Its id.
        found: Option<u32>,
    },
    /// A special token has another spelling.
    #[error("special token {id} is `{found}`, expected `{expected}`")]
    Special {
        /// The id.
        id: u32,
        /// The spelling in gpt-oss.
        expected: String,
        /// Its spelling.
        found: String,
    },
    /// Other pairs of tokens are joined.
    #[error("its {found} merges are not the {expected} expected")]
    Merges {
        /// Merges of gpt-oss.
        expected: usize,
        /// Its merges.
        found: usize,
    },
}

/// Part of a `tokenizer.json`.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// A merge in its two spellings.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

impl Vocabulary {
    /// The vocabulary of the model in `directory`, whose embedding has `size` rows.
    ///
    /// As many tokens as rows: what lies beyond a smaller embedding is left out, and what fills a larger one is unused, as is what no
    /// text and no harmony message contains.
    pub(super) fn of_model(directory: &Path, size: usize) -> Result<Self> {
        let tokenizer = Tokenizer::o200k_harmony();
        let path = directory.join("tokenizer.json");
        // Either takes as long as writing a small model.
        let (merges, file) = rayon::join(|| merges(tokenizer), || path.exists().then(|| read(&path)).transpose());
        let specials = match file? {
            Some(file) => {
                check(&file, &merges).map_err(|problem| Error::ForeignTokenizer { path, problem })?;
                file.added_tokens.iter().map(|token| token.id).collect()
            }
            None => listed_specials().collect::<HashSet<u32>>(),
        };
        let texts: Vec<String> = ordinary_ids().map(|id| visible(tokenizer.token_bytes(id).unwrap_or_default())).collect();
        let is_within = |id: u32| (id as usize) < size;
        let merged = merges.into_iter().filter(|&(left, right, id)| is_within(left) && is_within(right) && is_within(id));
        let merges = merged.map(|(left, right, _)| format!("{} {}", texts[left as usize], texts[right as usize])).collect();
        let (mut tokens, mut kinds) = (Vec::with_capacity(size), Vec::with_capacity(size));
        // The rows of an embedding are counted in 31 bits.
        for id in 0..size as u32 {
            let (token, kind) = match texts.get(id as usize) {
                Some(text) => (text.clone(), NORMAL),
                None if specials.contains(&id) => (special::name(id).unwrap_or_default().into_owned(), CONTROL),
                // Source: llama.cpp `conversion/base.py`, `get_vocab_base`.
                None => (format!("[PAD{id}]"), UNUSED),
            };
            tokens.push(token);
            kinds.push(kind);
        }
        Ok(Self { tokens, kinds, merges })
    }
}

fn ordinary_ids() -> impl Iterator<Item = u32> {
    0..ORDINARY_TOKENS as u32
}

/// Every pair of tokens that are joined, with the token that they make.
fn merges(tokenizer: &Tokenizer) -> Vec<(u32, u32, u32)> {
    let of_token = |id: u32| merges_into(tokenizer, id).into_iter().map(move |(left, right)| (left, right, id));
    (0..ORDINARY_TOKENS as u32).into_par_iter().flat_map_iter(of_token).collect()
}

fn read(path: &Path) -> Result<TokenizerFile> {
    let text = read_bytes(path, LIMIT_BYTES)?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Finds a difference to the tokenizer of gpt-oss.
fn check(file: &TokenizerFile, merges: &[(u32, u32, u32)]) -> Result<(), TokenizerProblem> {
    let tokenizer = Tokenizer::o200k_harmony();
    let vocab = &file.model.vocab;
    for id in ordinary_ids() {
        let token = visible(tokenizer.token_bytes(id).unwrap_or_default());
        let found = vocab.get(&token).copied();
        if found != Some(id) {
            return Err(TokenizerProblem::Token { token, expected: id, found });
        }
    }
    // Some writers list the special tokens in the vocabulary too.
    let found = vocab.values().filter(|&&id| (id as usize) < ORDINARY_TOKENS || special::name(id).is_none()).count();
    if found != ORDINARY_TOKENS {
        return Err(TokenizerProblem::Size { expected: ORDINARY_TOKENS, found });
    }
    for token in &file.added_tokens {
        let expected = match special::name(token.id) {
            Some(name) => name.into_owned(),
            None => visible(tokenizer.token_bytes(token.id).unwrap_or_default()),
        };
        if expected != token.content {
            return Err(TokenizerProblem::Special { id: token.id, expected, found: token.content.clone() });
        }
    }
    // In whatever order: a piece that is a token is taken whole, and others are joined by rank.
    let mut found: Vec<Option<(u32, u32)>> = file.model.merges.iter().map(|merge| merge.ids(vocab)).collect();
    let mut expected: Vec<Option<(u32, u32)>> = merges.iter().map(|&(left, right, _)| Some((left, right))).collect();
    found.sort_unstable();
    expected.sort_unstable();
    if found != expected {
        return Err(TokenizerProblem::Merges { expected: expected.len(), found: found.len() });
    }
    Ok(())
}

impl Merge {
    /// The ids of both tokens.
    fn ids(&self, vocab: &HashMap<String, u32>) -> Option<(u32, u32)> {
        let (left, right) = match self {
            Self::Pair(left, right) => (left.as_str(), right.as_str()),
            Self::Joined(both) => both.split_once(' ')?,
        };
        Some((*vocab.get(left)?, *vocab.get(right)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::write_tokenizer_files;
    use serde_json::{Value, json};
    use std::fs;

    #[test]
    fn tokens_are_as_many_as_the_rows_of_the_embedding() {
        let nowhere = Path::new("/nonexistent");
        let whole = Vocabulary::of_model(nowhere, 201_088).unwrap();
        assert_eq!((whole.tokens.len(), whole.kinds.len(), whole.merges.len()), (201_088, 201_088, 446_189));
        assert_eq!((whole.tokens[220].as_str(), whole.kinds[220]), ("\u{120}", NORMAL));
        assert_eq!((whole.tokens[200_006].as_str(), whole.kinds[200_006]), ("<|start|>", CONTROL));
        assert_eq!((whole.tokens[200_019].as_str(), whole.kinds[200_019]), ("[PAD200019]", UNUSED));
        assert_eq!(whole.kinds.iter().filter(|&&kind| kind == CONTROL).count(), 21);
        let larger = Vocabulary::of_model(nowhere, 201_100).unwrap();
        assert_eq!((larger.tokens[201_099].as_str(), larger.kinds[201_099]), ("[PAD201099]", UNUSED));
        let smaller = Vocabulary::of_model(nowhere, 1000).unwrap();
        assert_eq!(smaller.tokens, whole.tokens[..1000]);
        let known: HashSet<&str> = smaller.tokens.iter().map(String::as_str).collect();
        assert!(smaller.merges.len() > 700);
        for merge in &smaller.merges {
            let (left, right) = merge.split_once(' ').unwrap();
            assert!(known.contains(left) && known.contains(right) && known.contains(&*[left, right].concat()), "{merge}");
        }
    }

    #[test]
    fn a_tokenizer_of_another_content_is_refused() {
        let root = tempfile::tempdir().unwrap();
        write_tokenizer_files(root.path()).unwrap();
        let path = root.path().join("tokenizer.json");
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert!(Vocabulary::of_model(root.path(), 201_088).unwrap() == Vocabulary::of_model(Path::new("/nonexistent"), 201_088).unwrap());
        let problem = |change: &dyn Fn(&mut Value)| {
            let mut changed = json.clone();
            change(&mut changed);
            fs::write(&path, changed.to_string()).unwrap();
            match Vocabulary::of_model(root.path(), 1000) {
                Err(Error::ForeignTokenizer { problem, .. }) => Some(problem),
                other => other.map(|_| None).unwrap(),
            }
        };
        // The older spelling of merges in another order, special tokens in the vocabulary, and one more of them listed.
        let same = problem(&|json| {
            let merges = json["model"]["merges"].as_array_mut().unwrap();
            merges.reverse();
            for merge in merges.iter_mut() {
                *merge = format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()).into();
            }
            json["model"]["vocab"]["<|start|>"] = json!(200_006);
            json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 200_019, "content": "<|reserved_200019|>"}));
        });
        assert_eq!(same, None);
        assert_eq!(
            problem(&|json| json["model"]["vocab"]["!"] = json!(7)),
            Some(TokenizerProblem::Token { token: "!".into(), expected: 0, found: Some(7) })
        );
        assert_eq!(
            problem(&|json| json["model"]["vocab"]["a new word"] = json!(5)),
            Some(TokenizerProblem::Size { expected: 199_998, found: 199_999 })
        );
        assert_eq!(
            problem(&|json| json["added_tokens"][8]["content"] = json!("<|im_start|>")),
            Some(TokenizerProblem::Special { id: 200_006, expected: "<|start|>".into(), found: "<|im_start|>".into() })
        );
        let fewer = problem(&|json| drop(json["model"]["merges"].as_array_mut().unwrap().pop()));
        assert_eq!(fewer, Some(TokenizerProblem::Merges { expected: 446_189, found: 446_188 }));
        fs::write(&path, "{}").unwrap();
        assert!(matches!(Vocabulary::of_model(root.path(), 1000), Err(Error::Json { .. })));
    }
}
