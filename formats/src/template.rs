//! The chat template of the models that ft writes: a Jinja text that renders conversations as [`crate::harmony`] does.
//!
//! Runtimes (transformers, llama.cpp, and what is built on them) turn messages into a prompt with the template that comes with the model. Ours
//! gives the very ids that the model was trained on, which the template published with gpt-oss does not always: tool results and arguments that are
//! texts stay as they are instead of being quoted once more, calls side by side are all there, a call's content type is the special
//! token `<|constrain|>`, instructions end without blank lines, and schemas become the TypeScript of harmony, nested objects included.
//!
//! # Variables
//!
//! | variable | what it is |
//! | --- | --- |
//! | `messages` | role (system, developer, user, assistant, tool) and `content`: a text, text parts, or JSON as a tool's result. For the assistant also `thinking` (or `reasoning_content`, `reasoning`) and `tool_calls`, or harmony's `channel`, `recipient`, `content_type`; `name`; for a tool `tool_call_id` or `name` |
//! | `tools` | functions as OpenAI chat has them, with or without the `function` around each |
//! | `builtin_tools` | `browser`, `python`, or both |
//! | `reasoning_effort` | low, medium (the default), high |
//! | `model_identity` | first line of the system message |
//! | `current_date` | a text: the date; true: today's, by the runtime's `strftime_now`; unset: none |
//! | `add_generation_prompt` | ends in `<\|start\|>assistant` |
//!
//! # Decisions
//!
//! **No date unless it is asked for.** The published template always prints today's. ft trains without a date where the data gives none, as
//! harmony renders none, so a prompt without one is what a fine-tune has seen; it is also the same prompt tomorrow, for caches and for
//! comparisons. `current_date=true` (a keyword of `apply_chat_template`, or in `chat_template_kwargs`) gives the published behaviour.
//!
//! **System and developer messages** that come first become one developer message, joined by a blank line; later ones stay where they are.
//!
//! **Analysis of the past is gone** once an answer on `final` stands after it, as in training ([`crate::harmony`] itself drops nothing). While a call
//! waits for its result, and in a last turn that is rendered without `add_generation_prompt`, it is kept. `<|return|>` ends that turn's
//! answer alone.
//!
//! **Generation marks.** `{% generation %}` encloses what the model itself writes, so that transformers' `return_assistant_tokens_mask` is
//! ft's own loss mask (with every channel at weight 1). transformers and llama.cpp know the tag; minijinja and the runtimes built on it refuse it,
//! so a GGUF gets [`without_generation_marks`].
//!
//! # What a template cannot do
//!
//! It makes text, and a runtime reads special tokens out of that text: a user who writes `<|end|>` ends the message. Where that matters,
//! tokenize message by message, as ft does. Numbers are printed by the engine: Python writes 1e-05 for a default of 0.00001, llama.cpp gives floats six
//! digits and no `.0`. Some runtimes change a conversation before the template sees it: llama.cpp parses arguments and prints them again, drops the
//! words beside a call that comes with thinking, and gives a function without parameters an empty schema.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// The template, with generation marks: the content of `chat_template.jinja`.
pub const CHAT_TEMPLATE: &str = include_str!("template/chat_template.jinja");

/// Name of the file of a model directory that holds its template. Source: transformers `utils/hub.py` `CHAT_TEMPLATE_FILE`.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// `template` with a comment in the place of each `{% generation %}` and `{% endgeneration %}`, which only some engines know; it renders alike.
///
/// The whitespace control of a mark (`{%- generation -%}`) becomes that of the comment.
#[must_use]
pub fn without_generation_marks(template: &str) -> Cow<'_, str> {
    // Comments are matched too, to be left as they are: a comment inside a comment would end it.
    #[expect(clippy::expect_used, reason = "the pattern is a constant; the tests compile it")]
    static MARKS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?s)\{#.*?#\}|\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}").expect("a valid pattern"));
    MARKS.replace_all(template, |found: &Captures<'_>| match (found.get(1), found.get(2)) {
        (Some(before), Some(after)) => format!("{{#{} {}#}}", before.as_str(), after.as_str()),
        _ => found[0].to_owned(),
    })
}

#[cfg(test)]
mod tests;
