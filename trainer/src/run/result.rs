//! A fully trained model, written in the Hugging Face layout.

use std::path::Path;

use ft_formats::checkpoint::{Checkpoint, CheckpointWriter, ExpertStorage};
use ft_formats::dtype::Dtype;
use tch::{Kind, Tensor};

use crate::adapters::Trainable;
use crate::error::{Error, Result};
use crate::torch::ops::Named;

/// Bytes of a shard at most.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes `trainables` (every weight of the model) in the type of the activations, with the base's config and tokenizer files.
///
/// # Errors
/// Those of the writer, for instance on a full disk; `path` appears whole or not at all.
pub fn write_model(path: &Path, base: &Checkpoint, trainables: &[Trainable], kind: Kind) -> Result<()> {
    let dtype = if kind == Kind::Float { Dtype::F32 } else { Dtype::Bf16 };
    let mut writer = CheckpointWriter::replace(path, base.config(), ExpertStorage::Float(dtype), SHARD_BYTES)?;
    let names: Vec<String> = writer.specs().iter().map(|spec| spec.name.clone()).collect();
    for name in names {
        let trainable =
            trainables.iter().find(|trainable| trainable.name == name).ok_or_else(|| Error::MissingWeight { tensor: name.clone() })?;
        writer.write(&name, &bytes(&trainable.tensor, kind)?)?;
    }
    writer.copy_companions(base)?;
    writer.finish()?;
    Ok(())
}

fn bytes(tensor: &Tensor, kind: Kind) -> Result<Vec<u8>> {
    let convert = || {
        let host = tensor.detach().f_to_kind(kind)?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0u8; host.numel() * kind.elt_size_in_bytes()];
        host.f_copy_data_u8(&mut bytes, host.numel())?;
        Ok(bytes)
    };
    convert().named("write_model", &[tensor])
}
