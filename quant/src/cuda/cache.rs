//! Compiled kernels on disk: compiling takes seconds, and the result depends on little.
//!
//! A cache never fails: what cannot be read is compiled again, what cannot be written is not kept.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of the hash that a file begins with.
const HASH_BYTES: usize = blake3::OUT_LEN;

/// A folder of compiled kernels, or none.
pub(super) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// `ft/kernels` in the cache folder of this person. Source: XDG Base Directory Specification 0.8, `XDG_CACHE_HOME`.
    pub(super) fn of_this_person() -> Self {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        Self { folder: folder.map(|folder| folder.join("ft/kernels")) }
    }

    /// The folder, if there is one.
    pub(super) fn folder(self) -> Option<PathBuf> {
        self.folder
    }

    #[cfg(test)]
    fn in_folder(folder: &Path) -> Self {
        Self { folder: Some(folder.to_path_buf()) }
    }

    /// What was kept for `parts` under `name`, else what `make` gives, which is then kept.
    pub(super) fn get_or_make<E>(&self, name: &str, parts: &[&[u8]], make: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Vec<u8>, E> {
        let Some(folder) = &self.folder else { return make() };
        let path = folder.join(format!("{name}-{}", key(parts)));
        if let Some(code) = read(&path) {
            return Ok(code);
        }
        let code = make()?;
        let _ = write(folder, &path, &code);
        Ok(code)
    }
}

/// A name for `parts`, each with its length so that none runs into the next.
fn key(parts: &[&[u8]]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part.len().to_le_bytes()).update(part);
    }
    hasher.finalize()
}

/// The code in a file, if it is whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let (hash, code) = bytes.split_at_checked(HASH_BYTES)?;
    if blake3::hash(code).as_bytes() != hash {
        return None;
    }
    bytes.drain(..HASH_BYTES);
    Some(bytes)
}

/// Writes beside the final place first, so that no other process reads half a file.
fn write(folder: &Path, path: &Path, code: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let bytes = [blake3::hash(code).as_bytes(), code].concat();
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(cache: &Cache, parts: &[&[u8]], code: &[u8]) -> (Vec<u8>, bool) {
        let mut is_made = false;
        let make = || -> Result<Vec<u8>, ()> {
            is_made = true;
            Ok(code.to_vec())
        };
        let found = cache.get_or_make("kernel", parts, make).unwrap();
        (found, is_made)
    }

    #[test]
    fn what_was_made_is_found_again_and_only_for_the_same_parts() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(&folder.path().join("not/there/yet"));
        assert_eq!(made(&cache, &[b"ab", b"c"], b"one"), (b"one".to_vec(), true));
        assert_eq!(made(&cache, &[b"ab", b"c"], b"two"), (b"one".to_vec(), false));
        assert_eq!(made(&cache, &[b"a", b"bc"], b"three"), (b"three".to_vec(), true));
    }

    #[test]
    fn a_damaged_file_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        made(&cache, &[b"source"], b"code");
        let path = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..10], &[], &[&whole[..], b"x"].concat()] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(made(&cache, &[b"source"], b"code"), (b"code".to_vec(), true));
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache::in_folder(file.path());
        assert_eq!(made(&cache, &[b"source"], b"code"), (b"code".to_vec(), true));
        assert_eq!(made(&Cache { folder: None }, &[b"source"], b"code"), (b"code".to_vec(), true));
    }

    #[test]
    fn errors_are_handed_on_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        assert_eq!(cache.get_or_make("kernel", &[], || Err(7)), Err(7));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
