//! An adapter: what it adapts, and how.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ft_formats::peft::{AdapterTarget, PeftAdapter};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::terminal::Palette;
use crate::units;

#[derive(Debug, Serialize)]
pub(super) struct Adapter {
    path: PathBuf,
    base_model: Option<String>,
    rank: usize,
    alpha: f64,
    rslora: bool,
    parameters: u64,
    bytes: u64,
    /// Updates of each kind.
    targets: BTreeMap<&'static str, usize>,
    layers: Vec<usize>,
}

impl Adapter {
    /// Reads the adapter, which checks every tensor, and sums up.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let adapter = PeftAdapter::open(path)?;
        let config = adapter.config();
        let mut targets = BTreeMap::new();
        let mut layers = Vec::new();
        for pair in adapter.pairs() {
            let (name, layer) = kind(&pair.target);
            *targets.entry(name).or_default() += 1;
            layers.extend(layer);
        }
        layers.sort_unstable();
        layers.dedup();
        Ok(Self {
            path: path.to_owned(),
            base_model: config.base_model.clone(),
            rank: config.rank,
            alpha: config.alpha,
            rslora: config.use_rslora,
            parameters: adapter.pairs().iter().map(|pair| (pair.a.len() + pair.b.len()) as u64).sum(),
            bytes: directory_bytes(path)?,
            targets,
            layers,
        })
    }

    pub(super) fn words(&self, palette: Palette) -> String {
        let targets: Vec<String> = self.targets.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        format!(
            "{} {}\n{} of rank {}, alpha {}, for {}\n{} parameters, {}\non {} of layers {:?}",
            palette.heading("adapter"),
            self.path.display(),
            if self.rslora { "rsLoRA" } else { "LoRA" },
            self.rank,
            self.alpha,
            self.base_model.as_deref().unwrap_or("a model that it does not name"),
            units::parameters(self.parameters),
            units::bytes(self.bytes),
            targets.join(", "),
            self.layers,
        )
    }
}

fn kind(target: &AdapterTarget) -> (&'static str, Option<usize>) {
    match target {
        AdapterTarget::Attention { layer, .. } => ("attention", Some(*layer)),
        AdapterTarget::Experts { layer, .. } => ("experts", Some(*layer)),
        AdapterTarget::Router { layer } => ("router", Some(*layer)),
        AdapterTarget::LmHead => ("lm_head", None),
    }
}

fn directory_bytes(path: &Path) -> Result<u64> {
    let read = || -> std::io::Result<u64> { fs::read_dir(path)?.map(|entry| Ok(entry?.metadata()?.len())).sum() };
    read().map_err(|source| Error::File { action: "read", path: path.to_owned(), source })
}
