//! Generated ids back to messages, one id at a time.
//!
//! A model may write anything, and an untrained one does: nothing is refused here. What is no header becomes text, what
//! is no UTF-8 becomes U+FFFD.

use super::conversation::Channel;
use crate::tokenizer::{TextStream, Tokenizer, special};

/// A message that a model wrote.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParsedMessage {
    /// The role or tool name at the head, `assistant` for the first message of a completion.
    pub author: String,
    /// To whom it goes, such as `functions.search`.
    pub recipient: Option<String>,
    /// The channel's name, also when it is none that exists.
    pub channel: Option<String>,
    /// The format of the content, with the spelling `<|constrain|>` before a constrained one.
    pub content_type: Option<String>,
    /// The text.
    pub content: String,
    /// The token that ended it: `<|end|>`, `<|call|>`, `<|return|>`, `<|endoftext|>`; `None` when the ids ran out.
    pub end: Option<u32>,
}

impl ParsedMessage {
    /// The channel, when its name is one that exists.
    pub fn known_channel(&self) -> Option<Channel> {
        Channel::from_name(self.channel.as_deref()?)
    }
}

/// What one more id brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// Nothing to show: a piece of a header, or of a character.
    Nothing,
    /// A header is complete; [`StreamParser::current`] has its channel and recipient.
    Opened,
    /// More text of the current message.
    Text(String),
    /// The current message is done; it is the last of [`StreamParser::messages`].
    Closed,
}

/// Parses the ids that follow a prompt's `<|start|>assistant`.
#[derive(Debug, Clone)]
pub struct StreamParser {
    messages: Vec<ParsedMessage>,
    current: ParsedMessage,
    state: State,
    /// Ids of the header that is being read.
    header: Vec<u32>,
    stream: TextStream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a header; the author is still to be read when `names_author`.
    Header {
        names_author: bool,
    },
    Text,
    /// After a terminator.
    Between,
}

impl Default for StreamParser {
    fn default() -> StreamParser {
        StreamParser::new()
    }
}

impl StreamParser {
    /// A parser that stands behind `<|start|>assistant`.
    pub fn new() -> StreamParser {
        StreamParser {
            messages: Vec::new(),
            current: ParsedMessage { author: "assistant".to_owned(), ..ParsedMessage::default() },
            state: State::Header { names_author: false },
            header: Vec::new(),
            stream: TextStream::default(),
        }
    }

    /// Takes one id.
    pub fn push(&mut self, id: u32) -> StreamEvent {
        let is_terminator = matches!(id, special::END | special::CALL | special::RETURN | special::END_OF_TEXT);
        match self.state {
            _ if is_terminator => self.close(Some(id)),
            State::Between if id == special::START => {
                self.state = State::Header { names_author: true };
                StreamEvent::Nothing
            }
            // A message begins although the last one has not ended.
            State::Text if id == special::START => {
                self.close(None);
                self.state = State::Header { names_author: true };
                StreamEvent::Closed
            }
            State::Header { names_author } if id == special::MESSAGE => {
                self.read_header(names_author);
                self.state = State::Text;
                StreamEvent::Opened
            }
            State::Header { .. } => {
                self.header.push(id);
                StreamEvent::Nothing
            }
            State::Between => {
                self.state = State::Text;
                self.push_text(id)
            }
            State::Text => self.push_text(id),
        }
    }

    /// The message that is being written: its header once that is complete, and its text so far.
    pub fn current(&self) -> &ParsedMessage {
        &self.current
    }

    /// The messages that are done.
    pub fn messages(&self) -> &[ParsedMessage] {
        &self.messages
    }

    /// All messages, the unfinished last one too.
    pub fn finish(mut self) -> Vec<ParsedMessage> {
        if self.state == State::Text || !self.header.is_empty() {
            self.close(None);
        }
        self.messages
    }

    fn close(&mut self, end: Option<u32>) -> StreamEvent {
        if self.state == State::Between {
            return StreamEvent::Nothing;
        }
        // A header without `<|message|>`: show it as text rather than lose it.
        let stray = Tokenizer::o200k_harmony().decode(&std::mem::take(&mut self.header));
        self.current.content += &String::from_utf8_lossy(&stray);
        self.current.content += &self.stream.finish();
        self.current.end = end;
        self.messages.push(std::mem::take(&mut self.current));
        self.state = State::Between;
        StreamEvent::Closed
    }

    fn push_text(&mut self, id: u32) -> StreamEvent {
        let text = self.stream.push(&Tokenizer::o200k_harmony().decode(&[id]));
        if text.is_empty() {
            return StreamEvent::Nothing;
        }
        self.current.content += &text;
        StreamEvent::Text(text)
    }

    /// Reads `[author][ to=x][<|channel|>name[ to=x]][ type]`: the recipient may stand before or after the channel.
    fn read_header(&mut self, names_author: bool) {
        let ids = std::mem::take(&mut self.header);
        let text_of = |ids: &[u32]| String::from_utf8_lossy(&Tokenizer::o200k_harmony().decode(ids)).into_owned();
        let (rest, format) = split_at_special(&ids, special::CONSTRAIN);
        let (before, channel) = split_at_special(rest, special::CHANNEL);
        let before = text_of(before);
        let channel = channel.map(text_of).unwrap_or_default();
        let mut words = before.split_whitespace();
        if names_author {
            self.current.author = words.next().unwrap_or_default().to_owned();
        }
        let mut channel_words = channel.split_whitespace();
        self.current.channel = channel_words.next().map(str::to_owned);
        for word in words.chain(channel_words) {
            match word.strip_prefix("to=") {
                Some(recipient) => self.current.recipient = Some(recipient.to_owned()),
                None => self.current.content_type = Some(word.to_owned()),
            }
        }
        if let Some(format) = format {
            self.current.content_type = Some(format!("<|constrain|>{}", text_of(format).trim()));
        }
    }
}

/// The messages in `ids`, which follow a prompt's `<|start|>assistant`.
pub fn parse_completion(ids: &[u32]) -> Vec<ParsedMessage> {
    let mut parser = StreamParser::new();
    for &id in ids {
        parser.push(id);
    }
    parser.finish()
}

fn split_at_special(ids: &[u32], special: u32) -> (&[u32], Option<&[u32]>) {
    match ids.iter().position(|&id| id == special) {
        Some(index) => (&ids[..index], Some(&ids[index + 1..])),
        None => (ids, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harmony::{Conversation, Message, render_for_training};
    use proptest::prelude::*;

    fn completion(messages: Vec<Message>) -> Vec<u32> {
        render_for_training(&messages.into_iter().collect::<Conversation>()).ids[2..].to_vec()
    }

    #[test]
    fn channels_recipients_and_ends_come_back() {
        let ids = completion(vec![
            Message::assistant(Channel::Analysis, "H\u{e4}? \u{1f9d1}\u{200d}\u{1f680}"),
            Message::tool_call("functions.f", "{}"),
            Message::tool_result("functions.f", "ok"),
            Message::assistant(Channel::Final, ""),
        ]);
        let messages = parse_completion(&ids);
        assert_eq!(messages.len(), 4);
        assert_eq!(messages[0].known_channel(), Some(Channel::Analysis));
        assert_eq!(messages[0].content, "H\u{e4}? \u{1f9d1}\u{200d}\u{1f680}");
        assert_eq!(messages[1].recipient.as_deref(), Some("functions.f"));
        assert_eq!(messages[1].content_type.as_deref(), Some("<|constrain|>json"));
        assert_eq!(messages[1].end, Some(special::CALL));
        assert_eq!(messages[2].author, "functions.f");
        assert_eq!(messages[3].end, Some(special::RETURN));
    }

    #[test]
    fn a_recipient_after_the_channel_is_read_too() {
        let tokenizer = Tokenizer::o200k_harmony();
        let mut ids = vec![special::CHANNEL];
        ids.extend(tokenizer.encode_ordinary("commentary to=functions.f json"));
        ids.push(special::MESSAGE);
        let message = &parse_completion(&ids)[0];
        assert_eq!(message.known_channel(), Some(Channel::Commentary));
        assert_eq!(message.recipient.as_deref(), Some("functions.f"));
        assert_eq!(message.content_type.as_deref(), Some("json"));
        assert_eq!(message.end, None);
    }

    proptest! {
        #[test]
        fn streamed_text_joins_to_the_content(text in any::<String>()) {
            let ids = completion(vec![Message::assistant(Channel::Final, text.clone())]);
            let mut parser = StreamParser::new();
            let mut streamed = String::new();
            for id in ids {
                if let StreamEvent::Text(more) = parser.push(id) {
                    streamed += &more;
                }
            }
            prop_assert_eq!(&streamed, &text);
            prop_assert_eq!(&parser.messages()[0].content, &text);
        }

        #[test]
        fn no_ids_are_refused(ids in prop::collection::vec(prop_oneof![0_u32..300, 199_998_u32..200_020, any::<u32>()], 0..40)) {
            let mut parser = StreamParser::new();
            for id in ids {
                parser.push(id);
            }
            parser.finish();
        }
    }
}
