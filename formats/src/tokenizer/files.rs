//! Writes the tokenizer in the Hub's form: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`.
//!
//! The merges are derived from the ranks as transformers' converter does: every cut of a token into two tokens is a
//! merge, in the order of the token, then of the left and of the right half. `ignore_merges` takes a piece that is a
//! token whole, which is what makes the two forms encode alike.
//! Source: transformers `convert_slow_tokenizer.py` `TikTokenConverter`, `convert_gpt_oss_weights_to_hf.py`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{ORDINARY_TOKENS, Tokenizer, special, split};

/// A tokenizer file could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerFileError {
    /// The operating system refused a write.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// Writes the three tokenizer files into the existing folder `directory`.
///
/// # Errors
/// [`TokenizerFileError::Write`] names the file that could not be written.
pub fn write_tokenizer_files(directory: &Path) -> Result<(), TokenizerFileError> {
    write_file(directory, "tokenizer.json", |file| write_tokenizer_json(Tokenizer::o200k_harmony(), file))?;
    write_file(directory, "tokenizer_config.json", |file| write_pretty(&tokenizer_config(), file))?;
    write_file(directory, "special_tokens_map.json", |file| write_pretty(&special_tokens_map(), file))
}

fn write_file(directory: &Path, name: &str, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), TokenizerFileError> {
    let path = directory.join(name);
    let attempt = || {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
        write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    attempt().map_err(|source| TokenizerFileError::Write { path: path.clone(), source })
}

fn write_pretty(value: &Value, file: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *file, value)?;
    file.write_all(b"\n")
}

fn special_tokens_map() -> Value {
    json!({
        "bos_token": special::name(special::START_OF_TEXT),
        "eos_token": special::name(special::RETURN),
        "pad_token": special::name(special::END_OF_TEXT),
    })
}

fn tokenizer_config() -> Value {
    let decoder: Map<String, Value> = listed_specials()
        .map(|id| {
            let entry = json!({
                "content": special::name(id), "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": true,
            });
            (id.to_string(), entry)
        })
        .collect();
    json!({
        "added_tokens_decoder": decoder,
        "bos_token": special::name(special::START_OF_TEXT),
        "clean_up_tokenization_spaces": false,
        "eos_token": special::name(special::RETURN),
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        // transformers' VERY_LARGE_INTEGER, int(1e30): no limit. Written as a float, which Python compares alike.
        "model_max_length": 1e30,
        "pad_token": special::name(special::END_OF_TEXT),
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

/// The special tokens that the Hub's `tokenizer.json` lists.
pub(crate) fn listed_specials() -> impl Iterator<Item = u32> {
    special::START_OF_TEXT..=special::LAST_LISTED
}

/// Streams `tokenizer.json`: the vocabulary and the merges are 20 MB, so they never become one JSON value.
fn write_tokenizer_json(tokenizer: &Tokenizer, file: &mut impl Write) -> io::Result<()> {
    let added: Vec<Value> = listed_specials()
        .map(|id| {
            json!({
                "id": id, "content": special::name(id), "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let pre_tokenizer = json!({
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split::PUBLISHED_PATTERN}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ],
    });
    let byte_level =
        |trim_offsets: bool| json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": trim_offsets, "use_regex": true});
    write!(file, "{{\n\"version\": \"1.0\",\n\"truncation\": null,\n\"padding\": null,\n\"added_tokens\": ")?;
    serde_json::to_writer(&mut *file, &added)?;
    write!(file, ",\n\"normalizer\": null,\n\"pre_tokenizer\": {pre_tokenizer}")?;
    write!(file, ",\n\"post_processor\": {},\n\"decoder\": {}", byte_level(false), byte_level(true))?;
    write!(
        file,
        ",\n\"model\": {{\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": null, \
         \"end_of_word_suffix\": null, \"fuse_unk\": false, \"byte_fallback\": false, \"ignore_merges\": true,\n\"vocab\": {{"
    )?;
    let texts: Vec<String> = (0..ORDINARY_TOKENS as u32).map(|id| visible(tokenizer.token_bytes(id).unwrap_or_default())).collect();
    for (id, text) in texts.iter().enumerate() {
        write!(file, "{}{}:{id}", if id == 0 { "\n" } else { ",\n" }, Value::from(text.as_str()))?;
    }
    write!(file, "}},\n\"merges\": [")?;
    let mut separator = "\n";
    for id in 0..ORDINARY_TOKENS as u32 {
        for (left, right) in merges_into(tokenizer, id) {
            let pair = [texts[left as usize].as_str(), texts[right as usize].as_str()];
            write!(file, "{separator}")?;
            serde_json::to_writer(&mut *file, &pair)?;
            separator = ",\n";
        }
    }
    write!(file, "]}}\n}}\n")
}

/// The pairs of tokens that join to token `id`, ordered by left and right rank.
pub(crate) fn merges_into(tokenizer: &Tokenizer, id: u32) -> Vec<(u32, u32)> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    let mut pairs: Vec<(u32, u32)> =
        (1..bytes.len()).filter_map(|cut| Some((tokenizer.token_id(&bytes[..cut])?, tokenizer.token_id(&bytes[cut..])?))).collect();
    pairs.sort_unstable();
    pairs
}

/// Bytes in GPT-2's alphabet, in which each byte is one printable character.
///
/// Printable ASCII and Latin-1 stand for themselves; the 68 others follow one another from U+0100.
/// Source: openai/gpt-2 `encoder.py` `bytes_to_unicode`.
pub(crate) fn visible(bytes: &[u8]) -> String {
    let character = |byte: u8| {
        let offset = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => return char::from(byte),
            0x00..=0x20 => byte,
            0x7f..=0xa0 => byte - 0x7f + 0x21,
            0xad => 0x43,
        };
        char::from_u32(0x100 + u32::from(offset)).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    bytes.iter().copied().map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_alphabet_is_one_character_for_each_byte() {
        let all: HashSet<String> = (0..=255_u8).map(|byte| visible(&[byte])).collect();
        assert_eq!(all.len(), 256);
        assert_eq!(visible(b" a\n"), "\u{120}a\u{10a}");
        assert_eq!(visible(&[0xad]), "\u{143}");
    }

    #[test]
    fn there_are_446189_merges() {
        let tokenizer = Tokenizer::o200k_harmony();
        let count: usize = (0..ORDINARY_TOKENS as u32).map(|id| merges_into(tokenizer, id).len()).sum();
        assert_eq!(count, 446_189);
    }

    #[test]
    fn the_files_are_json_with_the_published_counts() {
        let directory = tempfile::tempdir().unwrap();
        write_tokenizer_files(directory.path()).unwrap();
        let text = std::fs::read(directory.path().join("tokenizer.json")).unwrap();
        let json: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["model"]["vocab"].as_object().unwrap().len(), ORDINARY_TOKENS);
        assert_eq!(json["model"]["merges"].as_array().unwrap().len(), 446_189);
        assert_eq!(json["added_tokens"].as_array().unwrap().len(), 21);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = write_tokenizer_files(Path::new("/nonexistent/folder")).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nonexistent/folder/tokenizer.json");
    }
}
