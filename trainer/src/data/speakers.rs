//! Who says what in a sample.

use std::ops::AddAssign;

use ft_formats::harmony::{Channel, Message, Role};
use serde::{Deserialize, Serialize};

/// Whose a message is, the assistant's by its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaker {
    System,
    Developer,
    User,
    Tool,
    Analysis,
    Commentary,
    Final,
    /// A plain text.
    Text,
}

impl Speaker {
    pub(super) fn of(message: &Message) -> Speaker {
        match (message.role, message.channel) {
            (Role::System, _) => Speaker::System,
            (Role::Developer, _) => Speaker::Developer,
            (Role::User, _) => Speaker::User,
            (Role::Tool, _) => Speaker::Tool,
            (Role::Assistant, Some(Channel::Analysis)) => Speaker::Analysis,
            (Role::Assistant, Some(Channel::Commentary)) => Speaker::Commentary,
            (Role::Assistant, Some(Channel::Final) | None) => Speaker::Final,
        }
    }

    pub(super) const fn is_assistant(self) -> bool {
        matches!(self, Speaker::Analysis | Speaker::Commentary | Speaker::Final)
    }
}

/// Numbers of tokens, trained or not, by whose message they are in; markup counts with its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SpokenTokens {
    /// The system message of harmony.
    pub system: usize,
    /// Instructions and tools.
    pub developer: usize,
    /// Users.
    pub user: usize,
    /// Results of tools.
    pub tool: usize,
    /// The assistant on `analysis`.
    pub analysis: usize,
    /// The assistant on `commentary`.
    pub commentary: usize,
    /// The assistant on `final`.
    #[serde(rename = "final")]
    pub final_: usize,
    /// Plain texts.
    pub text: usize,
}

impl SpokenTokens {
    /// Number of speakers.
    pub(super) const SPEAKERS: usize = 8;

    /// The numbers under the names that people read.
    #[must_use]
    pub fn named(&self) -> [(&'static str, usize); Self::SPEAKERS] {
        let names = ["system", "developer", "user", "tool", "analysis", "commentary", "final", "text"];
        let counts = self.counts();
        std::array::from_fn(|index| (names[index], counts[index]))
    }

    pub(super) const fn counts(&self) -> [usize; Self::SPEAKERS] {
        [self.system, self.developer, self.user, self.tool, self.analysis, self.commentary, self.final_, self.text]
    }

    pub(super) const fn of_counts(counts: [usize; Self::SPEAKERS]) -> SpokenTokens {
        let [system, developer, user, tool, analysis, commentary, final_, text] = counts;
        SpokenTokens { system, developer, user, tool, analysis, commentary, final_, text }
    }

    pub(super) fn of_mut(&mut self, speaker: Speaker) -> &mut usize {
        match speaker {
            Speaker::System => &mut self.system,
            Speaker::Developer => &mut self.developer,
            Speaker::User => &mut self.user,
            Speaker::Tool => &mut self.tool,
            Speaker::Analysis => &mut self.analysis,
            Speaker::Commentary => &mut self.commentary,
            Speaker::Final => &mut self.final_,
            Speaker::Text => &mut self.text,
        }
    }
}

impl AddAssign for SpokenTokens {
    fn add_assign(&mut self, other: SpokenTokens) {
        let (mine, others) = (self.counts(), other.counts());
        *self = SpokenTokens::of_counts(std::array::from_fn(|index| mine[index] + others[index]));
    }
}
