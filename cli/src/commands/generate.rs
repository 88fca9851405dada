//! `ft generate`: one answer.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ft_formats::harmony::{Conversation, Message, ReasoningEffort, SystemContent, render_for_completion};
use ft_formats::tokenizer::special;
use ft_trainer::generation::GenerateOptions;

use crate::answer::{Stop, answer, open};
use crate::arguments::ComputeDtype;
use crate::error::{Error, Result};
use crate::json;
use crate::report;
use crate::terminal::Terminal;

/// Generate one answer, its channels told apart
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft generate models/nano --adapter runs/quickstart/adapter --prompt \"How do I reverse a string in Rust?\"
  ft generate models/20b --prompt \"...\" --reasoning high --max-tokens 2000
  ft generate models/20b --prompt \"...\" --temperature 0 --json

JSON: {\"version\": 1, \"messages\": [{\"channel\", \"recipient\", \"content\"}], \"stop\": return | call | end_of_text | max_tokens, ...}")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// The user's message
    #[arg(long)]
    prompt: String,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// The model, and how it answers.
#[derive(Debug, Args)]
pub(crate) struct ModelArguments {
    /// The model: a directory, or a GGUF file
    pub(crate) model: PathBuf,
    /// An adapter on top of it
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// How much to think
    #[arg(long, value_enum, default_value_t = Reasoning::Medium)]
    reasoning: Reasoning,
    /// New tokens at most
    #[arg(long, default_value_t = 1024)]
    max_tokens: usize,
    /// 0 takes the likeliest token; 1 samples from the model's own distribution
    #[arg(long, default_value_t = 1.0, value_parser = temperature)]
    temperature: f64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Type of weights and activations
    #[arg(long, value_enum, default_value_t = ComputeDtype::Bf16)]
    pub(crate) dtype: ComputeDtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reasoning {
    Low,
    Medium,
    High,
}

impl ModelArguments {
    pub(crate) fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            seed: self.seed,
            stop_tokens: special::STOPS.to_vec(),
        }
    }

    /// The system message that stands first.
    pub(crate) fn system(&self) -> Message {
        let effort = match self.reasoning {
            Reasoning::Low => ReasoningEffort::Low,
            Reasoning::Medium => ReasoningEffort::Medium,
            Reasoning::High => ReasoningEffort::High,
        };
        Message::system(SystemContent { reasoning_effort: Some(effort), ..SystemContent::default() })
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("a number that is not negative".to_owned()),
    }
}

/// Prompt, model, answer.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    if arguments.prompt.trim().is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let settings = &arguments.model;
    let conversation: Conversation = [settings.system(), Message::user(arguments.prompt.as_str())].into_iter().collect();
    let prompt = render_for_completion(&conversation);
    let generator = open(&settings.model, settings.adapter.as_deref(), settings.dtype, terminal)?;
    let answer = answer(&generator, &prompt, &settings.options(), arguments.json, terminal)?;
    if arguments.json {
        return json::print(&answer, terminal);
    }
    terminal.note(&terminal.stderr.palette.dim(&report::speed(answer.tokens, answer.seconds)));
    if answer.stop == Stop::MaxTokens {
        terminal.warn(&format!("the answer breaks off after {} tokens; --max-tokens allows more", answer.tokens));
    }
    Ok(())
}
