//! Text as a YAML scalar that reads back to the same text.

use std::fmt::Write;

/// Words that YAML 1.1 takes for something else than text. Source: yaml.org/type, `bool` and `null`.
const RESERVED: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "~"];

/// `text` as it stands where no reader can take it for anything else, else in double quotes.
pub(super) fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|character: char| character.is_ascii_alphabetic())
        && text.chars().all(|character| character.is_ascii_alphanumeric() || "-_./".contains(character))
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            // Source: YAML 1.2 section 5.1, c-printable; line separators would be folded.
            ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' => {
                quoted.push(character);
            }
            other => {
                // Writing to a string does not fail.
                let _ = write!(quoted, "\\U{:08x}", u32::from(other));
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_word_that_can_be_nothing_else_stands_bare() {
        for plain in ["openai/gpt-oss-20b", "a", "v1.2_x"] {
            assert_eq!(scalar(plain), plain);
        }
        for text in ["", "yes", "Null", "1e5", "20b", "- a", "a: b", "a #b", "'", "gr\u{f6}\u{df}e", "~", ".5", "a b"] {
            assert_eq!(scalar(text), format!("\"{text}\""));
        }
    }

    #[test]
    fn what_would_end_the_text_is_escaped() {
        assert_eq!(scalar("a\"b\\c\nd\t\u{7f}\u{2028}\u{1f600}"), "\"a\\\"b\\\\c\\nd\\t\\U0000007f\\U00002028\\U0001f600\"");
    }
}
