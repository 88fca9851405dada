//! The parts of a conversation: roles, channels, messages.

use serde::{Deserialize, Serialize};

use super::content::{DeveloperContent, SystemContent};

/// Who wrote a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The fixed first message: identity, reasoning level, channels.
    System,
    /// The developer: instructions and tools.
    Developer,
    /// The person asking.
    User,
    /// The model.
    Assistant,
    /// A tool, which stands under its own name.
    Tool,
}

impl Role {
    /// All roles, as a reader of conversations may meet them.
    pub const ALL: [Role; 5] = [Role::System, Role::Developer, Role::User, Role::Assistant, Role::Tool];

    /// The name in the format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The role of that name, when there is one.
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.as_str() == name)
    }
}

/// What an assistant's message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// The chain of thought.
    Analysis,
    /// Tool calls, their results, and words to the user before them.
    Commentary,
    /// The answer.
    Final,
}

impl Channel {
    /// All channels, in the order of the system message.
    pub const ALL: [Channel; 3] = [Channel::Analysis, Channel::Commentary, Channel::Final];

    /// The name in the format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Channel::Analysis => "analysis",
            Channel::Commentary => "commentary",
            Channel::Final => "final",
        }
    }

    /// The channel of that name, when there is one.
    pub fn from_name(name: &str) -> Option<Channel> {
        Channel::ALL.into_iter().find(|channel| channel.as_str() == name)
    }
}

/// How much the model should think, as the system message says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningEffort {
    /// `Reasoning: low`
    Low,
    /// `Reasoning: medium`
    #[default]
    Medium,
    /// `Reasoning: high`
    High,
}

impl ReasoningEffort {
    /// All levels, from little to much.
    pub const ALL: [ReasoningEffort; 3] = [ReasoningEffort::Low, ReasoningEffort::Medium, ReasoningEffort::High];

    /// The name in the format.
    pub const fn as_str(self) -> &'static str {
        match self {
            ReasoningEffort::Low => "low",
            ReasoningEffort::Medium => "medium",
            ReasoningEffort::High => "high",
        }
    }

    /// The level of that name, when there is one.
    pub fn from_name(name: &str) -> Option<ReasoningEffort> {
        ReasoningEffort::ALL.into_iter().find(|effort| effort.as_str() == name)
    }
}

/// One piece of a message's content.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Text as it stands; each piece is encoded by itself.
    Text(String),
    /// The system message's sections.
    System(SystemContent),
    /// The developer message's sections.
    Developer(DeveloperContent),
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who wrote it.
    pub role: Role,
    /// For a tool, its name, such as `functions.search`, which stands in the place of the role; for others an optional
    /// name after the role.
    pub name: Option<String>,
    /// To whom it goes: the tool that is called, or `assistant` for a tool's result. `all` is the same as nothing in the
    /// header, but still makes an assistant's message end in `<|call|>`, as in openai-harmony.
    pub recipient: Option<String>,
    /// The channel; without one the header names none.
    pub channel: Option<Channel>,
    /// The format of the content. A leading `<|constrain|>` becomes the special token.
    pub content_type: Option<String>,
    /// The content, piece by piece.
    pub content: Vec<Content>,
}

impl Message {
    /// A message of `role` with one text, and nothing else in its header.
    pub fn text(role: Role, text: impl Into<String>) -> Message {
        Message::with_content(role, Content::Text(text.into()))
    }

    /// The system message.
    pub fn system(content: SystemContent) -> Message {
        Message::with_content(Role::System, Content::System(content))
    }

    /// A developer message.
    pub fn developer(content: DeveloperContent) -> Message {
        Message::with_content(Role::Developer, Content::Developer(content))
    }

    /// A user's message.
    pub fn user(text: impl Into<String>) -> Message {
        Message::text(Role::User, text)
    }

    /// An assistant's message on `channel`.
    pub fn assistant(channel: Channel, text: impl Into<String>) -> Message {
        Message { channel: Some(channel), ..Message::text(Role::Assistant, text) }
    }

    /// A call of the tool `recipient` (with its namespace, as in `functions.search`) with `arguments` as JSON text.
    pub fn tool_call(recipient: impl Into<String>, arguments: impl Into<String>) -> Message {
        Message {
            recipient: Some(recipient.into()),
            content_type: Some("<|constrain|>json".to_owned()),
            ..Message::assistant(Channel::Commentary, arguments)
        }
    }

    /// The result that the tool `name` (with its namespace) gives to the assistant.
    pub fn tool_result(name: impl Into<String>, text: impl Into<String>) -> Message {
        Message {
            name: Some(name.into()),
            recipient: Some(Role::Assistant.as_str().to_owned()),
            channel: Some(Channel::Commentary),
            ..Message::text(Role::Tool, text)
        }
    }

    fn with_content(role: Role, content: Content) -> Message {
        Message { role, name: None, recipient: None, channel: None, content_type: None, content: vec![content] }
    }

    /// Whether the message calls a tool, and so ends in `<|call|>`.
    pub fn is_tool_call(&self) -> bool {
        self.role == Role::Assistant && self.recipient.is_some()
    }
}

/// Messages in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// Whether a developer message offers tools in the `functions` namespace, which the system message then mentions.
    pub(super) fn has_function_tools(&self) -> bool {
        self.messages.iter().flat_map(|message| &message.content).any(|content| match content {
            Content::Developer(developer) => developer.has_function_tools(),
            Content::Text(_) | Content::System(_) => false,
        })
    }
}

impl FromIterator<Message> for Conversation {
    fn from_iter<I: IntoIterator<Item = Message>>(messages: I) -> Conversation {
        Conversation { messages: messages.into_iter().collect() }
    }
}
