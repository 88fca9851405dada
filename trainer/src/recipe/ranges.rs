//! Values that have the right type and make no sense all the same, and settings that this version cannot honour.

use std::path::{Component, Path};

use super::error::{Found, Origin, ProblemKind};
use super::schema::example;
use super::tree::{EXCLUSIVE, Node};
use super::{Layers, Recipe};

const ONE: &str = "1 or more";
const TWO: &str = "2 or more";
const NOT_NEGATIVE: &str = "a number that is not negative";
const POSITIVE: &str = "a number above 0";
const FRACTION: &str = "from 0 to 1";
const DECAY: &str = "from 0 to less than 1";
const TEXTS: &str = "a list of texts that are not empty";
const CLIPPING: &str = "a number above 0, or 0 for no clipping";
const SOURCES: &str = "files, folders or patterns, at least one";
const TARGETS: &str = "a list of at least one target";
const LAYERS: &str = "\"all\" or a list of at least one index";
const WEIGHTS: &str = "a number above 0 for each source of `dataset.train`";
const MODEL: &str = "the path of a model";
const FOLDER: &str = "the path of a folder";
const NAME: &str = "the name of a folder, without `/`";

/// Each rule in the words of JSON schema.
const BOUNDS: [(&str, &str); 15] = [
    (ONE, r#"{"minimum": 1}"#),
    (TWO, r#"{"minimum": 2}"#),
    (NOT_NEGATIVE, r#"{"minimum": 0}"#),
    (POSITIVE, r#"{"exclusiveMinimum": 0}"#),
    (FRACTION, r#"{"minimum": 0, "maximum": 1}"#),
    (DECAY, r#"{"minimum": 0, "exclusiveMaximum": 1}"#),
    (TEXTS, r#"{"items": {"pattern": "\\S"}}"#),
    (CLIPPING, r#"{"minimum": 0}"#),
    (SOURCES, r#"{"minItems": 1, "items": {"pattern": "\\S"}}"#),
    (TARGETS, r#"{"minItems": 1}"#),
    (LAYERS, r#"{"minItems": 1}"#),
    (WEIGHTS, r#"{"items": {"exclusiveMinimum": 0}}"#),
    (MODEL, r#"{"pattern": "\\S"}"#),
    (FOLDER, r#"{"pattern": "\\S"}"#),
    (NAME, r#"{"pattern": "^[^/]+$", "not": {"enum": [".", ".."]}}"#),
];

/// What JSON schema says where a value has to keep to `rule`; `None` for a rule that it is not told of.
pub(super) fn bounds(rule: &str) -> Option<serde_json::Value> {
    let (_, bounds) = BOUNDS.into_iter().find(|(name, _)| *name == rule)?;
    serde_json::from_str(bounds).ok()
}

/// The keys whose values have to keep to more than their type, and what they have to be.
pub(super) fn keys_with_rules() -> impl Iterator<Item = (&'static str, &'static str)> {
    rules(&Recipe::default()).into_iter().map(|(key, _, rule)| (key, rule))
}

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
    if let Some(entry) = tree.get("quantization.aware").filter(|_| recipe.quantization.aware) {
        problems.push(Found { origin: entry.origin.clone(), kind: ProblemKind::NotSupported { key: "quantization.aware" } });
    }
    problems
}

/// (key, whether its value is right, what it should be).
fn rules(recipe: &Recipe) -> Vec<(&'static str, bool, &'static str)> {
    let is_not_negative = |number: f64| number.is_finite() && number >= 0.0;
    let is_positive = |number: f64| number.is_finite() && number > 0.0;
    let has_texts = |texts: &[String]| texts.iter().all(|text| !text.trim().is_empty());
    let lora = recipe.lora.clone().unwrap_or_default();
    let has_layers = match &lora.layers {
        Layers::All => true,
        Layers::List(list) => !list.is_empty(),
    };
    let weights = &recipe.dataset.train_weights;
    let has_weights =
        weights.is_empty() || (weights.len() == recipe.dataset.train.len() && weights.iter().all(|weight| is_positive(*weight)));
    let Recipe { dataset, loss, optimizer, schedule, training, output, .. } = recipe;
    vec![
        ("model.path", !recipe.model.path.trim().is_empty(), MODEL),
        ("dataset.train", !dataset.train.is_empty() && has_texts(&dataset.train), SOURCES),
        ("dataset.train_weights", has_weights, WEIGHTS),
        ("dataset.validation", has_texts(&dataset.validation), TEXTS),
        ("dataset.validation_fraction", (0.0..1.0).contains(&dataset.validation_fraction), DECAY),
        ("dataset.max_tokens", dataset.max_tokens >= 2, TWO),
        ("loss.analysis", is_not_negative(loss.analysis.into()), NOT_NEGATIVE),
        ("loss.commentary", is_not_negative(loss.commentary.into()), NOT_NEGATIVE),
        ("loss.final", is_not_negative(loss.final_.into()), NOT_NEGATIVE),
        ("lora.rank", lora.rank >= 1, ONE),
        ("lora.alpha", is_positive(lora.alpha), POSITIVE),
        ("lora.targets", !lora.targets.is_empty(), TARGETS),
        ("lora.layers", has_layers, LAYERS),
        ("optimizer.learning_rate", is_not_negative(optimizer.learning_rate), NOT_NEGATIVE),
        ("optimizer.beta1", (0.0..1.0).contains(&optimizer.beta1), DECAY),
        ("optimizer.beta2", (0.0..1.0).contains(&optimizer.beta2), DECAY),
        ("optimizer.epsilon", is_positive(optimizer.epsilon), POSITIVE),
        ("optimizer.weight_decay", is_not_negative(optimizer.weight_decay), NOT_NEGATIVE),
        ("optimizer.max_gradient_norm", is_not_negative(optimizer.max_gradient_norm), CLIPPING),
        ("schedule.warmup_fraction", (0.0..=1.0).contains(&schedule.warmup_fraction), FRACTION),
        ("schedule.min_fraction", (0.0..=1.0).contains(&schedule.min_fraction), FRACTION),
        ("training.epochs", is_positive(training.epochs), POSITIVE),
        ("training.steps", training.steps != Some(0), ONE),
        ("training.batch_sequences", training.batch_sequences >= 1, ONE),
        ("training.accumulation_steps", training.accumulation_steps >= 1, ONE),
        ("checkpoint.keep", recipe.checkpoint.keep >= 1, ONE),
        ("sampling.prompts", has_texts(&recipe.sampling.prompts), TEXTS),
        ("output.directory", !output.directory.trim().is_empty(), FOLDER),
        ("output.name", is_file_name(&output.name), NAME),
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
