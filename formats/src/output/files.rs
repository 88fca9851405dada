//! Files that belong together, in the making.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{partial_path, remove, sync_parent};
use crate::error::{Error, InFile, Result};

/// A hidden directory in which files are made that appear beside it, all of them or none as far as the system allows.
///
/// Inside they have their names already, so that a set of files can be looked at as a whole before it appears.
#[derive(Debug)]
pub(crate) struct PartialFiles {
    directory: PathBuf,
    /// Where the files will be; the first is the one by which the others are found.
    targets: Vec<PathBuf>,
}

impl PartialFiles {
    /// Begins files at `targets`, which lie in one directory and must not exist; the directory is made. `name` is what they have in
    /// common, in the same directory.
    pub(crate) fn create(name: &Path, targets: Vec<PathBuf>) -> Result<Self> {
        targets.iter().try_for_each(|target| refuse_existing(target))?;
        let directory = partial_path(name);
        remove(&directory)?;
        fs::create_dir_all(&directory).in_file("create", &directory)?;
        Ok(Self { directory, targets })
    }

    /// Where a file is until it is published.
    pub(crate) fn partial(&self, index: usize) -> PathBuf {
        self.directory.join(self.targets[index].file_name().unwrap_or_default())
    }

    /// Where a file will be.
    pub(crate) fn target(&self, index: usize) -> &Path {
        &self.targets[index]
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.targets.len()
    }

    /// Makes the files appear, the first one last: a kill in between leaves files that nothing leads to. Every file has been synced.
    pub(crate) fn publish(self) -> Result<Vec<PathBuf>> {
        self.targets.iter().try_for_each(|target| refuse_existing(target))?;
        let mut order = (0..self.len()).rev();
        let renamed = order.try_for_each(|index| {
            let partial = self.partial(index);
            fs::rename(&partial, &self.targets[index]).in_file("rename", &partial)
        });
        if let Err(error) = renamed {
            // What is under its name already would be of no use; the error is the one that matters.
            for (index, target) in self.targets.iter().enumerate() {
                if !self.partial(index).exists() {
                    let _ = fs::remove_file(target);
                }
            }
            return Err(error);
        }
        sync_parent(&self.directory)?;
        Ok(self.targets.clone())
    }
}

impl Drop for PartialFiles {
    fn drop(&mut self) {
        // Nothing can be reported here, and the next attempt removes what is left.
        let _ = remove(&self.directory);
    }
}

/// Whatever is there, even a link that leads nowhere, is not replaced.
fn refuse_existing(target: &Path) -> Result<()> {
    match fs::symlink_metadata(target) {
        Ok(_) => Err(Error::FileExists { path: target.to_owned() }),
        Err(_) => Ok(()),
    }
}

/// Syncs a file of a [`PartialFiles`] that is whole.
pub(crate) fn sync_file(file: &File, path: &Path) -> Result<()> {
    file.sync_all().in_file("sync", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn begin(root: &Path) -> Result<PartialFiles> {
        let files = PartialFiles::create(&root.join("set"), vec![root.join("set-1"), root.join("set-2")])?;
        (0..files.len()).for_each(|index| fs::write(files.partial(index), [b'0' + index as u8]).unwrap());
        Ok(files)
    }

    #[test]
    fn files_appear_when_they_are_published_and_nothing_else_does() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("a/b");
        let files = begin(&home).unwrap();
        assert_eq!(names(&home), [".set.partial"]);
        files.publish().unwrap();
        assert_eq!(names(&home), ["set-1", "set-2"]);
        assert_eq!(fs::read(home.join("set-2")).unwrap(), b"1");
        drop(PartialFiles::create(&home.join("other"), vec![home.join("other")]).unwrap());
        assert_eq!(names(&home), ["set-1", "set-2"]);
    }

    #[test]
    fn what_is_there_already_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let files = begin(root.path()).unwrap();
        fs::write(root.path().join("set-2"), "mine").unwrap();
        assert!(matches!(files.publish(), Err(Error::FileExists { path }) if path.ends_with("set-2")));
        assert!(matches!(begin(root.path()), Err(Error::FileExists { .. })));
        assert_eq!(names(root.path()), ["set-2"]);
        fs::remove_file(root.path().join("set-2")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("set-1")).unwrap();
        assert!(matches!(begin(root.path()), Err(Error::FileExists { .. })));
    }

    #[test]
    fn a_set_of_which_one_file_cannot_be_renamed_leaves_none() {
        let root = tempfile::tempdir().unwrap();
        let files = begin(root.path()).unwrap();
        fs::remove_file(files.partial(0)).unwrap();
        assert!(matches!(files.publish(), Err(Error::Io { action: "rename", .. })));
        assert_eq!(names(root.path()), Vec::<String>::new());
    }
}
