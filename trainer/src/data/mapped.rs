//! Files as memory.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow::buffer::Buffer;
use memmap2::Mmap;

/// The bytes of `file`, read when they are looked at; they may be dropped from memory again at any time.
///
/// # Errors
/// The operating system's.
pub(super) fn map(file: &File) -> io::Result<Buffer> {
    if file.metadata()?.len() == 0 {
        return Ok(Buffer::from_vec(Vec::<u8>::new()));
    }
    // SAFETY: the map is only read. A file that another process cuts meanwhile ends this process with a signal, as it does every
    // program that maps files; nothing here trusts its bytes to stay the same.
    let mapped = unsafe { Mmap::map(file)? };
    let length = mapped.len();
    let Some(start) = NonNull::new(mapped.as_ptr().cast_mut()) else {
        return Err(io::Error::other("the file was mapped to address 0"));
    };
    // SAFETY: `start` is valid for `length` bytes as long as the map lives, which the buffer owns.
    Ok(unsafe { Buffer::from_custom_allocation(start, length, Arc::new(mapped)) })
}
