//! Bytes that come token by token, as text.

/// Joins bytes to text as soon as their characters are complete.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    /// The beginning of a character whose rest may still come.
    pending: Vec<u8>,
}

impl TextStream {
    /// The text that `bytes` complete; bytes that can be no UTF-8 become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, after) = rest.split_at(error.valid_up_to());
            text += &String::from_utf8_lossy(valid);
            let Some(length) = error.error_len() else {
                self.pending = after.to_vec();
                return text;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &after[length..];
        }
        text += &String::from_utf8_lossy(rest);
        self.pending.clear();
        text
    }

    /// What is left when no more bytes come: U+FFFD for a character that was never completed.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_text(bytes in any::<Vec<u8>>(), cut in 1_usize..5) {
            let mut stream = TextStream::default();
            let mut text: String = bytes.chunks(cut).map(|piece| stream.push(piece)).collect();
            text += &stream.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_character_comes_with_its_last_byte(character in any::<char>()) {
            let mut stream = TextStream::default();
            let text = character.to_string();
            let pieces: Vec<String> = text.bytes().map(|byte| stream.push(&[byte])).collect();
            prop_assert_eq!(pieces.last(), Some(&text));
        }
    }
}
