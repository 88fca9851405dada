//! Files and directories that appear whole or not at all.
//!
//! Everything is written under a hidden sibling name, synced, and renamed. A kill leaves at most the sibling, which the next attempt
//! replaces; it is never taken for the result.

mod files;
mod slots;
mod write_behind;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, InFile, Result};

pub(crate) use files::{PartialFiles, sync_file};
pub(crate) use slots::Slots;
pub(crate) use write_behind::WriteBehind;

/// The sibling under which `path` is written until it is whole.
pub(crate) fn partial_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    path.with_file_name(name)
}

/// Makes the entries of the directory that holds `path` survive a crash.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|directory| directory.sync_all()).in_file("sync", parent)
}

/// Writes a small file and syncs it; for use inside a [`PartialDirectory`].
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().in_file("write", path)
}

/// A directory in the making.
#[derive(Debug)]
pub(crate) struct PartialDirectory {
    target: PathBuf,
    partial: PathBuf,
    /// A file that marks a directory as one that may be replaced.
    replaced: Option<&'static str>,
    is_finished: bool,
}

impl PartialDirectory {
    /// Begins the directory `target`, which must not exist or be empty, or hold the file `replaced`.
    pub(crate) fn create(target: &Path, replaced: Option<&'static str>) -> Result<Self> {
        refuse_occupied(target, replaced)?;
        // Without this, "x/" and "x/." would put the sibling inside, and ".." would have none.
        let target = std::path::absolute(target).in_file("create", target)?.components().collect::<PathBuf>();
        if target.file_name().is_none() {
            return Err(Error::Exists { path: target });
        }
        let partial = partial_path(&target);
        remove(&partial)?;
        fs::create_dir_all(&partial).in_file("create", &partial)?;
        Ok(Self { target, partial, replaced, is_finished: false })
    }

    /// Where its files go until it is finished.
    pub(crate) fn path(&self) -> &Path {
        &self.partial
    }

    /// Where it will be.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Makes it appear under its name. Every file in it has been synced.
    pub(crate) fn finish(mut self) -> Result<()> {
        File::open(&self.partial).and_then(|directory| directory.sync_all()).in_file("sync", &self.partial)?;
        refuse_occupied(&self.target, self.replaced)?;
        // A rename replaces an empty directory, but no other.
        let old = partial_path(&self.target).with_extension("replaced");
        remove(&old)?;
        if self.replaced.is_some_and(|file| self.target.join(file).exists()) {
            fs::rename(&self.target, &old).in_file("rename", &self.target)?;
        }
        fs::rename(&self.partial, &self.target).in_file("rename", &self.partial)?;
        self.is_finished = true;
        sync_parent(&self.target)?;
        remove(&old)
    }
}

impl Drop for PartialDirectory {
    fn drop(&mut self) {
        if !self.is_finished {
            // Nothing can be reported here, and the next attempt removes what is left.
            let _ = remove(&self.partial);
        }
    }
}

fn refuse_occupied(path: &Path, replaced: Option<&str>) -> Result<()> {
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) if replaced.is_some_and(|file| path.join(file).exists()) => Ok(()),
            Some(_) => Err(Error::Exists { path: path.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { action: "create", path: path.to_owned(), source }),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Io { action: "remove", path: path.to_owned(), source }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_only_when_finished() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("model");
        let partial = PartialDirectory::create(&target, None).unwrap();
        write_synced(&partial.path().join("a"), b"x").unwrap();
        assert!(!target.exists());
        partial.finish().unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"x");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_not_finished_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        drop(PartialDirectory::create(&root.path().join("model"), None).unwrap());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_occupied_directory_is_refused_and_an_empty_one_taken() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("model/");
        fs::create_dir(&target).unwrap();
        PartialDirectory::create(&target, None).unwrap().finish().unwrap();
        fs::write(target.join("a"), b"x").unwrap();
        assert!(matches!(PartialDirectory::create(&target, None), Err(Error::Exists { .. })));
        assert!(matches!(PartialDirectory::create(&target, Some("b")), Err(Error::Exists { .. })));
    }

    #[test]
    fn what_may_be_replaced_stays_until_its_successor_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("model");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("a"), b"old").unwrap();
        let partial = PartialDirectory::create(&target, Some("a")).unwrap();
        write_synced(&partial.path().join("a"), b"new").unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"old");
        partial.finish().unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"new");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
