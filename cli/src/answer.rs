//! A model's answer while it comes, its channels told apart.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use ft_formats::harmony::{ParsedMessage, StreamEvent, StreamParser};
use ft_formats::tokenizer::special;
use ft_trainer::generation::{GenerateOptions, Generator};
use serde::Serialize;

use crate::arguments::ComputeDtype;
use crate::error::{Error, Result};
use crate::progress::ByteProgress;
use crate::terminal::{Palette, Terminal};

/// A complete answer.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    pub(crate) messages: Vec<AnswerMessage>,
    /// Why it ended.
    pub(crate) stop: Stop,
    pub(crate) prompt_tokens: usize,
    pub(crate) tokens: usize,
    pub(crate) seconds: f64,
}

/// One message of it.
#[derive(Debug, Serialize)]
pub(crate) struct AnswerMessage {
    pub(crate) channel: Option<String>,
    pub(crate) recipient: Option<String>,
    pub(crate) content: String,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stop {
    /// The model was done.
    Return,
    /// The model calls a tool.
    Call,
    /// The model ended the text.
    EndOfText,
    /// There was no room, or no leave, for more.
    MaxTokens,
}

/// Loads a model, with a bar.
pub(crate) fn open(model: &Path, adapter: Option<&Path>, dtype: ComputeDtype, terminal: &Terminal) -> Result<Generator> {
    let mut progress = ByteProgress::new(format!("reading {}", model.display()), terminal);
    Ok(Generator::open(model, adapter, dtype.into(), &mut |bytes, total| progress.advance(bytes, total))?)
}

/// Generates an answer, and prints it as it comes unless `is_silent`.
pub(crate) fn answer(
    generator: &Generator,
    prompt: &[u32],
    options: &GenerateOptions,
    is_silent: bool,
    terminal: &Terminal,
) -> Result<Answer> {
    let started = Instant::now();
    let mut speaker = Speaker::new(terminal.stdout.is_terminal, terminal.stdout.palette);
    let mut failure = None;
    let ids = generator.generate(prompt, options, &mut |id| {
        let text = speaker.push(id);
        if is_silent || text.is_empty() {
            return ControlFlow::Continue(());
        }
        match terminal.write(&text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failure {
        return Err::<Answer, Error>(error);
    }
    let (rest, messages) = speaker.finish();
    if !is_silent {
        terminal.write(&rest)?;
    }
    let stop = match ids.last() {
        Some(&special::RETURN) => Stop::Return,
        Some(&special::CALL) => Stop::Call,
        Some(&special::END_OF_TEXT) => Stop::EndOfText,
        _ => Stop::MaxTokens,
    };
    let messages = messages
        .into_iter()
        .map(|message| AnswerMessage { channel: message.channel, recipient: message.recipient, content: message.content })
        .collect();
    Ok(Answer { messages, stop, prompt_tokens: prompt.len(), tokens: ids.len(), seconds: started.elapsed().as_secs_f64() })
}

/// Turns ids into what is printed: on a terminal all but the final answer dim, with the channel above; elsewhere `[channel]` above
/// each message.
struct Speaker {
    parser: StreamParser,
    is_terminal: bool,
    palette: Palette,
    /// Bytes of the current message's text that are printed; `None` before its heading is.
    shown: Option<usize>,
    is_first: bool,
}

impl Speaker {
    fn new(is_terminal: bool, palette: Palette) -> Self {
        Self { parser: StreamParser::new(), is_terminal, palette, shown: None, is_first: true }
    }

    /// What one more id adds to the output.
    fn push(&mut self, id: u32) -> String {
        match self.parser.push(id) {
            StreamEvent::Nothing => String::new(),
            StreamEvent::Opened | StreamEvent::Text(_) => {
                let message = self.parser.current().clone();
                self.more(&message)
            }
            StreamEvent::Closed => match self.parser.messages().last().cloned() {
                Some(message) => self.close(&message),
                None => String::new(),
            },
        }
    }

    /// What is left to print when no more ids come, and all messages.
    fn finish(mut self) -> (String, Vec<ParsedMessage>) {
        let done = self.parser.messages().len();
        let messages = std::mem::take(&mut self.parser).finish();
        let rest = messages.get(done).map_or(String::new(), |message| self.close(message));
        (rest, messages)
    }

    fn close(&mut self, message: &ParsedMessage) -> String {
        let text = self.more(message);
        self.shown = None;
        text + "\n"
    }

    /// The heading of `message` unless it is printed, and its text beyond what is.
    fn more(&mut self, message: &ParsedMessage) -> String {
        let mut text = String::new();
        let shown = self.shown.unwrap_or_else(|| {
            text += &self.heading(message);
            0
        });
        let added = message.content.get(shown..).unwrap_or_default();
        text += &if is_final(message) { added.to_owned() } else { self.palette.dim(added) };
        self.shown = Some(message.content.len());
        text
    }

    fn heading(&mut self, message: &ParsedMessage) -> String {
        let gap = if std::mem::replace(&mut self.is_first, false) { "" } else { "\n" };
        let channel = message.channel.as_deref().unwrap_or("no channel");
        let recipient = message.recipient.as_ref().map_or(String::new(), |recipient| format!(" to={recipient}"));
        if !self.is_terminal {
            format!("{gap}[{channel}{recipient}]\n")
        } else if is_final(message) {
            gap.to_owned()
        } else {
            format!("{gap}{}\n", self.palette.dim(&self.palette.heading(&format!("{channel}{recipient}"))))
        }
    }
}

fn is_final(message: &ParsedMessage) -> bool {
    message.channel.as_deref() == Some("final")
}

#[cfg(test)]
mod tests {
    use ft_formats::harmony::{Channel, Conversation, Message, render_for_training};

    use super::*;

    fn spoken(messages: Vec<Message>, cut: usize, is_terminal: bool) -> String {
        let ids = render_for_training(&messages.into_iter().collect::<Conversation>()).ids;
        let mut speaker = Speaker::new(is_terminal, Palette::plain());
        let mut text: String = ids[2..ids.len() - cut].iter().map(|&id| speaker.push(id)).collect();
        text += &speaker.finish().0;
        text
    }

    fn messages() -> Vec<Message> {
        vec![
            Message::assistant(Channel::Analysis, "Think: \u{1f9d1}\u{200d}\u{1f680}."),
            Message::tool_call("functions.f", "{}"),
            Message::assistant(Channel::Final, "Done.\nReally."),
        ]
    }

    #[test]
    fn channels_stand_under_their_headings() {
        assert_eq!(
            spoken(messages(), 0, false),
            "[analysis]\nThink: \u{1f9d1}\u{200d}\u{1f680}.\n\n[commentary to=functions.f]\n{}\n\n[final]\nDone.\nReally.\n"
        );
        assert_eq!(
            spoken(messages(), 0, true),
            "analysis\nThink: \u{1f9d1}\u{200d}\u{1f680}.\n\ncommentary to=functions.f\n{}\n\nDone.\nReally.\n"
        );
    }

    #[test]
    fn an_answer_that_breaks_off_is_shown_as_far_as_it_came() {
        assert!(spoken(messages(), 1, false).ends_with("[final]\nDone.\nReally.\n"));
        assert!(spoken(vec![Message::assistant(Channel::Final, "A")], 3, false).starts_with("[no channel]\n"));
    }
}
