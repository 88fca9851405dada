//! Ids and their loss weights.

use std::ops::{AddAssign, Range};
use std::path::PathBuf;

use ft_formats::harmony::{Channel, Conversation, Message, Role, render_for_training};
use ft_formats::tokenizer::{Tokenizer, special};

use serde::Serialize;

use super::conversation::{Body, LoadedConversation};
use super::error::Place;
use super::options::ChannelWeights;
use super::speakers::{Speaker, SpokenTokens};

/// A sequence to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// `weights[i]` is the loss weight of predicting `ids[i]` from the ids before it; `weights[0]` is 0.
    pub weights: Vec<f32>,
    /// Where it comes from.
    pub origin: SampleOrigin,
    /// How many of its tokens have a weight, by channel.
    pub trained: TrainedTokens,
    /// Where they stand.
    pub spans: Vec<TrainedSpan>,
}

/// A run of tokens with a weight, in one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedSpan {
    /// Indices of its tokens.
    pub tokens: Range<usize>,
    /// The message's channel; `None` in a plain text.
    pub channel: Option<Channel>,
}

/// Where a sample comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SampleOrigin {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// Index of the last assistant turn that it holds; `None` when the conversation makes one sample only.
    pub turn: Option<usize>,
}

impl SampleOrigin {
    pub(super) fn new(place: &Place, turn: Option<usize>) -> SampleOrigin {
        SampleOrigin { file: place.file.clone(), line: place.line, turn }
    }
}

impl std::fmt::Display for SampleOrigin {
    /// `file:line`, and the turn counted from 1 where there is one.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.file.display(), self.line)?;
        match self.turn {
            Some(turn) => write!(formatter, " (turn {})", turn + 1),
            None => Ok(()),
        }
    }
}

/// Numbers of tokens with a weight other than 0, by the channel of their message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct TrainedTokens {
    /// On `analysis`.
    pub analysis: usize,
    /// On `commentary`.
    pub commentary: usize,
    /// On `final`.
    #[serde(rename = "final")]
    pub final_: usize,
    /// In plain texts.
    pub text: usize,
}

impl TrainedTokens {
    /// All of them.
    pub fn total(&self) -> usize {
        self.analysis + self.commentary + self.final_ + self.text
    }

    pub(super) fn of_mut(&mut self, channel: Option<Channel>) -> &mut usize {
        match channel {
            Some(Channel::Analysis) => &mut self.analysis,
            Some(Channel::Commentary) => &mut self.commentary,
            Some(Channel::Final) => &mut self.final_,
            None => &mut self.text,
        }
    }
}

impl AddAssign for TrainedTokens {
    fn add_assign(&mut self, other: TrainedTokens) {
        self.analysis += other.analysis;
        self.commentary += other.commentary;
        self.final_ += other.final_;
        self.text += other.text;
    }
}

/// A sample that may still be cut.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) ids: Vec<u32>,
    weights: Vec<f32>,
    pub(super) origin: SampleOrigin,
    trained: Vec<TrainedSpan>,
    /// Whose tokens are where; they cover all.
    said: Vec<(Range<usize>, Speaker)>,
}

impl Draft {
    /// `messages` in harmony, each trained with its weight.
    ///
    /// Trained are, of an assistant's message, the header after `<|start|>assistant`, the text and the terminator: what
    /// the model writes when it is prompted with `<|start|>assistant`. That opening is the model's own only after an
    /// assistant's message that ended in `<|end|>`, where generation goes on; there it carries the weight of the message
    /// that it opens. After `<|call|>` generation stops, and after a user or a tool the prompt holds the opening.
    pub(super) fn conversation(messages: Vec<(Message, f32)>, weights: &ChannelWeights, origin: SampleOrigin) -> Draft {
        let (messages, factors): (Vec<Message>, Vec<f32>) = messages.into_iter().unzip();
        let conversation = Conversation { messages };
        let rendered = render_for_training(&conversation);
        let said = conversation.messages.iter().zip(&rendered.spans).map(|(message, span)| (span.all(), Speaker::of(message))).collect();
        let mut draft = Draft { weights: vec![0.0; rendered.ids.len()], ids: rendered.ids, origin, trained: Vec::new(), said };
        let mut goes_on = false;
        for ((message, span), factor) in conversation.messages.iter().zip(&rendered.spans).zip(factors) {
            if message.role == Role::Assistant {
                let channel = message.channel.unwrap_or(Channel::Final);
                let start = if goes_on { span.opening.start } else { span.header.start };
                draft.train(start..span.end.end, Some(channel), weights.of(channel) * factor);
            }
            goes_on = message.role == Role::Assistant && !message.is_tool_call();
        }
        draft
    }

    /// `text` as it stands, every token trained, ended with `<|endoftext|>`.
    pub(super) fn text(text: &str, origin: SampleOrigin) -> Draft {
        let mut ids = Tokenizer::o200k_harmony().encode_ordinary(text);
        ids.push(special::END_OF_TEXT);
        let said = vec![(0..ids.len(), Speaker::Text)];
        let mut draft = Draft { weights: vec![0.0; ids.len()], ids, origin, trained: Vec::new(), said };
        draft.train(0..draft.ids.len(), None, 1.0);
        draft
    }

    fn train(&mut self, range: Range<usize>, channel: Option<Channel>, weight: f32) {
        // Nothing stands before the first token to predict it from.
        let range = range.start.max(1)..range.end;
        if weight != 0.0 && !range.is_empty() {
            self.weights[range.clone()].fill(weight);
            self.trained.push(TrainedSpan { tokens: range, channel });
        }
    }

    pub(super) fn is_trained(&self) -> bool {
        !self.trained.is_empty()
    }

    /// Its tokens by who says them.
    pub(super) fn spoken(&self) -> SpokenTokens {
        let mut spoken = SpokenTokens::default();
        for (range, speaker) in &self.said {
            // What is cut off is not said.
            *spoken.of_mut(*speaker) += range.end.min(self.ids.len()).saturating_sub(range.start);
        }
        spoken
    }

    /// The tokens before the assistant first speaks; none in a plain text.
    pub(super) fn first_prompt(&self) -> &[u32] {
        let answer = self.said.iter().find(|(_, speaker)| speaker.is_assistant());
        answer.map_or(&[], |(range, _)| &self.ids[..range.start.min(self.ids.len())])
    }

    /// Keeps the first `max_tokens` tokens.
    pub(super) fn truncate(&mut self, max_tokens: usize) {
        self.ids.truncate(max_tokens);
        self.weights.truncate(max_tokens);
        for span in &mut self.trained {
            span.tokens.end = span.tokens.end.min(max_tokens);
        }
        self.trained.retain(|span| !span.tokens.is_empty());
    }

    pub(super) fn finish(self) -> Sample {
        let mut trained = TrainedTokens::default();
        for span in &self.trained {
            *trained.of_mut(span.channel) += span.tokens.len();
        }
        Sample { ids: self.ids, weights: self.weights, origin: self.origin, trained, spans: self.trained }
    }
}

/// The conversation as it stands, nothing dropped, every assistant message trained: what `ft render` shows.
///
/// A conversation without a trained token is shown all the same.
pub fn render_whole(conversation: &LoadedConversation, weights: &ChannelWeights) -> Sample {
    let origin = SampleOrigin::new(&conversation.place, None);
    let draft = match &conversation.body {
        Body::Text(text) => Draft::text(text, origin),
        Body::Conversation { conversation, message_weights } => {
            let messages = conversation.messages.iter().cloned().zip(message_weights.iter().copied()).collect();
            Draft::conversation(messages, weights, origin)
        }
    };
    draft.finish()
}
