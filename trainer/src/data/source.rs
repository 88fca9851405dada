//! The files behind a recipe's sources, and their lines.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{DataError, Place};

/// Extensions of files with one JSON object per line.
const LINE_EXTENSIONS: [&str; 2] = ["jsonl", "ndjson"];
/// Extensions that a person may well point at, and that are not read.
const UNSUPPORTED_EXTENSIONS: [&str; 8] = ["parquet", "arrow", "feather", "csv", "tsv", "gz", "zst", "zip"];

/// The files that `origin` names, in the order of their paths: a file, a folder (searched to its depths), or a pattern.
pub(super) fn files(origin: &str) -> Result<Vec<PathBuf>, DataError> {
    let path = Path::new(origin);
    let mut found = Vec::new();
    if path.is_dir() {
        walk(path, &mut found)?;
    } else if path.exists() {
        found.push(path.to_owned());
    } else if origin.contains(['*', '?', '[']) {
        let pattern = glob::glob(origin).map_err(|source| DataError::Pattern { origin: origin.to_owned(), source })?;
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

/// Collects the line files under `folder`. Folders behind symbolic links are passed over: they may lead back.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), DataError> {
    for entry in fs::read_dir(folder).map_err(|error| DataError::read(folder, error))? {
        let entry = entry.map_err(|error| DataError::read(folder, error))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|error| DataError::read(&path, error))?;
        if kind.is_dir() {
            walk(&path, found)?;
        } else if LINE_EXTENSIONS.contains(&extension(&path).as_str()) && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// A row as it stands in its file: taking it apart is left to whoever has a thread to spare.
#[derive(Debug)]
pub(super) struct Row {
    /// Where it stands.
    pub(super) place: Place,
    json: Vec<u8>,
}

impl Row {
    /// Its place and value.
    ///
    /// # Errors
    /// Broken JSON, with its line and column.
    pub(super) fn parse(self) -> Result<(Place, Value), DataError> {
        match serde_json::from_slice(&self.json) {
            Ok(value) => Ok((self.place, value)),
            Err(error) => Err(DataError::json(self.place, &error)),
        }
    }
}

/// Calls `visit` with each row of the file `path`, in order: in a file of lines, each line that is not blank.
pub(super) fn for_each_row(path: &Path, visit: impl FnMut(Row) -> Result<(), DataError>) -> Result<(), DataError> {
    let extension = extension(path);
    if UNSUPPORTED_EXTENSIONS.contains(&extension.as_str()) {
        return Err(DataError::UnsupportedFormat { path: path.to_owned(), extension });
    }
    let file = File::open(path).map_err(|error| DataError::read(path, error))?;
    for_each_line(BufReader::with_capacity(1 << 20, file), path, visit)
}

/// Calls `visit` with each line that is not blank; places are in `path`.
pub(super) fn for_each_line(
    mut reader: impl BufRead,
    path: &Path,
    mut visit: impl FnMut(Row) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(|error| DataError::read(path, error))? == 0 {
            break;
        }
        // A byte order mark is no part of the first object.
        let content = if line == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes) } else { &bytes };
        if content.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        visit(Row { place: Place { file: path.to_owned(), line }, json: content.to_vec() })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[PathBuf]) -> Vec<String> {
        paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    fn lines(content: &[u8]) -> Result<Vec<usize>, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        fs::write(&path, content).unwrap();
        let mut numbers = Vec::new();
        for_each_row(&path, |row| {
            numbers.push(row.parse()?.0.line);
            Ok(())
        })?;
        Ok(numbers)
    }

    #[test]
    fn folders_and_patterns_give_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        for name in ["b.jsonl", "a.jsonl", "notes.md", "deep/c.ndjson"] {
            fs::write(folder.path().join(name), "{}").unwrap();
        }
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        assert_eq!(names(&files(&at("")).unwrap()), ["a.jsonl", "b.jsonl", "c.ndjson"]);
        assert_eq!(names(&files(&at("*.jsonl")).unwrap()), ["a.jsonl", "b.jsonl"]);
        assert_eq!(names(&files(&at("b.jsonl")).unwrap()), ["b.jsonl"]);
        assert!(matches!(files(&at("none.jsonl")), Err(DataError::MissingSource { .. })));
        assert!(matches!(files(&at("*.json")), Err(DataError::EmptySource { .. })));
        assert!(matches!(files(&at("[")), Err(DataError::Pattern { .. })));
    }

    #[test]
    fn blank_lines_and_a_byte_order_mark_are_passed_over() {
        assert_eq!(lines(b"\xef\xbb\xbf{}\r\n\n  \n{}").unwrap(), [1, 4]);
    }

    #[test]
    fn a_broken_line_is_named_with_its_column() {
        let error = lines(b"{}\n{\"a\": tru}\n").unwrap_err();
        assert!(error.to_string().ends_with("d.jsonl:2:10: broken JSON: expected ident"), "{error}");
        for broken in [&b"{"[..], b"{}{}", b"\xff", b"{\"a\": \"\\ud800\"}", b"{\"a\": \"\xc3\x28\"}"] {
            assert!(matches!(lines(broken), Err(DataError::Json { .. })), "{broken:?}");
        }
    }

    #[test]
    fn a_table_is_refused_by_name() {
        let error = for_each_row(Path::new("d.parquet"), |_| Ok(())).unwrap_err();
        assert!(matches!(error, DataError::UnsupportedFormat { .. }));
    }
}
