//! The settings that would make a run fit: tried, not guessed.

use std::fmt;

use serde::Serialize;

use crate::data::Overlong;
use crate::error::Result;
use crate::recipe::{Experts, OptimizerKind, Recipe};

/// Fewest tokens of a sequence that are worth proposing.
const LEAST_TOKENS: usize = 512;

/// Memory of devices that there are, in GB as they are sold.
const DEVICE_GIGABYTES: [u64; 12] = [8, 12, 16, 24, 32, 48, 64, 80, 96, 141, 180, 288];

/// What would help a run that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Remedy {
    /// Settings to change, as a recipe spells them: `training.batch_sequences = 1`.
    pub settings: Vec<String>,
    /// What the run needs with them, in bytes.
    pub needed_bytes: u64,
    /// That is little enough. Else nothing is, and these are the settings that leave the training what it is.
    pub suffices: bool,
}

impl Remedy {
    /// The size in GB of a device that has the bytes needed; `None` when no single one has.
    #[must_use]
    pub fn device_gigabytes(&self) -> Option<u64> {
        DEVICE_GIGABYTES.into_iter().find(|gigabytes| gigabytes * 1_000_000_000 >= self.needed_bytes)
    }
}

impl fmt::Display for Remedy {
    /// The settings as a list in a sentence.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted: Vec<String> = self.settings.iter().map(|setting| format!("`{setting}`")).collect();
        match &quoted[..] {
            [] => Ok(()),
            [only] => formatter.write_str(only),
            [first @ .., last] => write!(formatter, "{} and {last}", first.join(", ")),
        }
    }
}

/// A setting that may be changed to save something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// `model.experts = "mxfp4"`.
    PackedExperts,
    /// `training.checkpoint_activations = true`.
    CheckpointActivations,
    /// `training.batch_sequences = 1`.
    OneSequence,
    /// `optimizer.kind = "adamw_8bit"`.
    EightBits,
    /// `training.offload_activations`.
    Offload(bool),
    /// A smaller `dataset.max_tokens`.
    MaxTokens,
    /// A smaller `lora.rank`.
    Rank,
    /// `checkpoint.keep = 1`.
    Keep,
}

impl Change {
    /// What saves memory of a device, the mildest first.
    pub(super) const OF_DEVICE: [Self; 7] = [
        Self::PackedExperts,
        Self::CheckpointActivations,
        Self::OneSequence,
        Self::EightBits,
        Self::Offload(true),
        Self::MaxTokens,
        Self::Rank,
    ];
    /// What saves memory of a machine.
    pub(super) const OF_HOST: [Self; 7] = [
        Self::Offload(false),
        Self::PackedExperts,
        Self::CheckpointActivations,
        Self::OneSequence,
        Self::EightBits,
        Self::MaxTokens,
        Self::Rank,
    ];
    /// What saves room on a disk.
    pub(super) const OF_DISK: [Self; 3] = [Self::Keep, Self::EightBits, Self::Rank];

    /// It makes another training of it.
    fn changes_training(self) -> bool {
        matches!(self, Self::MaxTokens | Self::Rank)
    }

    /// `recipe` with the change; of several values the mildest that suffices, or the last. `None` where it changes nothing.
    fn apply(self, recipe: &Recipe, trial: &Trial<'_>) -> Result<Option<Recipe>> {
        let mut changed = recipe.clone();
        match self {
            Self::PackedExperts => changed.model.experts = Experts::Mxfp4,
            Self::CheckpointActivations => changed.training.checkpoint_activations = true,
            Self::OneSequence => changed.training.batch_sequences = 1,
            Self::EightBits => changed.optimizer.kind = OptimizerKind::Adamw8bit,
            Self::Offload(is_wanted) => changed.training.offload_activations = is_wanted,
            Self::Keep => changed.checkpoint.keep = 1,
            Self::MaxTokens => {
                let smaller = powers_of_two_below(recipe.dataset.max_tokens).filter(|&tokens| tokens >= LEAST_TOKENS);
                changed = trial
                    .first(smaller.map(|tokens| {
                        let mut changed = recipe.clone();
                        changed.dataset.max_tokens = tokens;
                        if changed.dataset.overlong == Overlong::Error && tokens < trial.longest_sample {
                            changed.dataset.overlong = Overlong::Truncate;
                        }
                        changed
                    }))?
                    .unwrap_or(changed);
            }
            Self::Rank => {
                let rank = recipe.lora().map_or(0, |lora| lora.rank);
                changed = trial
                    .first(powers_of_two_below(rank).map(|rank| {
                        let mut changed = recipe.clone();
                        if let Some(lora) = &mut changed.lora {
                            lora.rank = rank;
                        }
                        changed
                    }))?
                    .unwrap_or(changed);
            }
        }
        // Some change the recipe and save nothing: offloading on a CPU, packing what is stored in bf16.
        Ok(((trial.needed)(&changed)? < (trial.needed)(recipe)?).then_some(changed))
    }
}

/// How a changed recipe is judged.
pub(super) struct Trial<'a> {
    /// Bytes of what there is too little of.
    pub(super) needed: &'a dyn Fn(&Recipe) -> Result<u64>,
    /// Whether there is enough of everything.
    pub(super) fits: &'a dyn Fn(&Recipe) -> Result<bool>,
    /// Tokens of the longest sample.
    pub(super) longest_sample: usize,
}

impl Trial<'_> {
    /// The first of `recipes` that fits, or the last.
    fn first(&self, recipes: impl Iterator<Item = Recipe>) -> Result<Option<Recipe>> {
        let mut last = None;
        for recipe in recipes {
            if (self.fits)(&recipe)? {
                return Ok(Some(recipe));
            }
            last = Some(recipe);
        }
        Ok(last)
    }

    fn apply_all(&self, recipe: &Recipe, changes: &[Change]) -> Result<Recipe> {
        let mut changed = recipe.clone();
        for change in changes {
            changed = change.apply(&changed, self)?.unwrap_or(changed);
        }
        Ok(changed)
    }

    /// The least of `changes` that make `recipe` fit: the first that does so alone, else the fewest in their order, without those that turn
    /// out not to be needed.
    pub(super) fn remedy(&self, recipe: &Recipe, changes: &[Change]) -> Result<Remedy> {
        for change in changes {
            if let Some(changed) = change.apply(recipe, self)?
                && (self.fits)(&changed)?
            {
                return self.describe(recipe, &changed, true);
            }
        }
        let (drastic, mild): (Vec<Change>, Vec<Change>) = changes.iter().partition(|change| change.changes_training());
        for set in sets(&mild, &drastic) {
            let changed = self.apply_all(recipe, &set)?;
            if (self.fits)(&changed)? {
                let changed = self.without_the_needless(recipe, set, changed)?;
                return self.describe(recipe, &changed, true);
            }
        }
        self.describe(recipe, &self.apply_all(recipe, &mild)?, false)
    }

    /// `changed`, which `set` makes of `recipe`, without those changes that it fits without as well.
    fn without_the_needless(&self, recipe: &Recipe, mut set: Vec<Change>, mut changed: Recipe) -> Result<Recipe> {
        let rank = |recipe: &Recipe| recipe.lora().map_or(0, |lora| lora.rank);
        for change in set.clone() {
            let fewer: Vec<Change> = set.iter().copied().filter(|other| *other != change).collect();
            let without = self.apply_all(recipe, &fewer)?;
            // Not at the price of shorter sequences or a lower rank.
            let is_as_good = without.dataset.max_tokens >= changed.dataset.max_tokens && rank(&without) >= rank(&changed);
            if is_as_good && (self.fits)(&without)? {
                (set, changed) = (fewer, without);
            }
        }
        Ok(changed)
    }

    fn describe(&self, recipe: &Recipe, changed: &Recipe, suffices: bool) -> Result<Remedy> {
        let settings = settings(recipe).into_iter().zip(settings(changed));
        let settings = settings.filter(|(before, after)| before != after).map(|(_, after)| after).collect();
        Ok(Remedy { settings, needed_bytes: (self.needed)(changed)?, suffices })
    }
}

/// The mild ones in their order, one more each time; then all of them with each of the drastic ones, and with all of those.
fn sets(mild: &[Change], drastic: &[Change]) -> Vec<Vec<Change>> {
    let prefixes = (1..=mild.len()).map(|count| mild[..count].to_vec());
    let with_one = drastic.iter().map(|&change| [mild, &[change]].concat());
    prefixes.chain(with_one).chain([[mild, drastic].concat()]).collect()
}

/// Every setting that a [`Change`] may touch, as a recipe spells it.
fn settings(recipe: &Recipe) -> Vec<String> {
    let word = |value: serde_json::Value| value.to_string();
    vec![
        format!("model.experts = {}", word(serde_json::json!(recipe.model.experts))),
        format!("training.checkpoint_activations = {}", recipe.training.checkpoint_activations),
        format!("training.batch_sequences = {}", recipe.training.batch_sequences),
        format!("optimizer.kind = {}", word(serde_json::json!(recipe.optimizer.kind))),
        format!("training.offload_activations = {}", recipe.training.offload_activations),
        format!("dataset.max_tokens = {}", recipe.dataset.max_tokens),
        format!("dataset.overlong = {}", word(serde_json::json!(recipe.dataset.overlong))),
        format!("lora.rank = {}", recipe.lora().map_or(0, |lora| lora.rank)),
        format!("checkpoint.keep = {}", recipe.checkpoint.keep),
    ]
}

/// 2^k below `limit`, the largest first.
fn powers_of_two_below(limit: usize) -> impl Iterator<Item = usize> {
    (0..usize::BITS).rev().map(|power| 1 << power).filter(move |&power| power < limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Lora;

    /// 100 for experts in bf16, 50 for activations that are kept, 10 a sequence, 8 or 2 for the optimizer, 1 for 1,000 tokens, 1 a rank.
    fn needed(recipe: &Recipe) -> u64 {
        let training = &recipe.training;
        (if recipe.model.experts == Experts::Bf16 { 100 } else { 0 })
            + (if training.checkpoint_activations { 0 } else { 50 })
            + 10 * training.batch_sequences as u64
            + (if recipe.optimizer.kind == OptimizerKind::Adamw { 8 } else { 2 })
            + recipe.dataset.max_tokens as u64 / 1000
            + recipe.lora().map_or(0, |lora| lora.rank as u64)
    }

    fn remedy_for(available: u64) -> Remedy {
        let mut recipe = Recipe { lora: Some(Lora { rank: 16, ..Lora::default() }), ..Recipe::default() };
        recipe.model.experts = Experts::Bf16;
        (recipe.training.checkpoint_activations, recipe.training.batch_sequences, recipe.dataset.max_tokens) = (false, 4, 60_000);
        assert_eq!(needed(&recipe), 274);
        let trial = Trial { needed: &|recipe| Ok(needed(recipe)), fits: &|recipe| Ok(needed(recipe) <= available), longest_sample: 5000 };
        trial.remedy(&recipe, &Change::OF_DEVICE).unwrap()
    }

    #[test]
    fn one_setting_is_named_where_it_suffices() {
        assert_eq!(remedy_for(270).settings, ["model.experts = \"mxfp4\""]);
        let found = remedy_for(174);
        assert_eq!((found.settings, found.needed_bytes, found.suffices), (vec!["model.experts = \"mxfp4\"".to_owned()], 174, true));
    }

    #[test]
    fn several_are_named_without_those_that_do_not_matter() {
        assert_eq!(remedy_for(124).settings, ["model.experts = \"mxfp4\"", "training.checkpoint_activations = true"]);
        assert_eq!(remedy_for(124).needed_bytes, 124);
        // With moments of 8 bits, too, 14,000 tokens would fit, and without them 8,000: the same power of two.
        assert_eq!(
            remedy_for(42).settings,
            [
                "model.experts = \"mxfp4\"",
                "training.checkpoint_activations = true",
                "training.batch_sequences = 1",
                "dataset.max_tokens = 8192",
            ]
        );
    }

    #[test]
    fn lengths_and_ranks_come_last_and_are_as_large_as_fits() {
        let found = remedy_for(64);
        assert_eq!(
            found.settings,
            [
                "model.experts = \"mxfp4\"",
                "training.checkpoint_activations = true",
                "training.batch_sequences = 1",
                "optimizer.kind = \"adamw_8bit\"",
                "dataset.max_tokens = 32768",
            ]
        );
        // What is longer than the new limit has to be cut.
        assert_eq!(remedy_for(31).settings[4..], ["dataset.max_tokens = 2048", "dataset.overlong = \"truncate\""]);
        assert_eq!(remedy_for(20).settings[4..], ["dataset.max_tokens = 512", "dataset.overlong = \"truncate\"", "lora.rank = 8"]);
    }

    #[test]
    fn where_nothing_suffices_the_mild_settings_are_named_with_what_is_needed_then() {
        let found = remedy_for(5);
        assert_eq!((found.suffices, found.needed_bytes), (false, 10 + 2 + 60 + 16));
        assert_eq!(found.settings.len(), 4);
        assert_eq!(Remedy { needed_bytes: 47_000_000_000, ..found.clone() }.device_gigabytes(), Some(48));
        assert_eq!(Remedy { needed_bytes: 300_000_000_000, ..found }.device_gigabytes(), None);
    }

    #[test]
    fn settings_are_a_list_in_a_sentence() {
        let of = |settings: &[&str]| Remedy { settings: settings.iter().map(|&setting| setting.to_owned()).collect(), ..Remedy::default() };
        assert_eq!([of(&["a"]).to_string(), of(&["a", "b", "c"]).to_string()], ["`a`", "`a`, `b` and `c`"]);
    }
}
