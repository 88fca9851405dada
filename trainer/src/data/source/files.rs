//! The files that a source names.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::error::DataError;
use super::format::is_read;

/// The files that `origin` names, in the order of their paths: a file, a folder (searched to its depths), or a pattern.
pub(in crate::data) fn files(origin: &str) -> Result<Vec<PathBuf>, DataError> {
    let path = Path::new(origin);
    let mut found = Vec::new();
    if path.is_dir() {
        walk(path, &mut found)?;
    } else if path.exists() {
        found.push(path.to_owned());
    } else if origin.contains(['*', '?', '[']) {
        // As in a shell, `*` is not for hidden files.
        let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::default() };
        let pattern = glob::glob_with(origin, options).map_err(|source| DataError::Pattern { origin: origin.to_owned(), source })?;
        for entry in pattern {
            let entry = entry.map_err(|error| {
                let path = error.path().to_owned();
                DataError::Read { path, source: error.into() }
            })?;
            if entry.is_file() {
                found.push(entry);
            }
        }
    } else {
        return Err(DataError::MissingSource { origin: origin.to_owned() });
    }
    found.sort();
    match found.first() {
        Some(_) => Ok(found),
        None => Err(DataError::EmptySource { origin: origin.to_owned() }),
    }
}

/// Collects the data files under `folder`. Folders behind symbolic links are passed over: they may lead back. So are hidden
/// files, and the `cache-*` files that the `datasets` library leaves beside its data.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), DataError> {
    for entry in fs::read_dir(folder).map_err(|error| DataError::read(folder, error))? {
        let entry = entry.map_err(|error| DataError::read(folder, error))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().map_err(|error| DataError::read(&path, error))?;
        if name.starts_with('.') || name.starts_with("cache-") {
            continue;
        }
        if kind.is_dir() {
            walk(&path, found)?;
        } else if is_read(&path) && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}
