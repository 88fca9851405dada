//! Harmony, the conversation format of gpt-oss: messages to token ids, and generated ids back to messages.
//!
//! [`render`] goes message by message and remembers where each one's opening, header, text and terminator lie, so that
//! a trainer can weigh every token by its message and channel. The ids equal those of openai-harmony 0.0.8 with
//! `auto_drop_analysis` off: nothing is ever dropped here, what a conversation shows is the caller's decision.
//!
//! One message is
//! `<|start|>{role}[:{name}][ to={recipient}][<|channel|>{channel}][ {content type}]<|message|>{content}{end}`.
//! Source: openai/harmony `docs/format.md` and `src/encoding.rs`.

mod content;
mod conversation;
mod json;
mod parse;
mod render;
mod typescript;

pub use content::{DeveloperContent, SystemContent, ToolDefinition, ToolNamespace};
pub use conversation::{Channel, Content, Conversation, Message, ReasoningEffort, Role};
pub use json::json_text;
pub use parse::{ParsedMessage, StreamEvent, StreamParser, parse_completion};
pub use render::{MessageSpan, Rendered, render, render_for_completion, render_for_training};
