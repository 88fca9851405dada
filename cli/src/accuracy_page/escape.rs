//! Text that came from outside, made safe to stand in a page.

use std::path::Path;

/// `text` as the content of an element, or between double or single quotes.
pub(super) fn escape(text: &str) -> String {
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

/// A path, set as code.
pub(super) fn path(path: &Path) -> String {
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
}
