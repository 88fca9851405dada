//! The split of text by hand where it is ASCII, as nearly all of it is: the pattern's automaton takes most of the time of tokenizing.

/// What the pattern tells apart in ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Neither blank, nor letter, nor digit.
    Mark,
    Upper,
    Lower,
    Digit,
    /// Blank, but no line break.
    Blank,
    Break,
    /// The end of the text.
    End,
    /// Part of a character beyond ASCII, which could be anything.
    Beyond,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Beyond; 256];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'A'..=b'Z' => Class::Upper,
            b'a'..=b'z' => Class::Lower,
            b'0'..=b'9' => Class::Digit,
            b'\r' | b'\n' => Class::Break,
            b' ' | b'\t' | 0x0b | 0x0c => Class::Blank,
            _ => Class::Mark,
        };
        byte += 1;
    }
    classes
};

/// Where the piece that begins at `start` ends; `None` where a character beyond ASCII could be part of it.
///
/// The alternatives of the pattern in their order, with their backtracking worked out: in ASCII no letter is both of a word's head and of
/// its tail, so that a run of capitals, then of small letters, is found going forward.
pub(super) fn piece_end(text: &[u8], start: usize) -> Option<usize> {
    let class = |index: usize| text.get(index).map_or(Class::End, |&byte| CLASSES[byte as usize]);
    let run = |mut index: usize, of: Class| {
        while class(index) == of {
            index += 1;
        }
        index
    };
    let first = class(start);
    let word = match first {
        Class::Beyond | Class::End => return None,
        Class::Blank | Class::Mark => start + 1,
        _ => start,
    };
    // An optional mark or blank, capitals, small letters.
    let capitals = run(word, Class::Upper);
    let letters = run(capitals, Class::Lower);
    if class(letters) == Class::Beyond {
        return None;
    }
    if letters > word {
        return contraction_end(text, letters);
    }
    let end = match first {
        Class::Digit => {
            let digits = (start..start + 3).take_while(|&index| class(index) == Class::Digit).count();
            start + digits
        }
        // A blank that is no space cannot stand before marks.
        Class::Mark => marks_end(text, run(start, Class::Mark)),
        Class::Blank if text[start] == b' ' && class(start + 1) == Class::Mark => marks_end(text, run(start + 1, Class::Mark)),
        _ => return blanks_end(start, class),
    };
    // More marks or digits could follow.
    let may_go_on = match first {
        Class::Digit => end < start + 3,
        _ => class(end - 1) == Class::Mark,
    };
    if may_go_on && class(end) == Class::Beyond { None } else { Some(end) }
}

/// Behind the line breaks and slashes that follow marks.
fn marks_end(text: &[u8], mut index: usize) -> usize {
    while matches!(text.get(index), Some(b'\r' | b'\n' | b'/')) {
        index += 1;
    }
    index
}

/// Blanks up to the last line break among them; without one all of them, less the last where something follows that may take it.
fn blanks_end(start: usize, class: impl Fn(usize) -> Class) -> Option<usize> {
    let (mut end, mut after_break) = (start, None);
    loop {
        match class(end) {
            Class::Blank => {}
            Class::Break => after_break = Some(end + 1),
            Class::Beyond => return None,
            Class::End => return Some(after_break.unwrap_or(end)),
            _ => return Some(after_break.unwrap_or((end - 1).max(start + 1))),
        }
        end += 1;
    }
}

/// `letters`, or behind an English contraction that follows there.
fn contraction_end(text: &[u8], letters: usize) -> Option<usize> {
    if text.get(letters) != Some(&b'\'') {
        return Some(letters);
    }
    let letter = |index: usize| text.get(index).map_or(0, u8::to_ascii_lowercase);
    match (letter(letters + 1), letter(letters + 2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(letters + 2),
        (b'r' | b'v', b'e') | (b'l', b'l') => Some(letters + 3),
        // The long s is an s in another case.
        (128.., _) => None,
        _ => Some(letters),
    }
}
