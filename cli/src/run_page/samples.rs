//! `samples.md`: the answers of a run to its prompts. Their text is the model's, and anything may stand in it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::page::escape::escape_lines;
use crate::units::whole;

/// Rounds that are shown at most: the first, and the latest.
const MOST_ROUNDS: usize = 12;

/// Bytes of a round that are shown.
const MOST_ROUND_BYTES: usize = 24_000;

/// Bytes of a line at most; a longer one is cut into several.
const MOST_LINE_BYTES: u64 = 64 << 10;

/// The answers at one step.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Round {
    step: u64,
    markdown: String,
    is_cut: bool,
}

/// What is shown of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Samples {
    first: Option<Round>,
    latest: VecDeque<Round>,
    count: usize,
}

impl Samples {
    /// Reads the file; one that is not there holds nothing.
    ///
    /// # Errors
    /// When the system fails to read a file that is there.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let mut reader = match File::open(path) {
            Ok(file) => BufReader::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut samples = Self::default();
        let mut bytes = Vec::new();
        let (mut is_fenced, mut is_closing) = (false, false);
        loop {
            bytes.clear();
            if (&mut reader).take(MOST_LINE_BYTES).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(samples);
            }
            let line = String::from_utf8_lossy(&bytes);
            let step = line.strip_prefix("## Step ").and_then(|step| step.trim().parse().ok());
            match step {
                // An answer may hold such a line too.
                Some(step) if !is_fenced => samples.begin(step),
                _ => samples.push(&line),
            }
            // A fence that an answer holds is followed by more of it, the one that ends it by an empty line.
            match line.trim_end() {
                "```text" if !is_fenced => is_fenced = true,
                "" if is_closing => is_fenced = false,
                _ => {}
            }
            is_closing = is_fenced && line.trim_end() == "```";
        }
    }

    fn begin(&mut self, step: u64) {
        if self.latest.len() == MOST_ROUNDS {
            let oldest = self.latest.pop_front();
            self.first = self.first.take().or(oldest);
        }
        self.count += 1;
        self.latest.push_back(Round { step, markdown: String::new(), is_cut: false });
    }

    fn push(&mut self, line: &str) {
        let Some(round) = self.latest.back_mut() else { return };
        if round.markdown.len() + line.len() > MOST_ROUND_BYTES {
            round.is_cut = true;
        } else {
            round.markdown += line;
        }
    }

    /// The rounds, the latest first and open; nothing where there are none.
    pub(super) fn draw(&self) -> Option<String> {
        if self.latest.is_empty() {
            return None;
        }
        let rounds = self.latest.iter().rev().chain(&self.first);
        let mut text: String = rounds.enumerate().map(|(index, round)| round.draw(index == 0)).collect();
        let shown = self.latest.len() + usize::from(self.first.is_some());
        if shown < self.count {
            text += &format!(
                "<p class=\"note\">{} more rounds of answers are in <code>samples.md</code>.</p>\n",
                whole((self.count - shown) as u64)
            );
        }
        Some(text)
    }
}

impl Round {
    fn draw(&self, is_open: bool) -> String {
        let open = if is_open { " open" } else { "" };
        let mut text = format!("<details class=\"round\"{open}><summary>After step {}</summary>\n", whole(self.step));
        for Exchange { prompt, answer } in exchanges(&self.markdown) {
            if !prompt.is_empty() {
                text += &format!(
                    "<div class=\"message user\"><p class=\"role\">prompt</p><div class=\"text\">{}</div></div>\n",
                    escape_lines(&prompt)
                );
            }
            for message in messages(&answer) {
                text += &message.draw();
            }
        }
        if self.is_cut {
            text += "<p class=\"note\">The rest is in <code>samples.md</code>.</p>\n";
        }
        text + "</details>\n"
    }
}

struct Exchange {
    prompt: String,
    answer: String,
}

/// Prompts in bold, each before its answer between fences. What does not look so is still shown.
fn exchanges(markdown: &str) -> Vec<Exchange> {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut prompt = String::new();
    let mut is_fenced = false;
    let lines: Vec<&str> = markdown.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        if !is_fenced && *line == "```text" {
            is_fenced = true;
            let prompt = std::mem::take(&mut prompt);
            let prompt = prompt.trim();
            let bare = prompt.strip_prefix("**").and_then(|prompt| prompt.strip_suffix("**")).unwrap_or(prompt);
            exchanges.push(Exchange { prompt: bare.to_owned(), answer: String::new() });
        // A fence in the answer itself is followed by more of it: the one that ends it, by an empty line and a prompt or nothing.
        } else if is_fenced && *line == "```" && ends_here(&lines[index + 1..]) {
            is_fenced = false;
        } else {
            let text = if is_fenced { exchanges.last_mut().map(|exchange| &mut exchange.answer) } else { Some(&mut prompt) };
            if let Some(text) = text {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    if !prompt.trim().is_empty() {
        exchanges.push(Exchange { prompt: prompt.trim().to_owned(), answer: String::new() });
    }
    exchanges
}

fn ends_here(rest: &[&str]) -> bool {
    match rest {
        [] | [""] => true,
        ["", next, ..] => next.starts_with("**") || rest.iter().all(|line| line.is_empty()),
        _ => false,
    }
}

/// A message of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Message<'a> {
    /// `analysis`, `commentary to functions.f`, or nothing where the answer names none.
    channel: String,
    text: &'a str,
    /// The special token at its end, if it came to one.
    end: Option<&'a str>,
}

const MESSAGE: &str = "<|message|>";
const CHANNEL: &str = "<|channel|>";
const ENDS: [&str; 4] = ["<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"];

/// The messages of an answer in harmony. An answer that is none is one message.
///
/// Source: the harmony format, <https://cookbook.openai.com/articles/openai-harmony>, "Message format".
fn messages(answer: &str) -> Vec<Message<'_>> {
    let mut messages = Vec::new();
    let mut rest = answer.trim_end_matches('\n');
    while !rest.is_empty() {
        let found = ENDS.iter().filter_map(|end| rest.find(end).map(|at| (at, *end))).min();
        let (piece, end, next) = match found {
            Some((at, end)) => (&rest[..at], Some(end), &rest[at + end.len()..]),
            None => (rest, None, ""),
        };
        // Without a head, or with one that is not finished, all of it is text.
        let (channel, text) = match piece.split_once(MESSAGE) {
            Some((head, text)) => (channel_of(head), text),
            None => (String::new(), piece),
        };
        if !text.trim().is_empty() || end.is_some() {
            messages.push(Message { channel, text, end });
        }
        rest = next;
    }
    messages
}

/// `<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json` as `commentary to functions.f`.
fn channel_of(head: &str) -> String {
    let (before, after) = head.split_once(CHANNEL).unwrap_or((head, ""));
    let after = after.split("<|").next().unwrap_or_default();
    let channel = after.split_whitespace().next().filter(|word| !word.starts_with("to=")).unwrap_or_default();
    let recipient = [before, after].iter().flat_map(|part| part.split_whitespace()).find_map(|word| word.strip_prefix("to="));
    match recipient {
        Some(recipient) => format!("{channel} to {recipient}").trim().to_owned(),
        None => channel.to_owned(),
    }
}

impl Message<'_> {
    fn draw(&self) -> String {
        let class = match self.channel.split(' ').next() {
            Some("analysis") => " analysis",
            Some("commentary") => " commentary",
            Some("final") => " final",
            _ => "",
        };
        let name = if self.channel.is_empty() { "answer".to_owned() } else { escape_lines(&self.channel) };
        let end = self.end.map_or("<span class=\"quiet\">cut off</span>".to_owned(), |end| format!("<code>{}</code>", escape_lines(end)));
        format!(
            "<div class=\"message{class}\"><p class=\"role\">{name} {end}</p><div class=\"text\">{}</div></div>\n",
            escape_lines(self.text.trim_matches('\n'))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(text: &str) -> Samples {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.md");
        std::fs::write(&path, text).unwrap();
        Samples::read(&path).unwrap()
    }

    #[test]
    fn channels_are_told_apart() {
        let answer = "<|channel|>analysis<|message|>Sum.<|end|><|start|>assistant<|channel|>commentary to=functions.add \
                      <|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>4";
        let found = messages(answer);
        let channels: Vec<&str> = found.iter().map(|message| message.channel.as_str()).collect();
        assert_eq!(channels, ["analysis", "commentary to functions.add", "final"]);
        assert_eq!(found.iter().map(|message| message.text).collect::<Vec<_>>(), ["Sum.", "{}", "4"]);
        assert_eq!(found.iter().map(|message| message.end).collect::<Vec<_>>(), [Some("<|end|>"), Some("<|call|>"), None]);
        assert_eq!(messages("no harmony at all"), [Message { channel: String::new(), text: "no harmony at all", end: None }]);
    }

    #[test]
    fn answers_with_fences_and_headings_of_their_own_stay_whole() {
        let samples = samples(
            "## Step 5\n\n**Show me code**\n\n```text\nHere:\n```\nlet x = 1;\n```\n## Step 9\ndone\n```\n\n**Next**\n\n```text\nok\n```\n\n",
        );
        assert_eq!((samples.count, samples.latest[0].step), (1, 5));
        let found = exchanges(&samples.latest[0].markdown);
        assert_eq!(found.iter().map(|exchange| exchange.prompt.as_str()).collect::<Vec<_>>(), ["Show me code", "Next"]);
        assert!(found[0].answer.contains("let x = 1;") && found[0].answer.contains("## Step 9"), "{}", found[0].answer);
        assert_eq!(found[1].answer, "ok\n");
    }

    #[test]
    fn nothing_in_an_answer_reaches_the_page_as_markup() {
        let text = "## Step 1\n\n**<b>\"'&**\n\n```text\n</script><script>alert(1)</script>\u{0}\u{1b}[31m\u{202e}evil\u{2066}\n```\n\n";
        let drawn = samples(text).draw().unwrap();
        for forbidden in ["<script", "</script", "<b>", "\u{0}", "\u{1b}", "\u{202e}", "\u{2066}"] {
            assert!(!drawn.contains(forbidden), "{forbidden:?} in {drawn}");
        }
        assert!(drawn.contains("&lt;/script&gt;&lt;script&gt;alert(1)"), "{drawn}");
    }

    #[test]
    fn a_long_run_shows_its_first_and_its_latest_answers() {
        let text: String = (1..=40).map(|step| format!("## Step {step}\n\n**Q**\n\n```text\nanswer {step}\n```\n\n")).collect();
        let drawn = samples(&text).draw().unwrap();
        let place = |words: &str| drawn.find(words).unwrap_or_else(|| panic!("no {words}"));
        assert!(place("After step 40<") < place("After step 39<") && place("After step 29<") < place("After step 1<"));
        assert!(!drawn.contains("After step 28<"));
        assert!(drawn.contains("27 more rounds"));
        assert_eq!(drawn.matches("<details class=\"round\" open>").count(), 1);
        assert!(samples("").draw().is_none());
    }

    #[test]
    fn an_endless_answer_is_cut() {
        let text = format!("## Step 1\n\n**Q**\n\n```text\n{}\n```\n\n", "x".repeat(3_000_000));
        let drawn = samples(&text).draw().unwrap();
        assert!(drawn.len() < 3 * MOST_ROUND_BYTES && drawn.contains("The rest is in"), "{} bytes", drawn.len());
    }
}
