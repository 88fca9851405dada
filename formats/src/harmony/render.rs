//! Conversation to token ids, with the place of every message's parts.

use std::ops::Range;

use super::conversation::{Channel, Content, Conversation, Message, Role};
use crate::tokenizer::{Tokenizer, special};

/// The spelling at the head of a content type that becomes the special token.
const CONSTRAIN: &str = "<|constrain|>";

/// Token ids, and where each message lies in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The ids.
    pub ids: Vec<u32>,
    /// One span for each message, in order; they cover the ids of all messages without a gap.
    pub spans: Vec<MessageSpan>,
}

/// Where the parts of one message lie: `opening`, `header`, `text` and `end` follow one another without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageSpan {
    /// `<|start|>` and the role (for a tool, its name). For the assistant this is what a prompt ends with.
    pub opening: Range<usize>,
    /// The rest of the header: name, recipient, channel and content type, up to and with `<|message|>`.
    pub header: Range<usize>,
    /// The content.
    pub text: Range<usize>,
    /// The terminator: `<|end|>`, `<|call|>` or `<|return|>`, one token.
    pub end: Range<usize>,
}

impl MessageSpan {
    /// The whole message.
    pub fn all(&self) -> Range<usize> {
        self.opening.start..self.end.end
    }
}

impl Rendered {
    /// The ids as text, special tokens spelled out.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&Tokenizer::o200k_harmony().decode(&self.ids)).into_owned()
    }
}

/// Renders `conversation` as it stands: assistant messages end in `<|call|>` when they have a recipient, all others
/// in `<|end|>`.
pub fn render(conversation: &Conversation) -> Rendered {
    let has_function_tools = conversation.has_function_tools();
    let mut rendered = Rendered::default();
    for message in &conversation.messages {
        render_message(message, has_function_tools, &mut rendered);
    }
    rendered
}

/// The same, with `<|return|>` in the place of `<|end|>` when the last message is the assistant's on `final`: what the
/// model itself writes when it is done.
pub fn render_for_training(conversation: &Conversation) -> Rendered {
    let mut rendered = render(conversation);
    if let Some(last) = conversation.messages.last()
        && last.role == Role::Assistant
        && last.channel == Some(Channel::Final)
        && let Some(id) = rendered.ids.last_mut()
    {
        *id = special::RETURN;
    }
    rendered
}

/// The ids of the conversation and of `<|start|>assistant`: the prompt of the assistant's next message.
pub fn render_for_completion(conversation: &Conversation) -> Vec<u32> {
    let mut ids = render(conversation).ids;
    ids.push(special::START);
    Tokenizer::o200k_harmony().encode_ordinary_into(Role::Assistant.as_str(), &mut ids);
    ids
}

fn render_message(message: &Message, has_function_tools: bool, rendered: &mut Rendered) {
    let tokenizer = Tokenizer::o200k_harmony();
    let ids = &mut rendered.ids;
    // The pieces of a header are encoded one by one, as openai-harmony does: joined, they could merge differently.
    let opening_start = ids.len();
    ids.push(special::START);
    let (author, suffix) = match (message.role, &message.name) {
        (Role::Tool, Some(name)) => (name.as_str(), None),
        (role, name) => (role.as_str(), name.as_ref()),
    };
    tokenizer.encode_ordinary_into(author, ids);
    let header_start = ids.len();
    if let Some(name) = suffix {
        tokenizer.encode_ordinary_into(&format!(":{name}"), ids);
    }
    if let Some(recipient) = message.recipient.as_ref().filter(|recipient| *recipient != "all") {
        tokenizer.encode_ordinary_into(&format!(" to={recipient}"), ids);
    }
    if let Some(channel) = message.channel {
        ids.push(special::CHANNEL);
        tokenizer.encode_ordinary_into(channel.as_str(), ids);
    }
    if let Some(content_type) = &message.content_type {
        if let Some(format) = content_type.strip_prefix(CONSTRAIN) {
            tokenizer.encode_ordinary_into(" ", ids);
            ids.push(special::CONSTRAIN);
            tokenizer.encode_ordinary_into(format, ids);
        } else {
            tokenizer.encode_ordinary_into(&format!(" {content_type}"), ids);
        }
    }
    ids.push(special::MESSAGE);
    let text_start = ids.len();
    for content in &message.content {
        match content {
            Content::Text(text) => tokenizer.encode_ordinary_into(text, ids),
            Content::System(system) => tokenizer.encode_ordinary_into(&system.text(has_function_tools), ids),
            Content::Developer(developer) => tokenizer.encode_ordinary_into(&developer.text(), ids),
        };
    }
    let end_start = ids.len();
    ids.push(if message.is_tool_call() { special::CALL } else { special::END });
    rendered.spans.push(MessageSpan {
        opening: opening_start..header_start,
        header: header_start..text_start,
        text: text_start..end_start,
        end: end_start..end_start + 1,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harmony::SystemContent;

    fn conversation() -> Conversation {
        [
            Message::system(SystemContent::default()),
            Message::user("What is 2 + 2?<|end|>"),
            Message::assistant(Channel::Analysis, "Easy."),
            Message::tool_call("functions.add", "{\"a\":2}"),
            Message::tool_result("functions.add", "4"),
            Message::assistant(Channel::Final, "4"),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn a_tool_call_names_recipient_channel_and_format() {
        let text = render_for_training(&conversation()).text();
        let expected = "<|start|>assistant to=functions.add<|channel|>commentary <|constrain|>json<|message|>{\"a\":2}\
                        <|call|><|start|>functions.add to=assistant<|channel|>commentary<|message|>4<|end|><|start|>\
                        assistant<|channel|>final<|message|>4<|return|>";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn spans_cover_the_ids_without_a_gap() {
        let rendered = render(&conversation());
        let mut position = 0;
        for span in &rendered.spans {
            assert_eq!(span.opening.start, position);
            assert_eq!(span.opening.end, span.header.start);
            assert_eq!(span.header.end, span.text.start);
            assert_eq!(span.text.end, span.end.start);
            assert_eq!(rendered.ids[span.opening.start], special::START);
            assert_eq!(rendered.ids[span.header.end - 1], special::MESSAGE);
            position = span.all().end;
        }
        assert_eq!(position, rendered.ids.len());
    }

    #[test]
    fn a_prompt_ends_where_the_assistant_begins() {
        let ids = render_for_completion(&conversation());
        assert_eq!(ids[ids.len() - 2..], [special::START, 173_781]);
    }

    #[test]
    fn only_a_last_final_message_returns() {
        let mut conversation = conversation();
        conversation.messages.pop();
        assert_eq!(render_for_training(&conversation).ids.last(), Some(&special::END));
        conversation.messages.pop();
        assert_eq!(render_for_training(&conversation).ids.last(), Some(&special::CALL));
    }
}
