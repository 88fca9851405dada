//! What stands in a system message and in a developer message.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::conversation::{Channel, ReasoningEffort};
use super::typescript;

/// The first line of the system message. Source: openai/harmony `src/chat.rs`, `SystemContent::default`.
const MODEL_IDENTITY: &str = "You are ChatGPT, a large language model trained by OpenAI.";
/// Source: openai/harmony `src/chat.rs`, `SystemContent::default`.
const KNOWLEDGE_CUTOFF: &str = "2024-06";

/// The sections of a system message; an absent part is left out of the text.
#[derive(Debug, Clone, PartialEq)]
pub struct SystemContent {
    /// The first line.
    pub model_identity: Option<String>,
    /// `Knowledge cutoff: ...`
    pub knowledge_cutoff: Option<String>,
    /// `Current date: ...`, as year-month-day. Nothing is put in from the clock: a run must not depend on the day.
    pub conversation_start_date: Option<String>,
    /// `Reasoning: ...`
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Built-in tools, by namespace.
    pub tools: Vec<ToolNamespace>,
    /// `# Valid channels: ...`; none leaves the section out.
    pub valid_channels: Vec<Channel>,
    /// Adds that each message must name its channel.
    pub channel_required: bool,
}

impl Default for SystemContent {
    fn default() -> SystemContent {
        SystemContent {
            model_identity: Some(MODEL_IDENTITY.to_owned()),
            knowledge_cutoff: Some(KNOWLEDGE_CUTOFF.to_owned()),
            conversation_start_date: None,
            reasoning_effort: Some(ReasoningEffort::default()),
            tools: Vec::new(),
            valid_channels: Channel::ALL.to_vec(),
            channel_required: true,
        }
    }
}

impl SystemContent {
    /// The text of the message; `has_function_tools` tells whether a developer message offers functions.
    pub(super) fn text(&self, has_function_tools: bool) -> String {
        let mut sections = Vec::new();
        let top: Vec<String> = [
            self.model_identity.clone(),
            self.knowledge_cutoff.as_ref().map(|cutoff| format!("Knowledge cutoff: {cutoff}")),
            self.conversation_start_date.as_ref().map(|date| format!("Current date: {date}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !top.is_empty() {
            sections.push(top.join("\n"));
        }
        if let Some(effort) = self.reasoning_effort {
            sections.push(format!("Reasoning: {}", effort.as_str()));
        }
        sections.extend(tools_section(&self.tools));
        if !self.valid_channels.is_empty() {
            let names: Vec<&str> = self.valid_channels.iter().map(|channel| channel.as_str()).collect();
            let mut section = format!("# Valid channels: {}.", names.join(", "));
            if self.channel_required {
                section.push_str(" Channel must be included for every message.");
            }
            if has_function_tools {
                section.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
            }
            sections.push(section);
        }
        sections.join("\n\n")
    }
}

/// The sections of a developer message.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeveloperContent {
    /// `# Instructions` and this text.
    pub instructions: Option<String>,
    /// The tools on offer, by namespace; `functions` is the one for a developer's own.
    pub tools: Vec<ToolNamespace>,
}

impl DeveloperContent {
    pub(super) fn has_function_tools(&self) -> bool {
        // The last namespace of a name is the one that stands.
        let functions = self.tools.iter().rev().find(|namespace| namespace.name == ToolNamespace::FUNCTIONS);
        functions.is_some_and(|namespace| !namespace.tools.is_empty())
    }

    pub(super) fn text(&self) -> String {
        let instructions = self.instructions.as_ref().map(|text| format!("# Instructions\n\n{text}"));
        let sections: Vec<String> = instructions.into_iter().chain(tools_section(&self.tools)).collect();
        sections.join("\n\n")
    }
}

/// Tools under one name.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolNamespace {
    /// The name before the dot of a call's recipient.
    pub name: String,
    /// What the namespace is for.
    pub description: Option<String>,
    /// Its tools; a namespace without tools shows its description alone.
    pub tools: Vec<ToolDefinition>,
}

impl ToolNamespace {
    /// The namespace of a developer's functions.
    pub const FUNCTIONS: &str = "functions";

    /// The `functions` namespace with `tools`.
    pub fn functions(tools: Vec<ToolDefinition>) -> ToolNamespace {
        ToolNamespace { name: ToolNamespace::FUNCTIONS.to_owned(), description: None, tools }
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("## {}\n", self.name)];
        let prefix = if self.tools.is_empty() { "" } else { "// " };
        lines.extend(self.description.iter().flat_map(|text| text.lines()).map(|line| format!("{prefix}{line}")));
        if !self.tools.is_empty() {
            lines.push(format!("namespace {} {{\n", self.name));
            for tool in &self.tools {
                lines.extend(tool.description.lines().map(|line| format!("// {line}")));
                lines.push(tool.declaration());
            }
            lines.push(format!("}} // namespace {}", self.name));
        }
        lines.join("\n")
    }
}

/// One function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolDefinition {
    /// The name without its namespace.
    pub name: String,
    /// What it does; empty for nothing.
    pub description: String,
    /// JSON schema of the arguments; `None` for a function that takes none.
    pub parameters: Option<Value>,
}

impl ToolDefinition {
    fn declaration(&self) -> String {
        let mut text = format!("type {} = (", self.name);
        if let Some(schema) = &self.parameters {
            // Writing to a string does not fail.
            let _ = write!(text, "_: {}", typescript::type_text(schema, ""));
        }
        text.push_str(") => any;\n");
        text
    }
}

/// `# Tools` and the namespaces in the order of their names; `None` when there is no namespace.
fn tools_section(namespaces: &[ToolNamespace]) -> Option<String> {
    let by_name: BTreeMap<&str, &ToolNamespace> = namespaces.iter().map(|namespace| (namespace.name.as_str(), namespace)).collect();
    if by_name.is_empty() {
        return None;
    }
    let sections = std::iter::once("# Tools".to_owned()).chain(by_name.values().map(|namespace| namespace.text()));
    Some(sections.collect::<Vec<String>>().join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_system_message_without_a_date_names_none() {
        assert_eq!(
            SystemContent::default().text(false),
            "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n\nReasoning: \
             medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message."
        );
    }

    #[test]
    fn a_function_without_parameters_takes_nothing() {
        let content = DeveloperContent {
            instructions: Some("Be brief.".to_owned()),
            tools: vec![ToolNamespace::functions(vec![
                ToolDefinition { name: "now".to_owned(), description: "The time.".to_owned(), parameters: None },
                ToolDefinition {
                    name: "empty".to_owned(),
                    description: String::new(),
                    parameters: Some(json!({"type": "object", "properties": {}})),
                },
            ])],
        };
        assert_eq!(
            content.text(),
            "# Instructions\n\nBe brief.\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n// The time.\ntype now = \
             () => any;\n\ntype empty = (_: {\n}) => any;\n\n} // namespace functions"
        );
    }
}
