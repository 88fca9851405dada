//! What a recipe says about data.

use std::path::PathBuf;

use ft_formats::harmony::Channel;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::columns::Columns;

/// Loss weight of each channel; 0 masks it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ChannelWeights {
    /// Of the chain of thought.
    pub analysis: f32,
    /// Of tool calls and of words before them.
    pub commentary: f32,
    /// Of answers.
    #[serde(rename = "final")]
    pub final_: f32,
}

impl Default for ChannelWeights {
    fn default() -> ChannelWeights {
        ChannelWeights { analysis: 1.0, commentary: 1.0, final_: 1.0 }
    }
}

impl ChannelWeights {
    /// The weight of `channel`.
    pub fn of(&self, channel: Channel) -> f32 {
        match channel {
            Channel::Analysis => self.analysis,
            Channel::Commentary => self.commentary,
            Channel::Final => self.final_,
        }
    }
}

/// Which turns of a conversation are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Turns {
    /// Every assistant turn, each in the context that inference would show it.
    #[default]
    Each,
    /// The last assistant turn alone.
    Last,
}

/// What becomes of a sample with more than `max_tokens` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// The dataset is refused, with the sample's place.
    #[default]
    Error,
    /// It is cut at `max_tokens`; when nothing trained is left of it, it is dropped.
    Truncate,
    /// It is left out.
    Drop,
}

/// How a conversation becomes samples.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SampleOptions {
    /// Which turns are trained.
    pub turns: Turns,
    /// The weight of each channel.
    pub weights: ChannelWeights,
}

/// How files become a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetOptions {
    /// Folder of the token cache; `None` keeps tokens in memory.
    pub cache: Option<PathBuf>,
    /// What the columns are called.
    pub columns: Columns,
    /// How each conversation becomes samples.
    pub samples: SampleOptions,
    /// Longest sample, in tokens.
    pub max_tokens: usize,
    /// What becomes of longer ones.
    pub overlong: Overlong,
}
