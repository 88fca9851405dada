//! A sample as a person looks at it: which tokens are trained, which are context, which are special.

use ft_trainer::data::Piece;

use crate::terminal::Palette;

/// The text of `pieces`. In colour: what is trained bold and green, context dim, special tokens boxed. Without it: what is trained stands
/// in `[+...+]`. A weight other than 1 is named: `[+0.5: ...+]`.
pub(crate) fn text(pieces: &[Piece], palette: Palette) -> String {
    let mut text = String::new();
    for run in pieces.chunk_by(|left, right| left.weight.to_bits() == right.weight.to_bits()) {
        let weight = run.first().map_or(0.0, |piece| piece.weight);
        let is_trained = weight != 0.0;
        // `to_string` of an f32 is the shortest text that reads back to it.
        let named = if is_trained && (weight - 1.0).abs() > f32::EPSILON { format!("{weight}: ") } else { String::new() };
        if palette.is_coloured {
            text += &palette.hint(&named);
            run.chunk_by(|left, right| !left.is_special && !right.is_special).for_each(|alike| text += &painted(alike, palette));
        } else if is_trained {
            text += &format!("[+{named}{}+]", joined(run));
        } else {
            text += &joined(run);
        }
    }
    text
}

fn joined(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

/// Pieces of one weight: text, or one special token.
fn painted(pieces: &[Piece], palette: Palette) -> String {
    let Some(first) = pieces.first() else { return String::new() };
    let text = if first.is_special { palette.boxed(&first.text) } else { joined(pieces) };
    if first.weight == 0.0 { palette.dim(&text) } else { palette.trained(&text) }
}

/// The same, a token on each line: its place, id, weight and text.
pub(crate) fn table(pieces: &[Piece], palette: Palette) -> String {
    let mut text = String::new();
    for (place, piece) in pieces.iter().enumerate() {
        let weight = if piece.weight == 0.0 { "-".to_owned() } else { piece.weight.to_string() };
        let shown = if piece.is_special { piece.text.clone() } else { format!("{:?}", piece.text) };
        let line = format!("{place:>6} {:>7} {weight:>6}  {shown}", piece.id);
        let line = if piece.weight == 0.0 { palette.dim(&line) } else { palette.trained(&line) };
        text += &line;
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, weight: f32, is_special: bool) -> Piece {
        Piece { id: 7, text: text.to_owned(), weight, is_special }
    }

    fn pieces() -> Vec<Piece> {
        vec![
            piece("<|start|>", 0.0, true),
            piece("user", 0.0, false),
            piece(" think", 0.5, false),
            piece("ing", 0.5, false),
            piece(" A", 1.0, false),
            piece("<|return|>", 1.0, true),
        ]
    }

    #[test]
    fn without_colour_marks_show_what_is_trained() {
        assert_eq!(text(&pieces(), Palette::plain()), "<|start|>user[+0.5:  thinking+][+ A<|return|>+]");
    }

    #[test]
    fn colours_leave_the_text_as_it_is() {
        let coloured = text(&pieces(), Palette::coloured());
        assert!(coloured.contains("\u{1b}[2m") && coloured.contains("\u{1b}[7m") && coloured.contains("\u{1b}[32m"), "{coloured:?}");
        let mut plain = String::new();
        let mut is_escape = false;
        for character in coloured.chars() {
            match character {
                '\u{1b}' => is_escape = true,
                'm' if is_escape => is_escape = false,
                _ if is_escape => {}
                _ => plain.push(character),
            }
        }
        assert_eq!(plain, "<|start|>user0.5:  thinking A<|return|>");
    }

    #[test]
    fn a_table_has_a_token_on_each_line() {
        let table = table(&pieces(), Palette::plain());
        assert_eq!(table.lines().count(), 6);
        assert_eq!(table.lines().nth(2), Some("     2       7    0.5  \" think\""));
        assert_eq!(table.lines().next(), Some("     0       7      -  <|start|>"));
    }
}
