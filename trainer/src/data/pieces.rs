//! A sample token by token, for people to look at.

use ft_formats::tokenizer::{TextStream, Tokenizer, special};

use super::sample::Sample;

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its id.
    pub id: u32,
    /// The text that it completes. A character that is spread over several tokens comes with the last of them; the pieces
    /// joined are the sample's text.
    pub text: String,
    /// Its loss weight.
    pub weight: f32,
    /// Whether it is a special token, rather than text that may spell one.
    pub is_special: bool,
}

/// The tokens of `sample`.
pub fn pieces(sample: &Sample) -> Vec<Piece> {
    let tokenizer = Tokenizer::o200k_harmony();
    let mut stream = TextStream::default();
    let mut pieces: Vec<Piece> = Vec::with_capacity(sample.ids.len());
    for (&id, &weight) in sample.ids.iter().zip(&sample.weights) {
        let text = stream.push(&tokenizer.decode(&[id]));
        pieces.push(Piece { id, text, weight, is_special: special::is_special(id) });
    }
    if let Some(last) = pieces.last_mut() {
        last.text += &stream.finish();
    }
    pieces
}
