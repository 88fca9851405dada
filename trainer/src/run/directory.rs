//! The run directory: who may write to it, and its files.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result, RunDirectoryProblem};

/// A run directory that this process holds.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Creates the directory, or takes an existing one when `resume` says to go on with its run.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] when it holds a run that is not to be resumed, or another process has it; [`Error::Io`].
    pub fn open(path: &Path, resume: bool) -> Result<Self> {
        let holds_run = path.join("metrics.jsonl").exists() || path.join("checkpoints").exists();
        if holds_run && !resume {
            return Err(Error::RunDirectory { path: path.to_path_buf(), problem: RunDirectoryProblem::HoldsRun });
        }
        fs::create_dir_all(path).map_err(|source| Error::Io { action: "create", path: path.to_path_buf(), source })?;
        let lock_path = path.join(".lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(|source| Error::Io {
            action: "create",
            path: lock_path,
            source,
        })?;
        // SAFETY: a lock on a descriptor that we own; the kernel drops it with the process, however that ends.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(Error::RunDirectory { path: path.to_path_buf(), problem: RunDirectoryProblem::InUse });
        }
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints go.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }
}

/// A text file that only grows, and that a resumed run cuts back to where its checkpoint stood.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    /// Opens `path` and keeps its first `length` bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: PathBuf, length: u64) -> Result<Self> {
        let open = || {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            let length = length.min(file.metadata()?.len());
            file.set_len(length)?;
            Ok((file, length))
        };
        let (file, length) = open().map_err(|source| Error::Io { action: "open", path: path.clone(), source })?;
        let mut log = Self { path, file, length };
        std::io::Seek::seek(&mut log.file, std::io::SeekFrom::Start(length)).map_err(|source| log.error(source))?;
        Ok(log)
    }

    /// Appends `text`.
    ///
    /// # Errors
    /// [`Error::Io`], for instance on a full disk.
    pub fn append(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).map_err(|source| self.error(source))?;
        self.length += text.len() as u64;
        Ok(())
    }

    /// Appends `record` as a line of JSON.
    ///
    /// # Errors
    /// [`Error::Io`], for instance on a full disk.
    pub fn append_json(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(record).map_err(|source| Error::Json { path: self.path.clone(), source })?;
        line.push('\n');
        self.append(&line)
    }

    /// Bytes so far.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    fn error(&self, source: std::io::Error) -> Error {
        Error::Io { action: "write", path: self.path.clone(), source }
    }
}

/// Writes a small file whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| Error::Io { action: "write", path: path.to_path_buf(), source })
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|source| Error::Io {
        action: "sync",
        path: path.to_path_buf(),
        source,
    })
}

/// Bytes free for this user on the file system of `path` or of its nearest existing ancestor.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("."));
    let name = std::ffi::CString::new(existing.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: statvfs fills a plain struct for a valid path.
    let mut status: libc::statvfs = unsafe { std::mem::zeroed() };
    if unsafe { libc::statvfs(name.as_ptr(), &raw mut status) } != 0 {
        return None;
    }
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}
