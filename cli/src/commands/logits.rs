//! `ft logits`: what a model computes, for other programs to compare with.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use ft_formats::checkpoint::Config;
use ft_trainer::logits::{LogitsRequest, TokensInput, write_logits};
use serde::Serialize;

use crate::arguments::ComputeDtype;
use crate::error::{Error, Result};
use crate::json;
use crate::progress::ByteProgress;
use crate::terminal::Terminal;

/// Compute the logits of given tokens, as safetensors
///
/// For an array of ids the file holds `logits` f32 [sequence, vocabulary]; for several arrays `logits.0`, `logits.1`, ...
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  echo '[200006, 1428, 200008, 25216]' > tokens.json
  ft logits models/nano --tokens tokens.json --output logits.safetensors
  ft logits models/nano --adapter runs/quickstart/adapter --tokens tokens.json --output logits.safetensors --dtype bf16")]
pub(crate) struct Arguments {
    /// The model: a directory, or a GGUF file
    model: PathBuf,
    /// JSON: an array of ids, or of such arrays
    #[arg(long)]
    tokens: PathBuf,
    /// Where the logits go
    #[arg(long)]
    output: PathBuf,
    /// An adapter on top of the model
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Type of weights and activations
    #[arg(long, value_enum, default_value_t = ComputeDtype::F32)]
    dtype: ComputeDtype,
    /// Print the tensors as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Outcome<'a> {
    output: &'a Path,
    tensors: Vec<TensorShape>,
}

#[derive(Serialize)]
struct TensorShape {
    name: String,
    shape: Vec<usize>,
}

/// Tokens, model, file.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let tokens = read_tokens(&arguments.tokens, Config::read(&arguments.model)?.vocab_size)?;
    let request = LogitsRequest {
        model: &arguments.model,
        adapter: arguments.adapter.as_deref(),
        tokens: &tokens,
        output: &arguments.output,
        dtype: arguments.dtype.into(),
    };
    let mut progress = ByteProgress::new(format!("reading {}", arguments.model.display()), terminal);
    let specs = write_logits(&request, &mut |bytes, total| progress.advance(bytes, total))?;
    progress.finish();
    let tensors: Vec<TensorShape> = specs.into_iter().map(|spec| TensorShape { name: spec.name, shape: spec.shape }).collect();
    if arguments.json {
        return json::print(&Outcome { output: &arguments.output, tensors }, terminal);
    }
    for tensor in tensors {
        terminal.print(&format!("{}: `{}` {:?}", arguments.output.display(), tensor.name, tensor.shape))?;
    }
    Ok(())
}

fn read_tokens(path: &Path, vocabulary: usize) -> Result<TokensInput> {
    let text = fs::read(path).map_err(|source| Error::File { action: "read", path: path.to_owned(), source })?;
    let tokens: TokensInput = serde_json::from_slice(&text).map_err(|source| Error::Tokens { path: path.to_owned(), source })?;
    let sequences = match &tokens {
        TokensInput::One(ids) => std::slice::from_ref(ids),
        TokensInput::Several(all) => all,
    };
    if sequences.is_empty() || sequences.iter().any(Vec::is_empty) {
        return Err(Error::NoTokens { path: path.to_owned() });
    }
    let is_outside = |id: &&u32| usize::try_from(**id).map_or(true, |id| id >= vocabulary);
    match sequences.iter().flatten().find(is_outside) {
        Some(&token) => Err(Error::TokenOutsideVocabulary { path: path.to_owned(), token, vocabulary }),
        None => Ok(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TokensInput> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.json");
        fs::write(&path, text).unwrap();
        read_tokens(&path, 10)
    }

    #[test]
    fn one_sequence_or_several() {
        assert_eq!(read("[1, 9]").unwrap(), TokensInput::One(vec![1, 9]));
        assert_eq!(read("[[1], [2, 3]]").unwrap(), TokensInput::Several(vec![vec![1], vec![2, 3]]));
    }

    #[test]
    fn what_is_no_sequence_is_refused() {
        assert!(matches!(read("[1, 10]"), Err(Error::TokenOutsideVocabulary { token: 10, .. })));
        assert!(matches!(read("[]"), Err(Error::NoTokens { .. })));
        assert!(matches!(read("[[1], []]"), Err(Error::NoTokens { .. })));
        for text in ["{}", "[1.5]", "[-1]", "[1, [2]]", "[", "\"1\"", "[4294967296]"] {
            assert!(matches!(read(text), Err(Error::Tokens { .. })), "{text}");
        }
    }
}
