//! A folder for one test, kept when the test fails.

use std::ops::Deref;
use std::path::{Path, PathBuf};

/// An empty folder that goes with the test, unless the test fails: then it stays and its path is printed.
#[derive(Debug)]
pub struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    /// Makes an empty folder.
    ///
    /// # Panics
    /// When the system has no room for one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("ft-{name}-")).tempdir();
        Self { directory: directory.expect("the temporary folder can be written") }
    }

    /// Writes a file into the folder and gives its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, contents).expect("the temporary folder can be written");
        path
    }
}

/// The names of what is in a folder, in order.
///
/// # Panics
/// When it cannot be read, or a name is not UTF-8.
#[must_use]
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            eprintln!("kept for a look: {}", self.directory.path().display());
        }
    }
}
