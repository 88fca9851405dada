//! Conversations that stand in the data more than once.

use std::collections::HashMap;

use serde::Serialize;

use super::Dataset;
use crate::data::sample::SampleOrigin;

/// Conversations that stand somewhere else, too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Duplicates {
    /// How many.
    pub count: usize,
    /// The first of them: where the one stands, and where the other.
    pub examples: Vec<(String, String)>,
}

impl Duplicates {
    /// Pairs that are named.
    const EXAMPLES: usize = 3;

    fn add(&mut self, first: &SampleOrigin, second: &SampleOrigin) {
        self.count += 1;
        if self.examples.len() < Self::EXAMPLES {
            let row = |origin: &SampleOrigin| format!("{}:{}", origin.file.display(), origin.line);
            self.examples.push((row(first), row(second)));
        }
    }
}

/// Conversations held out that were trained on all the same.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Leaks {
    /// Token by token.
    pub conversations: Duplicates,
    /// With the same words up to the first answer.
    pub prompts: Duplicates,
}

impl Dataset {
    /// Conversations that stand in the dataset before, token by token.
    pub(in crate::data) fn duplicates(&self) -> Duplicates {
        let mut first: HashMap<&[u8], usize> = HashMap::new();
        let mut duplicates = Duplicates::default();
        for index in self.conversations() {
            let of = *first.entry(self.tokens.conversation(self.at(index))).or_insert(index);
            if of != index {
                duplicates.add(&self.origin(of), &self.origin(index));
            }
        }
        duplicates
    }

    /// What of `validation` stands in this dataset, too: whole conversations, and others with the same first prompt.
    #[must_use]
    pub fn leaks_into(&self, validation: &Dataset) -> Leaks {
        let mut conversations: HashMap<&[u8], usize> = HashMap::new();
        let mut prompts: HashMap<&[u8], usize> = HashMap::new();
        for index in self.conversations() {
            conversations.entry(self.tokens.conversation(self.at(index))).or_insert(index);
            prompts.entry(self.tokens.prompt(self.at(index))).or_insert(index);
        }
        let mut leaks = Leaks::default();
        for index in validation.conversations() {
            let of = validation.at(index);
            if let Some(&trained) = conversations.get(validation.tokens.conversation(of)) {
                leaks.conversations.add(&self.origin(trained), &validation.origin(index));
            } else if let Some(&trained) = prompts.get(validation.tokens.prompt(of)) {
                leaks.prompts.add(&self.origin(trained), &validation.origin(index));
            }
        }
        leaks
    }
}
