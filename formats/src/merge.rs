//! A model with an adapter folded into its weights: `W + scaling * B A`, computed in f32 and rounded once to what the weight is stored in.
//!
//! Tensors go one by one, an expert at a time, from the files of the model to those of the result; arithmetic and writing overlap. What the
//! adapter does not touch is carried over byte for byte, single experts of a tensor too. Nothing appears under the result's name before it is
//! published. Beside the adapter, which is read whole, memory holds a few experts.

mod fold;
mod product;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Instant;

use ft_quant::mxfp4::{Packing, ScaleRule};

use crate::checkpoint::{Checkpoint, CheckpointWriter, ExpertStorage, SealedCheckpoint};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::peft::PeftAdapter;
use crate::report::{AdapterReport, ConversionReport, ScaleSource};
use crate::requantize::open_hints;
use crate::stream::in_background;

/// How the experts of the result are stored; all other tensors keep their types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MergeTarget {
    /// As those of the model.
    Keep,
    /// In MXFP4. Each block takes of the scale that it had, the standard one and the next larger one that with the least error.
    Mxfp4,
    /// As bf16.
    Bf16,
}

/// What is to be merged.
#[derive(Debug, Clone, Copy)]
pub struct Merge<'a> {
    /// The model directory.
    pub model: &'a Path,
    /// The adapter's directory.
    pub adapter: &'a Path,
    /// Where the result goes.
    pub target: &'a Path,
    /// How its experts are stored.
    pub to: MergeTarget,
    /// An MXFP4 model of the same sizes whose scales blocks start from; without one they start from those of the model, if it has any.
    pub hints_from: Option<&'a Path>,
    /// Bytes of tensors in a file at most, unless a single tensor has more.
    pub max_shard_bytes: u64,
}

/// A model with its adapter, not yet published; dropped, it leaves nothing.
#[derive(Debug)]
pub struct Merged {
    report: ConversionReport,
    sealed: SealedCheckpoint,
}

impl Merged {
    /// What was changed, and what storing it cost.
    #[must_use]
    pub fn report(&self) -> &ConversionReport {
        &self.report
    }

    /// Where the model is until it is published; it can be opened there.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.sealed.path()
    }

    /// Makes the model appear under its name.
    ///
    /// # Errors
    /// [`crate::Error::Exists`] when something was put in its place meanwhile, [`crate::Error::Io`].
    pub fn publish(self) -> Result<PathBuf> {
        self.sealed.publish()
    }
}

impl Merge<'_> {
    /// Bytes of all tensors of the result.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`]; [`crate::Error::Config`] when the sizes of the model do not allow MXFP4.
    pub fn target_bytes(&self) -> Result<u64> {
        let model = Checkpoint::open(self.model)?;
        Ok(model.specs_as(self.storage(&model))?.iter().filter_map(|spec| spec.byte_length()).sum())
    }

    /// Merges. `progress` sees the bytes of the model's tensors that are done, and of all.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`], [`PeftAdapter::open_for`] and [`CheckpointWriter::restored`]; [`crate::Error::Unmergeable`] for an update
    /// that makes a weight no number; [`crate::Error::Packed`], [`crate::Error::Unpackable`] or [`crate::Error::NotFinite`] for weights that
    /// are none; [`crate::Error::NotPacked`] or [`crate::Error::ForeignHints`] for a model of hints that has none that fit.
    pub fn run(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Merged> {
        let started = Instant::now();
        let source = Checkpoint::open(self.model)?;
        let adapter = PeftAdapter::open_for(self.adapter, source.config())?;
        let hints = self.hints_from.map(|path| open_hints(path, &source)).transpose()?;
        let to = self.storage(&source);
        let writer = CheckpointWriter::restored(self.target, &source, to, self.max_shard_bytes)?;
        let target_bytes = writer.total_bytes();
        let packing = Packing::from(ScaleRule::Hint);
        let folding = fold::Folding { source: &source, adapter: &adapter, hints: hints.as_ref(), to, packing };
        let (writer, folded) = in_background(writer, &source, |output| folding.run(output, progress))?;
        let changed_experts = folded.experts.iter().filter(|is_changed| **is_changed).count();
        let report = ConversionReport {
            source: self.model.to_owned(),
            target: self.target.to_owned(),
            adapter: Some(AdapterReport {
                path: self.adapter.to_owned(),
                base_model: adapter.config().base_model.clone(),
                changed_tensors: folded.changed_tensors,
                kept_tensors: folded.kept_tensors,
                changed_experts,
                kept_experts: folded.experts.len() - changed_experts,
            }),
            from: source.expert_storage(),
            to,
            packing: (to == ExpertStorage::Mxfp4).then_some(packing),
            scales: self.scale_source(&source),
            tensors: folded.tensors,
            source_bytes: source.total_bytes(),
            target_bytes,
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok(Merged { report, sealed: writer.seal()? })
    }

    fn storage(&self, model: &Checkpoint) -> ExpertStorage {
        match self.to {
            MergeTarget::Keep => model.expert_storage(),
            MergeTarget::Mxfp4 => ExpertStorage::Mxfp4,
            MergeTarget::Bf16 => ExpertStorage::Float(Dtype::Bf16),
        }
    }

    fn scale_source(&self, model: &Checkpoint) -> ScaleSource {
        match self.hints_from {
            _ if self.storage(model) != ExpertStorage::Mxfp4 => ScaleSource::Values,
            Some(path) => ScaleSource::Model(path.to_owned()),
            None if model.expert_storage() == ExpertStorage::Mxfp4 => ScaleSource::Model(self.model.to_owned()),
            None => ScaleSource::Values,
        }
    }
}
