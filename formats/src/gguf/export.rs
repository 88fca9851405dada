//! A model as a GGUF file: tensor by tensor, the experts one at a time, while the disk takes what was converted before.
//!
//! Nothing appears under the file's name before it is published, which leaves the caller time to look at it. Floats are converted to
//! nearest, ties to even; values that are no finite numbers, or that a type has no place for, are errors that name them.
//!
//! MXFP4 experts stay what they are where MXFP4 is wanted, byte for byte in another order, and are unpacked exactly for every other type.
//! Plain experts become MXFP4 by this program's own packing and the given rule; the converter of llama.cpp packs none, and llama-quantize
//! by a rule that clips more.
//!
//! Letters: e experts.

mod convert;
mod encode;
#[cfg(test)]
mod tests;
mod transpose;

use std::path::{Path, PathBuf};
use std::time::Instant;

use ft_quant::mxfp4::Packing;

use super::{FileType, GgufSpec, GgufTensor, GgufWriter, SealedGguf, TensorType, gguf_tensors, model_metadata};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::stream::in_background;

/// Chooses the type of a tensor.
pub type ChooseType<'a> = &'a dyn Fn(&GgufTensor) -> Result<TensorType>;

/// What is to be written, and how.
#[derive(Clone, Copy)]
pub struct GgufExport<'a> {
    /// The model.
    pub source: &'a Checkpoint,
    /// The file, or NAME.gguf of a set that is split.
    pub target: &'a Path,
    /// Type of every tensor that is not always f32; [`super::GgufTarget::tensor_type`] and the like.
    pub types: ChooseType<'a>,
    /// What the file says of itself; [`super::GgufTarget::file_type`].
    pub file_type: FileType,
    /// How plain experts are packed where their type is MXFP4.
    pub packing: Packing,
    /// Bytes of tensors in a file at most, unless a single tensor has more; one file when absent.
    pub split_bytes: Option<u64>,
    /// Name of the model; that of its directory when absent.
    pub name: Option<&'a str>,
    /// Chat template of a model that brings none.
    pub template: Option<&'a str>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufReport {
    /// Every tensor with its type, in the order of the file.
    pub tensors: Vec<GgufSpec>,
    /// Files that the model takes.
    pub num_files: usize,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Bytes of the files.
    pub target_bytes: u64,
    /// Milliseconds that it took, to the disk.
    pub elapsed_ms: u128,
}

/// A file that is whole and not yet published; dropped, it leaves nothing.
#[derive(Debug)]
pub struct ExportedGguf {
    report: GgufReport,
    sealed: SealedGguf,
}

impl ExportedGguf {
    /// What was written.
    #[must_use]
    pub fn report(&self) -> &GgufReport {
        &self.report
    }

    /// Where the file is until it is published, or the first of several beside which the others lie; it can be opened there.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.sealed.path()
    }

    /// Makes the files appear under their names, which it gives in order.
    ///
    /// # Errors
    /// As [`SealedGguf::publish`].
    pub fn publish(self) -> Result<Vec<PathBuf>> {
        self.sealed.publish()
    }
}

impl GgufExport<'_> {
    /// Every tensor of the file with its type, in order.
    ///
    /// # Errors
    /// [`Error::GgufTensor`] for a tensor that cannot be of its type.
    pub fn plan(&self) -> Result<Vec<GgufSpec>> {
        self.planned().map(|planned| planned.into_iter().map(|(_, spec)| spec).collect())
    }

    fn planned(&self) -> Result<Vec<(GgufTensor, GgufSpec)>> {
        let mut planned = Vec::new();
        for tensor in gguf_tensors(self.source.config()) {
            let tensor_type = if tensor.is_always_f32() { TensorType::F32 } else { (self.types)(&tensor)? };
            let spec = GgufSpec { name: tensor.name.clone(), tensor_type, shape: tensor.shape.clone() };
            spec.byte_length()?;
            planned.push((tensor, spec));
        }
        Ok(planned)
    }

    /// Writes the model. `progress` sees the bytes of the source's tensors that are done, and of all.
    ///
    /// Peak memory is a few experts and the vocabulary, whatever the size of the model.
    ///
    /// # Errors
    /// Those of [`GgufExport::plan`], [`model_metadata`] and [`GgufWriter`]; [`Error::Packed`], [`Error::NotFinite`] or
    /// [`Error::OutOfRange`] for weights that are no numbers, or none that their type can hold.
    pub fn run(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<ExportedGguf> {
        let started = Instant::now();
        let planned = self.planned()?;
        let (tensors, specs): (Vec<GgufTensor>, Vec<GgufSpec>) = planned.into_iter().unzip();
        let directory = std::path::absolute(self.source.path()).unwrap_or_default();
        let directory_name = directory.file_name().unwrap_or_default().to_string_lossy();
        let name = self.name.unwrap_or(&directory_name);
        let metadata = model_metadata(self.source, &tensors, name, self.file_type, self.template)?;
        let writer = GgufWriter::create(self.target, &metadata, &specs, self.split_bytes)?;
        drop(metadata);
        let conversion = convert::Conversion { source: self.source, tensors: &tensors, specs: &specs, packing: self.packing };
        let (writer, ()) = in_background(writer, self.source, |output| conversion.run(output, progress))?;
        let sealed = writer.seal()?;
        let report = GgufReport {
            tensors: specs,
            num_files: sealed.num_files(),
            source_bytes: self.source.total_bytes(),
            target_bytes: sealed.bytes(),
            elapsed_ms: started.elapsed().as_millis(),
        };
        Ok(ExportedGguf { report, sealed })
    }
}
