//! `ft render`: conversations as harmony, nothing dropped.

use clap::Args;
use ft_formats::harmony;
use ft_formats::tokenizer::Tokenizer;
use ft_trainer::data::{Body, ChannelWeights, Columns, LoadedConversation, load_conversations, render_whole};
use serde::Serialize;

use crate::error::Result;
use crate::json;
use crate::terminal::Terminal;

/// Show conversations as harmony text, or as ids with their loss weights
///
/// Each conversation stands as it is, nothing dropped. With --training a last message on the final channel ends in
/// <|return|>, as the model itself writes it, and every assistant token has its loss weight.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft render data/coding.jsonl
  ft render data/coding.jsonl --tokens
  ft render data/coding.jsonl --tokens --training --json

JSON: {\"version\": 1, \"conversations\": [{\"ids\": [...], \"weights\": [...], \"text\": \"...\"}]}; ids with --tokens,
weights with --training.")]
pub(crate) struct Arguments {
    /// A file, folder or pattern of conversations
    file: String,
    /// Token ids
    #[arg(long)]
    tokens: bool,
    /// As it is trained, with the loss weight of each token
    #[arg(long)]
    training: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Outcome {
    conversations: Vec<RenderedConversation>,
}

#[derive(Serialize)]
struct RenderedConversation {
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Vec<f32>>,
    text: String,
}

/// Read, render, print.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let loaded = load_conversations(std::slice::from_ref(&arguments.file), &Columns::default())?;
    let rendered = loaded.iter().map(|conversation| render(conversation, arguments));
    if arguments.json {
        return json::print(&Outcome { conversations: rendered.collect() }, terminal);
    }
    for (index, conversation) in rendered.enumerate() {
        if index > 0 && conversation.ids.is_none() {
            terminal.print("")?;
        }
        terminal.print(&words(&conversation))?;
    }
    Ok(())
}

fn render(conversation: &LoadedConversation, arguments: &Arguments) -> RenderedConversation {
    let tokenizer = Tokenizer::o200k_harmony();
    let (ids, weights) = if arguments.training {
        let sample = render_whole(conversation, &ChannelWeights::default());
        (sample.ids, Some(sample.weights))
    } else {
        let ids = match &conversation.body {
            Body::Text(text) => tokenizer.encode_ordinary(text),
            Body::Conversation { conversation, .. } => harmony::render(conversation).ids,
        };
        (ids, None)
    };
    let text = String::from_utf8_lossy(&tokenizer.decode(&ids)).into_owned();
    RenderedConversation { ids: arguments.tokens.then_some(ids), weights, text }
}

/// The text; or the ids on a line, each with its weight where there are weights.
fn words(conversation: &RenderedConversation) -> String {
    match (&conversation.ids, &conversation.weights) {
        (None, _) => conversation.text.clone(),
        (Some(ids), None) => ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
        (Some(ids), Some(weights)) => ids.iter().zip(weights).map(|(id, weight)| format!("{id}:{weight}")).collect::<Vec<_>>().join(" "),
    }
}
