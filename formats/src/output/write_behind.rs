//! Writing to the disk while more is made.

use std::fs::File;

/// Bytes that are written before the disk is told to take them.
const WRITE_BEHIND_BYTES: u64 = 32 << 20;

/// Has the disk take what was written while more is made: a sync at the end would else have all of it to wait for.
#[derive(Debug, Default)]
pub(crate) struct WriteBehind {
    written: u64,
}

impl WriteBehind {
    /// Takes note of `bytes` written to `file`.
    pub(crate) fn advance(&mut self, file: &File, bytes: u64) {
        self.written += bytes;
        if self.written >= WRITE_BEHIND_BYTES {
            self.written = 0;
            start_writing(file);
        }
    }
}

/// Begins to write the dirty pages of `file`, and waits for none. Whether the system does is its own business.
#[cfg(target_os = "linux")]
fn start_writing(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open as long as `file` is borrowed; a length of 0 means all up to the end.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(not(target_os = "linux"))]
fn start_writing(_: &File) {}
