//! The o200k_harmony tokenizer: text to token ids and back.
//!
//! The 199,998 byte-pair ranks come embedded with `tiktoken-rs`; splitting and merging are done here, in time that grows
//! as n log n for any text (a backtracking split of a megabyte of spaces overflows its stack, and a program that reads
//! other people's files must not). Text never becomes a special token: the ids of [`special`] are placed by the
//! harmony renderer alone.
//!
//! `files` writes `tokenizer.json` and its companions from the same ranks, with the chat template beside them.

mod ascii;
mod byte_pair;
mod files;
pub mod special;
mod split;
mod stream;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use rustc_hash::FxHashMap;

pub use files::{TokenizerFileError, write_chat_template, write_tokenizer_files};
pub(crate) use files::{listed_specials, merges_into, visible};
pub use stream::TextStream;

/// Number of ordinary tokens: ids `0..199_998` are byte sequences. Source: `o200k_base.tiktoken`, one line for each.
pub const ORDINARY_TOKENS: usize = 199_998;

/// Number of rows in the embedding table of gpt-oss. Source: `vocab_size` of the published `config.json`.
pub const VOCABULARY_SIZE: usize = 201_088;

/// The o200k_harmony tokenizer.
pub struct Tokenizer {
    /// The bytes of every ordinary token, one after the other.
    bytes: Vec<u8>,
    /// Token `id` is `bytes[offsets[id]..offsets[id + 1]]`.
    offsets: Vec<u32>,
    ranks: FxHashMap<Box<[u8]>, u32>,
    splitter: split::Splitter,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tokenizer").field("ordinary_tokens", &self.ranks.len()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The one tokenizer of the process, built on first use (about 0.2 s).
    pub fn o200k_harmony() -> &'static Tokenizer {
        static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::build);
        &TOKENIZER
    }

    fn build() -> Tokenizer {
        // Not the crate's own singleton, which would stay in memory for ever.
        #[expect(clippy::expect_used, reason = "the file is embedded; the tests build it")]
        let source = tiktoken_rs::o200k_base().expect("embedded ranks");
        let mut bytes = Vec::with_capacity(1 << 21);
        let mut offsets = Vec::with_capacity(ORDINARY_TOKENS + 1);
        let mut ranks = FxHashMap::with_capacity_and_hasher(ORDINARY_TOKENS, rustc_hash::FxBuildHasher);
        for rank in 0..ORDINARY_TOKENS as u32 {
            #[expect(clippy::expect_used, reason = "the embedded file holds each rank below ORDINARY_TOKENS")]
            let token = source.decode_bytes(&[rank]).expect("embedded rank");
            offsets.push(bytes.len() as u32);
            bytes.extend_from_slice(&token);
            ranks.insert(token.into_boxed_slice(), rank);
        }
        offsets.push(bytes.len() as u32);
        Tokenizer { bytes, offsets, ranks, splitter: split::Splitter::new() }
    }

    /// The ids of `text`, with no special token among them whatever the text spells.
    pub fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.encode_ordinary_into(text, &mut ids);
        ids
    }

    /// Appends the ids of `text` to `ids`, and returns the range that they take there.
    pub fn encode_ordinary_into(&self, text: &str, ids: &mut Vec<u32>) -> Range<usize> {
        let start = ids.len();
        self.splitter.for_each_piece(text, |piece| match self.ranks.get(piece.as_bytes()) {
            Some(&rank) => ids.push(rank),
            None => byte_pair::merge(piece.as_bytes(), |pair| self.ranks.get(pair).copied(), ids),
        });
        start..ids.len()
    }

    /// The bytes that `ids` stand for; a special token gives its spelling, an id past the vocabulary U+FFFD.
    ///
    /// The bytes need not be UTF-8: a character can be spread over several tokens.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ids.len() * 5);
        for &id in ids {
            match self.token_bytes(id) {
                Some(token) => bytes.extend_from_slice(token),
                None => bytes.extend_from_slice(special::name(id).as_deref().unwrap_or("\u{fffd}").as_bytes()),
            }
        }
        bytes
    }

    /// The bytes of an ordinary token; `None` for a special token or an id past the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.offsets.get(index + 1)?;
        Some(&self.bytes[self.offsets[index] as usize..end as usize])
    }

    /// The id whose bytes are exactly `token`, when there is such an ordinary token.
    pub fn token_id(&self, token: &[u8]) -> Option<u32> {
        self.ranks.get(token).copied()
    }

    /// The text of one token, for people to read: bytes that are no UTF-8 by themselves show as U+FFFD.
    pub fn token_text(&self, id: u32) -> Cow<'_, str> {
        match self.token_bytes(id) {
            Some(token) => String::from_utf8_lossy(token),
            None => special::name(id).unwrap_or(Cow::Borrowed("\u{fffd}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(text: &str) -> Vec<u32> {
        Tokenizer::o200k_harmony().encode_ordinary(text)
    }

    #[test]
    fn known_words_are_single_tokens() {
        for (text, id) in [("assistant", 173_781), ("user", 1428), ("system", 17_360), ("developer", 77_944)] {
            assert_eq!(encode(text), [id], "{text}");
        }
        assert_eq!(encode("commentary"), [12_606, 815]);
        assert_eq!(encode(" to="), [316, 28]);
        assert_eq!(encode(""), Vec::<u32>::new());
    }

    #[test]
    fn spelled_special_tokens_stay_plain_text() {
        let ids = encode("<|start|>assistant<|endoftext|>");
        assert!(ids.iter().all(|&id| (id as usize) < ORDINARY_TOKENS), "{ids:?}");
    }

    #[test]
    fn long_runs_encode_in_bounded_time() {
        for unit in [" ", "\n", "a", "\u{1f600}", "=", "\t ", "\u{3042}"] {
            let text = unit.repeat(200_000 / unit.len());
            let ids = encode(&text);
            assert_eq!(Tokenizer::o200k_harmony().decode(&ids), text.as_bytes());
        }
    }

    #[test]
    fn every_special_id_has_a_name_and_no_bytes() {
        let tokenizer = Tokenizer::o200k_harmony();
        for id in ORDINARY_TOKENS as u32..VOCABULARY_SIZE as u32 {
            assert!(tokenizer.token_bytes(id).is_none());
            assert!(tokenizer.token_text(id).starts_with("<|"), "{id}");
        }
        assert_eq!(tokenizer.token_text(VOCABULARY_SIZE as u32), "\u{fffd}");
        assert_eq!(tokenizer.token_text(u32::MAX), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn decoding_an_encoding_returns_the_text(text in any::<String>()) {
            prop_assert_eq!(Tokenizer::o200k_harmony().decode(&encode(&text)), text.into_bytes());
        }

        #[test]
        fn encoding_equals_tiktoken(text in "(?s)[ \\t\\r\\na-zA-Z0-9'\\./\\-\u{e9}\u{4e2d}\u{1f600}\u{301}\u{a0}\u{2028}]{0,60}") {
            prop_assert_eq!(encode(&text), tiktoken_rs::o200k_base_singleton().encode_ordinary(&text));
        }

        #[test]
        fn encoding_any_text_equals_tiktoken(text in any::<String>()) {
            prop_assert_eq!(encode(&text), tiktoken_rs::o200k_base_singleton().encode_ordinary(&text));
        }
    }
}
