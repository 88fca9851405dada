//! A run: how far it came, and what it left.

use std::fs;
use std::path::{Path, PathBuf};

use ft_trainer::recipe::Recipe;
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::terminal::Palette;
use crate::units::counted;

#[derive(Debug, Serialize)]
pub(super) struct Run {
    path: PathBuf,
    model: Option<String>,
    training: Option<&'static str>,
    steps: usize,
    first_loss: Option<f64>,
    last_loss: Option<f64>,
    validation_loss: Option<f64>,
    checkpoints: Vec<String>,
    /// The adapter or model, when the run is complete.
    result: Option<PathBuf>,
}

impl Run {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let recipe_path = path.join("recipe.toml");
        let recipe = if recipe_path.exists() { Some(Recipe::from_file(&recipe_path, &[])?) } else { None };
        let lines = metrics(&path.join("metrics.jsonl"))?;
        let losses = || lines.iter().filter_map(|line| line.get("loss")?.as_f64());
        Ok(Self {
            path: path.to_owned(),
            model: recipe.as_ref().map(|recipe| recipe.model.path.clone()),
            training: recipe.as_ref().map(|recipe| if recipe.lora().is_some() { "lora" } else { "full" }),
            steps: losses().count(),
            first_loss: losses().next(),
            last_loss: losses().next_back(),
            validation_loss: lines.iter().filter_map(|line| line.get("validation_loss")?.as_f64()).next_back(),
            checkpoints: checkpoints(&path.join("checkpoints")),
            result: ["adapter", "model"].map(|name| path.join(name)).into_iter().find(|result| result.is_dir()),
        })
    }

    pub(super) fn words(&self, palette: Palette) -> String {
        let number = |loss: Option<f64>| loss.map_or("-".to_owned(), |loss| format!("{loss:.4}"));
        let state = match &self.result {
            Some(result) => format!("complete: {}", result.display()),
            None => "not complete; `ft train RECIPE --resume` goes on with it".to_owned(),
        };
        format!(
            "{} {}\n{} training of {}\n{}, loss {} to {}, validation loss {}\ncheckpoints: {}\n{state}",
            palette.heading("run"),
            self.path.display(),
            self.training.unwrap_or("unknown"),
            self.model.as_deref().unwrap_or("an unknown model"),
            counted(self.steps, "step"),
            number(self.first_loss),
            number(self.last_loss),
            number(self.validation_loss),
            if self.checkpoints.is_empty() { "none".to_owned() } else { self.checkpoints.join(", ") },
        )
    }
}

/// The complete lines of a metrics file; the last one may be in the writing.
fn metrics(path: &Path) -> Result<Vec<Value>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).map_err(|source| Error::File { action: "read", path: path.to_owned(), source })?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Names of the checkpoints, in the order of their steps.
fn checkpoints(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<(u64, String)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            Some((name.strip_prefix("step-")?.parse().ok()?, name))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_under_way_is_summed_up() {
        let folder = tempfile::tempdir().unwrap();
        for step in [10, 9, 100] {
            fs::create_dir_all(folder.path().join(format!("checkpoints/step-{step}"))).unwrap();
        }
        let lines = "{\"step\":1,\"loss\":12.5}\n{\"step\":1,\"validation_loss\":3.0}\n{\"step\":2,\"loss\":11.25}\n{\"step\":3,\"lo";
        fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        let run = Run::read(folder.path()).unwrap();
        assert_eq!((run.steps, run.first_loss, run.last_loss, run.validation_loss), (2, Some(12.5), Some(11.25), Some(3.0)));
        assert_eq!(run.checkpoints, ["step-9", "step-10", "step-100"]);
        assert!(run.words(Palette::plain()).contains("not complete"));
    }
}
