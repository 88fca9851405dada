//! Bytes of a file, unpacked as they are read.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use super::super::error::DataError;
use super::format::Compression;

/// Bytes read from the disk at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The unpacked bytes of a file, and how far into the file one has come.
pub(super) struct Unpacked {
    pub(super) reader: Box<dyn BufRead>,
    /// Bytes of the file that were read.
    pub(super) read_bytes: Rc<Cell<u64>>,
}

/// Opens `path`. Several gzip members or zstd frames after one another are one text.
///
/// # Errors
/// [`DataError::Read`].
pub(super) fn open(path: &Path, compression: Compression) -> Result<Unpacked, DataError> {
    let file = File::open(path).map_err(|error| DataError::read(path, error))?;
    let read_bytes = Rc::new(Cell::new(0));
    let packed = BufReader::with_capacity(CHUNK_BYTES, Counted { file, read_bytes: Rc::clone(&read_bytes) });
    let reader: Box<dyn BufRead> = match compression {
        Compression::None => Box::new(packed),
        Compression::Gzip => Box::new(BufReader::with_capacity(CHUNK_BYTES, MultiGzDecoder::new(packed))),
        // The library's own limit of the window, 128 MB, bounds what a frame may ask for.
        Compression::Zstd => {
            let decoder = zstd::Decoder::with_buffer(packed).map_err(|error| DataError::read(path, error))?;
            Box::new(BufReader::with_capacity(CHUNK_BYTES, decoder))
        }
    };
    Ok(Unpacked { reader, read_bytes })
}

/// What went wrong while bytes of `path` were read: of a packed file mostly that it is broken or cut.
pub(super) fn problem(path: &Path, compression: Compression, source: io::Error) -> DataError {
    let path = path.to_owned();
    match compression {
        Compression::None => DataError::Read { path, source },
        Compression::Gzip => DataError::Compressed { path, format: "gzip", source },
        Compression::Zstd => DataError::Compressed { path, format: "zstd", source },
    }
}

struct Counted {
    file: File,
    read_bytes: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read_bytes.set(self.read_bytes.get() + count as u64);
        Ok(count)
    }
}
