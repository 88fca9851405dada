//! Answers to fixed prompts during a run, kept in `samples.md`.

use std::ops::ControlFlow;

use ft_formats::harmony::{Conversation, Message, SystemContent, render_for_completion};
use ft_formats::tokenizer::{Tokenizer, special};

use crate::error::Result;
use crate::generation::{GenerateOptions, generate};
use crate::model::Transformer;

/// New tokens of a sample at most.
const MAX_TOKENS: usize = 200;

/// The model's answers at temperature 0, as Markdown.
///
/// # Errors
/// Those of the forward pass.
pub fn answers(model: &Transformer, prompts: &[String], step: usize) -> Result<String> {
    let mut markdown = format!("## Step {step}\n\n");
    for prompt in prompts {
        let conversation = Conversation { messages: vec![Message::system(SystemContent::default()), Message::user(prompt.as_str())] };
        let ids = render_for_completion(&conversation);
        let options = GenerateOptions { max_tokens: MAX_TOKENS, temperature: 0.0, seed: 0, stop_tokens: special::STOPS.to_vec() };
        let answer = generate(model, &ids, &options, &mut |_| ControlFlow::Continue(()))?;
        let text = Tokenizer::o200k_harmony().decode(&answer);
        markdown.push_str(&format!("**{}**\n\n```text\n{}\n```\n\n", prompt.trim(), String::from_utf8_lossy(&text)));
    }
    Ok(markdown)
}
