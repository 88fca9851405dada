//! Collects messages into a harmony conversation.

use ft_formats::harmony::{
    Channel, Content, Conversation, DeveloperContent, Message, ReasoningEffort, Role, SystemContent, ToolDefinition, ToolNamespace,
};

use super::tools;
use crate::data::conversation::Body;
use crate::data::error::{DataError, NameKind};
use crate::data::field::Field;

/// Namespaces that a tool's name may already carry.
const NAMESPACES: [&str; 4] = ["functions", "browser", "python", "container"];

/// A conversation in the making.
///
/// The system message is harmony's own. Instructions that come before any other message are joined into one developer
/// message, which also holds the tools; later ones stand where they are.
#[derive(Debug)]
pub(super) struct Builder {
    system: SystemContent,
    instructions: Vec<String>,
    tools: Vec<ToolDefinition>,
    messages: Vec<Message>,
    weights: Vec<f32>,
    calls: Vec<Call>,
    /// Messages that are only context (those of a prompt) are not trained.
    pub(super) is_context: bool,
}

/// A tool call that was made.
#[derive(Debug)]
struct Call {
    id: Option<String>,
    recipient: String,
    is_answered: bool,
}

impl Builder {
    pub(super) fn new() -> Builder {
        Builder {
            system: SystemContent::default(),
            instructions: Vec::new(),
            tools: Vec::new(),
            messages: Vec::new(),
            weights: Vec::new(),
            calls: Vec::new(),
            is_context: false,
        }
    }

    /// Reads what stands beside the messages: `reasoning`, `current_date`, `tools`,
    /// `system`.
    pub(super) fn read_settings(&mut self, line: &Field<'_>) -> Result<(), DataError> {
        let allowed = ReasoningEffort::ALL.map(ReasoningEffort::as_str);
        for key in ["reasoning", "reasoning_effort"] {
            if let Some(field) = line.get(key) {
                let effort = ReasoningEffort::from_name(field.string()?);
                self.system.reasoning_effort = Some(effort.ok_or_else(|| field.unknown_name(NameKind::ReasoningLevel, &allowed))?);
            }
        }
        for key in ["current_date", "conversation_start_date"] {
            if let Some(date) = line.get(key) {
                self.system.conversation_start_date = Some(date.string()?.to_owned());
            }
        }
        if let Some(field) = line.get("tools") {
            self.tools = tools::read(&field)?;
        }
        if let Some(system) = line.get("system") {
            self.push_instructions(system.string()?.to_owned());
        }
        Ok(())
    }

    /// Adds the text of a system or developer message.
    pub(super) fn push_instructions(&mut self, text: String) {
        if !self.messages.is_empty() {
            let content = DeveloperContent { instructions: Some(text), tools: Vec::new() };
            self.push(Message::developer(content), 1.0);
        } else if !text.is_empty() {
            self.instructions.push(text);
        }
    }

    /// Adds a message whose loss is multiplied by `weight`.
    pub(super) fn push(&mut self, message: Message, weight: f32) {
        if message.is_tool_call()
            && let Some(recipient) = &message.recipient
        {
            self.calls.push(Call { id: None, recipient: recipient.clone(), is_answered: false });
        }
        self.messages.push(message);
        self.weights.push(if self.is_context { 0.0 } else { weight });
    }

    /// Adds a message of the assistant with one text.
    pub(super) fn push_assistant(&mut self, channel: Channel, text: &str, weight: f32) {
        self.push(Message::assistant(channel, text), weight);
    }

    /// Adds a call of the tool `name`; `arguments` is JSON text.
    pub(super) fn push_call(&mut self, id: Option<&str>, name: &str, arguments: String, weight: f32) {
        self.push(Message::tool_call(qualified(name), arguments), weight);
        if let Some(call) = self.calls.last_mut() {
            call.id = id.map(str::to_owned);
        }
    }

    /// The full name of the tool whose result `field` is: that of the call with its `tool_call_id`, its `name`, or, when
    /// it has neither, the first call that has no result yet.
    pub(super) fn tool_name(&mut self, field: &Field<'_>) -> Result<String, DataError> {
        let name = field.get("name").map(|name| name.string().map(qualified)).transpose()?;
        let id = field.get("tool_call_id").map(|id| id.string()).transpose()?;
        let by_id = id.and_then(|id| self.calls.iter().rposition(|call| call.id.as_deref() == Some(id)));
        let open_call = |call: &Call| !call.is_answered && name.as_ref().is_none_or(|name| *name == call.recipient);
        let answered = match (by_id, id, &name) {
            (Some(index), _, _) => Some(index),
            (None, Some(id), None) => {
                let (place, at) = (field.place.clone(), field.at.clone());
                return Err(DataError::UnknownCall { place, at, id: id.to_owned() });
            }
            _ => self.calls.iter().position(open_call),
        };
        if let Some(index) = answered {
            self.calls[index].is_answered = true;
        }
        name.or_else(|| answered.map(|index| self.calls[index].recipient.clone()))
            .ok_or_else(|| DataError::ToolWithoutName { place: field.place.clone(), at: field.at.clone() })
    }

    pub(super) fn finish(self) -> Body {
        let mut messages = vec![Message::system(self.system)];
        if !self.instructions.is_empty() || !self.tools.is_empty() {
            let instructions = (!self.instructions.is_empty()).then(|| self.instructions.join("\n\n"));
            let tools = if self.tools.is_empty() { Vec::new() } else { vec![ToolNamespace::functions(self.tools)] };
            messages.push(Message::developer(DeveloperContent { instructions, tools }));
        }
        let mut message_weights = vec![1.0; messages.len()];
        messages.extend(self.messages);
        message_weights.extend(self.weights);
        Body::Conversation { conversation: Conversation { messages }, message_weights }
    }
}

/// A tool's name with its namespace, `functions` when it has none.
pub(super) fn qualified(name: &str) -> String {
    let namespace = name.split('.').next().unwrap_or(name);
    if NAMESPACES.contains(&namespace) && (name.contains('.') || name == "python") {
        name.to_owned()
    } else {
        format!("{}.{name}", ToolNamespace::FUNCTIONS)
    }
}

/// A message of `role` with one content piece for each text.
pub(super) fn message_of(role: Role, texts: Vec<String>) -> Message {
    Message { content: texts.into_iter().map(Content::Text).collect(), ..Message::text(role, "") }
}
