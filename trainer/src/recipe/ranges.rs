//! Values that have the right type and make no sense all the same, and settings that this version cannot honour.

use std::path::{Component, Path};

use super::error::{Found, Origin, ProblemKind};
use super::schema::example;
use super::tree::{EXCLUSIVE, Node};
use super::{Layers, Recipe};

/// Checks the values of `recipe`, which was read from `tree`.
pub(super) fn check(recipe: &Recipe, tree: &Node) -> Vec<Found> {
    let mut problems = Vec::new();
    for (key, is_right, rule) in rules(recipe) {
        // A key that is not there has its default, or is reported as missing.
        let Some(entry) = tree.get(key).filter(|_| !is_right) else { continue };
        let kind = ProblemKind::OutOfRange { key, rule, found: entry.node.text(), example: example(key) };
        problems.push(Found { origin: entry.node.origin.clone(), kind });
    }
    for (first, second) in EXCLUSIVE {
        if let (Some(one), Some(other)) = (tree.get(first), tree.get(second)) {
            let is_empty = |text: &str| matches!(text, "[]" | "0.0" | "0");
            if is_empty(&one.node.text()) || is_empty(&other.node.text()) {
                continue;
            }
            // Named at the one that comes later: what was added to a recipe that had the other.
            let (earlier, later, entry) = if is_later(&one.origin, &other.origin) { (second, first, one) } else { (first, second, other) };
            problems.push(Found { origin: entry.origin.clone(), kind: ProblemKind::Exclusive { earlier, later } });
        }
    }
    let unsupported = [
        ("tracking.tensorboard", recipe.tracking.tensorboard),
        ("tracking.wandb", recipe.tracking.wandb.is_some()),
        ("quantization.aware", recipe.quantization.aware),
    ];
    for (key, is_asked) in unsupported {
        if let Some(entry) = tree.get(key).filter(|_| is_asked) {
            problems.push(Found { origin: entry.origin.clone(), kind: ProblemKind::NotSupported { key } });
        }
    }
    problems
}

/// (key, whether its value is right, what it should be).
fn rules(recipe: &Recipe) -> Vec<(&'static str, bool, &'static str)> {
    const ONE: &str = "1 or more";
    const NOT_NEGATIVE: &str = "a number that is not negative";
    const FRACTION: &str = "from 0 to 1";
    const DECAY: &str = "from 0 to less than 1";
    const TEXTS: &str = "a list of texts that are not empty";
    let is_not_negative = |number: f64| number.is_finite() && number >= 0.0;
    let is_positive = |number: f64| number.is_finite() && number > 0.0;
    let has_texts = |texts: &[String]| texts.iter().all(|text| !text.trim().is_empty());
    let lora = recipe.lora.clone().unwrap_or_default();
    let has_layers = match &lora.layers {
        Layers::All => true,
        Layers::List(list) => !list.is_empty(),
    };
    let Recipe { dataset, loss, optimizer, schedule, training, output, .. } = recipe;
    vec![
        ("model.path", !recipe.model.path.trim().is_empty(), "the path of a model"),
        ("dataset.train", !dataset.train.is_empty() && has_texts(&dataset.train), "files, folders or patterns, at least one"),
        ("dataset.validation", has_texts(&dataset.validation), TEXTS),
        ("dataset.validation_fraction", (0.0..1.0).contains(&dataset.validation_fraction), DECAY),
        ("dataset.max_tokens", dataset.max_tokens >= 2, "2 or more"),
        ("loss.analysis", is_not_negative(loss.analysis.into()), NOT_NEGATIVE),
        ("loss.commentary", is_not_negative(loss.commentary.into()), NOT_NEGATIVE),
        ("loss.final", is_not_negative(loss.final_.into()), NOT_NEGATIVE),
        ("lora.rank", lora.rank >= 1, ONE),
        ("lora.alpha", is_positive(lora.alpha), "a number above 0"),
        ("lora.targets", !lora.targets.is_empty(), "a list of at least one target"),
        ("lora.layers", has_layers, "\"all\" or a list of at least one index"),
        ("optimizer.learning_rate", is_not_negative(optimizer.learning_rate), NOT_NEGATIVE),
        ("optimizer.beta1", (0.0..1.0).contains(&optimizer.beta1), DECAY),
        ("optimizer.beta2", (0.0..1.0).contains(&optimizer.beta2), DECAY),
        ("optimizer.epsilon", is_positive(optimizer.epsilon), "a number above 0"),
        ("optimizer.weight_decay", is_not_negative(optimizer.weight_decay), NOT_NEGATIVE),
        ("optimizer.max_gradient_norm", is_not_negative(optimizer.max_gradient_norm), "a number above 0, or 0 for no clipping"),
        ("schedule.warmup_fraction", (0.0..=1.0).contains(&schedule.warmup_fraction), FRACTION),
        ("schedule.min_fraction", (0.0..=1.0).contains(&schedule.min_fraction), FRACTION),
        ("training.epochs", is_positive(training.epochs), "a number above 0"),
        ("training.steps", training.steps != Some(0), ONE),
        ("training.batch_sequences", training.batch_sequences >= 1, ONE),
        ("training.accumulation_steps", training.accumulation_steps >= 1, ONE),
        ("checkpoint.keep", recipe.checkpoint.keep >= 1, ONE),
        ("sampling.prompts", has_texts(&recipe.sampling.prompts), TEXTS),
        ("output.directory", !output.directory.trim().is_empty(), "the path of a folder"),
        ("output.name", is_file_name(&output.name), "the name of a folder, without `/`"),
    ]
}

fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) && !name.ends_with('/')
}

fn is_later(one: &Origin, other: &Origin) -> bool {
    match (one, other) {
        (Origin::File(first), Origin::File(second)) => first.start > second.start,
        (Origin::Override { .. }, Origin::File(_)) => true,
        _ => false,
    }
}
