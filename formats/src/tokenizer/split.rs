//! Cuts text into the pieces that byte-pair merging never crosses.

use regex::Regex;

use super::ascii;

/// The split pattern of o200k as published, for `tokenizer.json`.
/// Source: tiktoken `openai_public.py`, `o200k_base`.
pub(super) const PUBLISHED_PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|",
    r"\s*[\r\n]+|",
    r"\s+(?!\S)|",
    r"\s+"
);

/// The one alternative that a linear-time engine does not offer; [`Splitter`] does its work by hand.
const LOOKAHEAD_ALTERNATIVE: &str = r"\s+(?!\S)|";

/// Splits as [`PUBLISHED_PATTERN`] does, in linear time.
pub(super) struct Splitter {
    pattern: Regex,
}

impl Splitter {
    pub(super) fn new() -> Splitter {
        let pattern = PUBLISHED_PATTERN.replace(LOOKAHEAD_ALTERNATIVE, "");
        #[expect(clippy::expect_used, reason = "a constant pattern, compiled in every test run")]
        Splitter { pattern: Regex::new(&pattern).expect("constant pattern") }
    }

    /// Calls `visit` with each piece of `text`, in order; the pieces joined are `text`.
    ///
    /// `\s+(?!\S)` takes a run of blanks less its last one when something else follows. Only the last alternative, `\s+`,
    /// can end in a blank that is no line break, so exactly its matches are shortened.
    pub(super) fn for_each_piece<'t>(&self, text: &'t str, mut visit: impl FnMut(&'t str)) {
        let mut position = 0;
        loop {
            while let Some(end) = ascii::piece_end(text.as_bytes(), position) {
                visit(&text[position..end]);
                position = end;
            }
            let Some(end) = self.piece_end(text, position) else { return };
            visit(&text[position..end]);
            position = end;
        }
    }

    /// Where the piece that begins at `position` ends, by the pattern; `None` at the end of the text.
    fn piece_end(&self, text: &str, position: usize) -> Option<usize> {
        let found = self.pattern.find_at(text, position)?;
        let end = found.end();
        let mut backwards = found.as_str().char_indices().rev();
        if end < text.len()
            && let Some((last_start, last)) = backwards.next()
            && last.is_whitespace()
            && last != '\r'
            && last != '\n'
            && last_start > 0
        {
            return Some(found.start() + last_start);
        }
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(text: &str) -> Vec<&str> {
        let mut all = Vec::new();
        Splitter::new().for_each_piece(text, |piece| all.push(piece));
        all
    }

    #[test]
    fn a_run_of_blanks_leaves_its_last_one_to_the_word() {
        assert_eq!(pieces("a    b"), ["a", "   ", " b"]);
        assert_eq!(pieces("a    "), ["a", "    "]);
        assert_eq!(pieces("a \t1"), ["a", " ", "\t", "1"]);
        assert_eq!(pieces("x  \n  y"), ["x", "  \n", " ", " y"]);
    }

    #[test]
    fn digits_come_in_threes_and_contractions_stay() {
        assert_eq!(pieces("1234567 don't"), ["123", "456", "7", " don't"]);
    }

    /// The pieces by the pattern alone.
    fn pieces_by_pattern(text: &str) -> Vec<&str> {
        let splitter = Splitter::new();
        let (mut all, mut position) = (Vec::new(), 0);
        while let Some(end) = splitter.piece_end(text, position) {
            all.push(&text[position..end]);
            position = end;
        }
        all
    }

    #[test]
    fn every_short_text_of_all_classes_is_split_as_by_the_pattern() {
        let letters =
            ["A", "a", "s", "1", " ", "\n", "\t", "!", "/", "'", "\u{17f}", "\u{e9}", "\u{2028}", "\u{661}", "\u{301}", "\u{2014}"];
        let splitter = Splitter::new();
        let mut texts = vec![String::new()];
        for _ in 0..4 {
            texts = texts.iter().flat_map(|text| letters.iter().map(move |letter| format!("{text}{letter}"))).collect();
            for text in &texts {
                let mut found = Vec::new();
                splitter.for_each_piece(text, |piece| found.push(piece));
                let (mut expected, mut position) = (Vec::new(), 0);
                while let Some(end) = splitter.piece_end(text, position) {
                    expected.push(&text[position..end]);
                    position = end;
                }
                assert_eq!(found, expected, "{text:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn ascii_is_split_as_by_the_pattern(text in "[ -~\\t\\r\\n\\x00\\x0b]{0,40}") {
            prop_assert_eq!(pieces(&text), pieces_by_pattern(&text));
        }

        #[test]
        fn words_are_split_as_by_the_pattern(text in "([A-Z]{0,2}[a-z]{0,3}|'(s|T|re|LL|x|\u{17f})|[0-9]{1,4}| {1,3}|\n|\t|[!/.]{1,2}|\u{e9}|\u{a0}|\u{4e2d}|\u{301}){0,12}") {
            prop_assert_eq!(pieces(&text), pieces_by_pattern(&text));
        }
    }

    #[test]
    fn the_lookahead_is_in_the_published_pattern_once() {
        assert_eq!(PUBLISHED_PATTERN.matches(LOOKAHEAD_ALTERNATIVE).count(), 1);
    }
}
