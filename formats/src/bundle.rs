//! A directory of an export: weights and what lies beside them, whole or not at all.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::output::{PartialDirectory, write_synced};

/// A directory in the making; it appears under its name when it is published, and leaves nothing when it is dropped before.
#[derive(Debug)]
pub struct Bundle {
    directory: PartialDirectory,
}

impl Bundle {
    /// Begins `directory`, which must not exist, or be empty; its parents are made.
    ///
    /// # Errors
    /// [`crate::Error::Exists`], [`crate::Error::Io`].
    pub fn create(directory: &Path) -> Result<Self> {
        Ok(Self { directory: PartialDirectory::create(directory, None)? })
    }

    /// Where its files go until it is published.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        write_synced(&self.directory.path().join(name), text.as_bytes())
    }

    /// Makes it appear under its name, which it gives.
    ///
    /// # Errors
    /// [`crate::Error::Exists`] when something was put in its place meanwhile, [`crate::Error::Io`].
    pub fn publish(self) -> Result<PathBuf> {
        let target = self.directory.target().to_owned();
        self.directory.finish()?;
        Ok(target)
    }
}
