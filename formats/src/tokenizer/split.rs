//! Cuts text into the pieces that byte-pair merging never crosses.

use regex::Regex;

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
        while let Some(found) = self.pattern.find_at(text, position) {
            let mut end = found.end();
            let mut backwards = found.as_str().char_indices().rev();
            if end < text.len()
                && let Some((last_start, last)) = backwards.next()
                && last.is_whitespace()
                && last != '\r'
                && last != '\n'
                && last_start > 0
            {
                end = found.start() + last_start;
            }
            visit(&text[found.start()..end]);
            position = end;
        }
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn the_lookahead_is_in_the_published_pattern_once() {
        assert_eq!(PUBLISHED_PATTERN.matches(LOOKAHEAD_ALTERNATIVE).count(), 1);
    }
}
