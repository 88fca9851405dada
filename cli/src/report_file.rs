//! A report for other programs, as a file that appears whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ft_trainer::run::directory::write_atomically;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::json;

/// A report that can be written where it was asked for, and is not there yet.
#[derive(Debug)]
pub(crate) struct ReportFile<'a> {
    path: &'a Path,
}

impl<'a> ReportFile<'a> {
    /// Finds out whether `path` can be written, before the long work that fills it.
    pub(crate) fn prepare(path: &'a Path) -> Result<Self> {
        let probe = || {
            if path.is_dir() {
                return Err(std::io::ErrorKind::IsADirectory.into());
            }
            let probe = probe_path(path);
            File::create(&probe).and_then(|_| fs::remove_file(&probe))
        };
        probe().map_err(|source| Error::File { action: "write", path: path.to_owned(), source })?;
        Ok(Self { path })
    }

    /// Writes `text`.
    pub(crate) fn publish_text(self, text: &str) -> Result<()> {
        Ok(write_atomically(self.path, text.as_bytes())?)
    }

    /// Writes `content`, which is a struct, as `--json` prints it.
    pub(crate) fn publish(self, content: &impl Serialize) -> Result<()> {
        self.publish_text(&(json::text(content)? + "\n"))
    }
}

fn probe_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Content {
        mean: f64,
    }

    #[test]
    fn a_report_appears_only_when_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let report = ReportFile::prepare(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        report.publish(&Content { mean: 0.1 }).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"version\":1,\"mean\":0.1}\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_known_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("absent/report.json"), folder.path().to_owned()] {
            let error = ReportFile::prepare(&path).unwrap_err();
            assert!(matches!(error, Error::File { action: "write", .. }), "{error}");
        }
    }
}
