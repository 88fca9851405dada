//! `ft chat`: turn by turn.

use std::io::{self, BufRead, Write};

use clap::Args;
use ft_formats::harmony::{Channel, Conversation, Message, render_for_completion};

use super::generate::ModelArguments;
use crate::answer::{Answer, Stop, answer, open};
use crate::error::{Error, Result};
use crate::terminal::Terminal;

/// Talk with a model, turn by turn
///
/// A line is a message; an empty one is passed over. /new begins another conversation, /exit or the end of the input ends.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft chat models/nano --adapter runs/quickstart/adapter
  printf 'Hi\\nAnd now?\\n' | ft chat models/20b --temperature 0")]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
}

/// Model, then question and answer until the input ends.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let settings = &arguments.model;
    let generator = open(&settings.model, settings.adapter.as_deref(), settings.dtype, terminal)?;
    let mut history = vec![settings.system()];
    let mut lines = io::stdin().lock().lines();
    loop {
        ask(terminal);
        let Some(line) = lines.next().transpose().map_err(|source| Error::Input { source })? else { return Ok(()) };
        match line.trim() {
            "" => {}
            "/exit" => return Ok(()),
            "/new" => history.truncate(1),
            text => {
                history.push(Message::user(text));
                let conversation: Conversation = history.iter().cloned().collect();
                let prompt = render_for_completion(&conversation);
                let answer = answer(&generator, &prompt, &settings.options(), false, terminal)?;
                if answer.stop == Stop::MaxTokens {
                    terminal.warn(&format!("the answer breaks off after {} tokens; --max-tokens allows more", answer.tokens));
                }
                history.extend(kept(answer));
            }
        }
    }
}

fn ask(terminal: &Terminal) {
    if terminal.stderr.is_terminal {
        eprint!("{} ", terminal.stderr.palette.heading(">"));
        // The prompt is a courtesy: that it cannot be shown is no reason to stop.
        let _ = io::stderr().flush();
    }
}

/// What later turns see of an answer: all but its analysis, which is gone once the answer stands.
fn kept(answer: Answer) -> impl Iterator<Item = Message> {
    answer.messages.into_iter().filter_map(|message| {
        let channel = message.channel.as_deref().and_then(Channel::from_name).unwrap_or(Channel::Final);
        let text = Message { recipient: message.recipient, ..Message::assistant(channel, message.content) };
        (channel != Channel::Analysis).then_some(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::AnswerMessage;

    #[test]
    fn analysis_is_gone_in_later_turns() {
        let message = |channel: &str| AnswerMessage { channel: Some(channel.to_owned()), recipient: None, content: channel.to_owned() };
        let answer = Answer {
            messages: ["analysis", "commentary", "final"].map(message).into(),
            stop: Stop::Return,
            prompt_tokens: 1,
            tokens: 3,
            seconds: 0.1,
        };
        let channels: Vec<_> = kept(answer).map(|message| message.channel).collect();
        assert_eq!(channels, [Some(Channel::Commentary), Some(Channel::Final)]);
    }
}
