//! The model card of an export, from what is known of the model.

use std::fs;
use std::path::Path;

use ft_formats::card::{CardKind, ModelCard, QuantizationFigures, TrainingFigures};
use ft_quant::Accuracy;
use ft_trainer::verification::Verification;
use serde_json::Value;

/// The file of a model card.
pub(super) const CARD: &str = "README.md";

/// The card of `kind` for `model`. Where a run made the model, its recipe and its last figures are in it.
pub(super) fn card(model: &Path, name: &str, kind: CardKind, from: &str, to: &str, verification: Option<&Verification>) -> String {
    // A run keeps its model beside its recipe: runs/NAME/model.
    let run = model.canonicalize().ok().and_then(|model| model.parent().map(Path::to_owned));
    let read = |file: &str| run.as_ref().and_then(|run| fs::read_to_string(run.join(file)).ok());
    let (recipe, metrics) = (read("recipe.toml"), read("metrics.jsonl"));
    let card = ModelCard {
        name: name.to_owned(),
        kind,
        base_model: recipe.as_deref().and_then(base_model),
        recipe,
        data_fingerprint: run.as_deref().and_then(data_fingerprint),
        metrics: metrics.as_deref().and_then(TrainingFigures::last_of),
        quantization: verification.and_then(|verification| quantization(verification, from, to)),
    };
    card.text()
}

/// `model.path` of a recipe.
fn base_model(recipe: &str) -> Option<String> {
    let recipe: toml::Table = recipe.parse().ok()?;
    Some(recipe.get("model")?.get("path")?.as_str()?.to_owned())
}

/// The fingerprint of the training data, which every checkpoint of a run keeps.
fn data_fingerprint(run: &Path) -> Option<String> {
    let checkpoints = fs::read_dir(run.join("checkpoints")).ok()?;
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let newest = checkpoints.filter_map(|entry| Some(entry.ok()?.path())).max_by_key(|path| step(path))?;
    let state: Value = serde_json::from_str(&fs::read_to_string(newest.join("state.json")).ok()?).ok()?;
    Some(state["identity"]["dataset"].as_str()?.to_owned())
}

/// What storing the weights otherwise cost, if anything.
fn quantization(verification: &Verification, from: &str, to: &str) -> Option<QuantizationFigures> {
    let total = verification.tensors.iter().filter_map(|tensor| tensor.deviation).reduce(std::ops::Add::add)?;
    Some(QuantizationFigures {
        from: from.to_owned(),
        to: to.to_owned(),
        signal_to_noise_db: total.sqnr_db(),
        relative_error: Accuracy::relative_error(&total),
        worst: verification.worst().map(|worst| (worst.place(), worst.sqnr_db())),
    })
}
