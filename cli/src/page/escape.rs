//! Text that came from outside, made safe to stand in a page.

use std::path::Path;

/// `text` as the content of an element, or between double or single quotes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // They have no place in a page, and names of files may hold any.
            letter if letter.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Characters that turn the direction of what follows them, beyond the element that they stand in.
///
/// Source: Unicode Standard Annex 9, section 2: explicit embeddings, overrides and isolates, and the marks.
const DIRECTIONS: [char; 12] = [
    '\u{61c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}',
    '\u{2069}',
];

/// Text of several lines, as [`escape`]: lines and tabs stay, and so does the direction of the page.
pub(crate) fn escape_lines(text: &str) -> String {
    text.split_inclusive(['\n', '\t', '\r'])
        .map(|piece| {
            let (words, end) = match piece.strip_suffix(['\n', '\t', '\r']) {
                Some(words) => (words, &piece[words.len()..]),
                None => (piece, ""),
            };
            let words: String =
                words.chars().map(|letter| if DIRECTIONS.contains(&letter) { char::REPLACEMENT_CHARACTER } else { letter }).collect();
            escape(&words) + if end == "\r" { "" } else { end }
        })
        .collect()
}

/// A path, set as code.
pub(crate) fn path(path: &Path) -> String {
    format!("<code>{}</code>", escape(&path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_marks_up_comes_through() {
        assert_eq!(escape("<a href=\"x\" id='y'>&\u{7}\n"), "&lt;a href=&quot;x&quot; id=&#39;y&#39;&gt;&amp;\u{fffd}\u{fffd}");
        assert_eq!(path(Path::new("models/a&b")), "<code>models/a&amp;b</code>");
    }

    #[test]
    fn lines_stay_and_turns_of_direction_do_not() {
        assert_eq!(escape_lines("a\r\n\t<b>\u{202e}c\u{0}\n"), "a\n\t&lt;b&gt;\u{fffd}c\u{fffd}\n");
    }
}
