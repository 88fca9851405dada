//! A model with its experts stored another way: in MXFP4, or as bf16.
//!
//! Tensors go one by one, an expert at a time, from the files of the source to those of the result; all but the experts' matrices are
//! carried over byte for byte. Arithmetic and writing overlap, and the system is told what is read next. Nothing appears under the
//! result's name before it is published, which leaves the caller time to look at it.

mod convert;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Instant;

use ft_quant::Codec;
use ft_quant::mxfp4::{BLOCK_ELEMENTS, Packing, ScaleRule};

use crate::checkpoint::{Checkpoint, CheckpointWriter, ExpertStorage, SealedCheckpoint};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::report::{ConversionReport, ScaleSource};
use crate::stream::in_background;

/// How the experts of the result are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExpertTarget {
    /// Packed; every matrix is [out, in] then.
    Mxfp4(Packing),
    /// Plain, [in, out].
    Bf16,
}

impl ExpertTarget {
    /// The same in terms of checkpoints.
    #[must_use]
    pub fn storage(self) -> ExpertStorage {
        match self {
            Self::Mxfp4(_) => ExpertStorage::Mxfp4,
            Self::Bf16 => ExpertStorage::Float(Dtype::Bf16),
        }
    }

    /// How blocks are packed, where there are any.
    #[must_use]
    pub fn packing(self) -> Option<Packing> {
        match self {
            Self::Mxfp4(packing) => Some(packing),
            Self::Bf16 => None,
        }
    }
}

/// What is to be converted, to what.
#[derive(Debug, Clone, Copy)]
pub struct Requantization<'a> {
    /// The model directory.
    pub source: &'a Path,
    /// Where the result goes.
    pub target: &'a Path,
    /// What it is.
    pub to: ExpertTarget,
    /// An MXFP4 model of the same sizes whose scales the rule `Hint` starts from; without one it takes those of the source, if it has any.
    pub hints_from: Option<&'a Path>,
    /// Bytes of tensors in a file at most, unless a single tensor has more.
    pub max_shard_bytes: u64,
}

/// A model that is converted and not yet published; dropped, it leaves nothing.
#[derive(Debug)]
pub struct Requantized {
    report: ConversionReport,
    sealed: SealedCheckpoint,
}

impl Requantized {
    /// What it cost.
    #[must_use]
    pub fn report(&self) -> &ConversionReport {
        &self.report
    }

    /// Where the model is until it is published; it can be opened there.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.sealed.path()
    }

    /// The model alone, not yet published.
    #[must_use]
    pub fn into_sealed(self) -> SealedCheckpoint {
        self.sealed
    }

    /// Makes the model appear under its name.
    ///
    /// # Errors
    /// [`Error::Exists`] when something was put in its place meanwhile, [`Error::Io`].
    pub fn publish(self) -> Result<PathBuf> {
        self.sealed.publish()
    }
}

impl Requantization<'_> {
    /// Bytes of all tensors of the result.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`]; [`Error::Config`] when the sizes of the model do not allow MXFP4.
    pub fn target_bytes(&self) -> Result<u64> {
        let source = Checkpoint::open(self.source)?;
        Ok(source.specs_as(self.to.storage())?.iter().filter_map(|spec| spec.byte_length()).sum())
    }

    /// Converts the model. `progress` sees the bytes of the source's tensors that are done, and of all.
    ///
    /// Peak memory is a few experts, whatever the size of the model.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`CheckpointWriter::restored`]; [`Error::Packed`], [`Error::Unpackable`] or [`Error::NotFinite`]
    /// for weights that are no numbers; [`Error::NotPacked`] or [`Error::ForeignHints`] for a model of hints that has none that fit.
    pub fn run(&self, codec: &Codec, progress: &mut dyn FnMut(u64, u64)) -> Result<Requantized> {
        let started = Instant::now();
        let source = Checkpoint::open(self.source)?;
        let hints = self.hints_from.map(|path| open_hints(path, &source)).transpose()?;
        let writer = CheckpointWriter::restored(self.target, &source, self.to.storage(), self.max_shard_bytes)?;
        let target_bytes = writer.total_bytes();
        let conversion = convert::Conversion { source: &source, hints: hints.as_ref(), to: self.to, codec };
        let (writer, tensors) = in_background(writer, &source, |output| conversion.run(output, progress))?;
        let report = ConversionReport {
            source: self.source.to_owned(),
            target: self.target.to_owned(),
            adapter: None,
            from: source.expert_storage(),
            to: self.to.storage(),
            packing: self.to.packing(),
            scales: self.scale_source(&source),
            tensors,
            source_bytes: source.stored_bytes(),
            target_bytes,
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok(Requantized { report, sealed: writer.seal()? })
    }

    fn scale_source(&self, source: &Checkpoint) -> ScaleSource {
        let ExpertTarget::Mxfp4(Packing { rule: ScaleRule::Hint, .. }) = self.to else { return ScaleSource::Values };
        match self.hints_from {
            Some(path) => ScaleSource::Model(path.to_owned()),
            None if source.expert_storage() == ExpertStorage::Mxfp4 => ScaleSource::Model(self.source.to_owned()),
            None => ScaleSource::Values,
        }
    }
}

/// Opens a model for its scales.
pub(crate) fn open_hints(path: &Path, source: &Checkpoint) -> Result<Checkpoint> {
    let hints = Checkpoint::open(path)?;
    if hints.expert_storage() != ExpertStorage::Mxfp4 {
        return Err(Error::NotPacked { path: path.to_owned() });
    }
    let config = source.config();
    for (layer, projection) in source.expert_matrices() {
        let tensor = format!("{}_scales", projection.tensor_name(layer));
        let [input, output] = projection.dims(config);
        let expected = vec![config.num_local_experts, output, input.div_ceil(BLOCK_ELEMENTS)];
        let found = hints.specs().iter().find(|spec| spec.name == tensor).map(|spec| spec.shape.clone()).unwrap_or_default();
        if found != expected {
            return Err(Error::ForeignHints { path: path.to_owned(), tensor, expected, found });
        }
    }
    Ok(hints)
}
