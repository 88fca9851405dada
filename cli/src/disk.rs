//! Room on the disk, asked for before long work begins.

use std::path::Path;

use ft_trainer::run::directory::free_bytes;

use crate::error::{Error, Result};

/// Room for config and tokenizer beside the tensors of a model.
const COMPANION_BYTES: u64 = 64 << 20;

/// Fails when a model of `tensor_bytes` does not fit where `directory` is to be.
pub(crate) fn check_room(directory: &Path, tensor_bytes: u64) -> Result<()> {
    let needed_bytes = tensor_bytes.saturating_add(COMPANION_BYTES);
    let path = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    match free_bytes(&path) {
        Some(available_bytes) if available_bytes < needed_bytes => {
            Err(Error::DiskSpace { needed_bytes, available_bytes, path: directory.to_owned() })
        }
        _ => Ok(()),
    }
}
