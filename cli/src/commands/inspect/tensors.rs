//! A safetensors file, tensor by tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ft_formats::safetensors::SafetensorsFile;
use serde::Serialize;

use crate::error::Result;
use crate::terminal::Palette;
use crate::units;

#[derive(Debug, Serialize)]
pub(super) struct TensorFile {
    path: PathBuf,
    bytes: u64,
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor>,
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: u64,
}

impl TensorFile {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path)?;
        let tensors = file.tensors().map(|view| Tensor {
            name: view.name.to_owned(),
            dtype: view.dtype.name(),
            shape: view.shape.to_vec(),
            bytes: view.bytes.len() as u64,
        });
        Ok(Self { path: path.to_owned(), bytes: file.data_bytes(), metadata: file.metadata().clone(), tensors: tensors.collect() })
    }

    pub(super) fn words(&self, palette: Palette) -> String {
        let heading = palette.heading("safetensors");
        let mut text =
            format!("{heading} {}\n{}, {}", self.path.display(), units::counted(self.tensors.len(), "tensor"), units::bytes(self.bytes));
        for (key, value) in &self.metadata {
            text += &format!("\n{key}: {value}");
        }
        let width = self.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
        for tensor in &self.tensors {
            text += &format!("\n{:<width$}  {:<8} {:?}  {}", tensor.name, tensor.dtype, tensor.shape, units::bytes(tensor.bytes));
        }
        text
    }
}
