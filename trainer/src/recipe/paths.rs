//! Where the relative paths of a recipe lead.

use std::path::{Path, PathBuf};

use super::Recipe;

/// Rewrites each input path that leads nowhere from the current directory but does from `folder`, the recipe's.
pub(super) fn resolve(recipe: &mut Recipe, folder: &Path) {
    resolve_text(&mut recipe.model.path, folder);
    for origin in recipe.dataset.train.iter_mut().chain(&mut recipe.dataset.validation) {
        resolve_text(origin, folder);
    }
    if let Some(adapter) = recipe.lora.as_mut().and_then(|lora| lora.initial_adapter.as_mut()) {
        let mut text = adapter.to_string_lossy().into_owned();
        resolve_text(&mut text, folder);
        *adapter = PathBuf::from(text);
    }
}

fn resolve_text(text: &mut String, folder: &Path) {
    if Path::new(text.as_str()).is_absolute() || leads_somewhere(text) {
        return;
    }
    let beside = folder.join(text.as_str()).to_string_lossy().into_owned();
    if leads_somewhere(&beside) {
        *text = beside;
    }
}

/// Whether `text` is the path of something, or a pattern that matches something.
fn leads_somewhere(text: &str) -> bool {
    let matches = || glob::glob(text).is_ok_and(|mut entries| entries.next().is_some());
    Path::new(text).exists() || (text.contains(['*', '?', '[']) && matches())
}
