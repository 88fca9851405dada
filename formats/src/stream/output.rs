//! Writing one tensor while the next is converted.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::TensorSink;
use super::buffer::{Buffer, Pool};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Pieces that wait to be written at most.
const WAITING_PIECES: usize = 2;

/// The next bytes of a tensor.
struct Piece<'a> {
    tensor: String,
    bytes: Bytes<'a>,
}

/// Bytes of the source, or new ones.
pub(crate) enum Bytes<'a> {
    Mapped(&'a [u8]),
    /// Made of what the source holds.
    Owned(Vec<u8>),
    New(Buffer),
}

impl<'a> From<Cow<'a, [u8]>> for Bytes<'a> {
    fn from(bytes: Cow<'a, [u8]>) -> Self {
        match bytes {
            Cow::Borrowed(mapped) => Self::Mapped(mapped),
            Cow::Owned(made) => Self::Owned(made),
        }
    }
}

/// Takes bytes to the thread that writes them.
pub(crate) struct Output<'a> {
    pieces: SyncSender<Piece<'a>>,
    path: PathBuf,
    /// What was written can be written to again.
    pub(crate) pool: Pool,
}

impl<'a> Output<'a> {
    /// Writes the next bytes of a tensor, in the order of the calls.
    pub(crate) fn write(&self, tensor: String, bytes: Bytes<'a>) -> Result<()> {
        // The writer has failed then, and [`in_background`] gives its reason instead.
        let stopped = |_| Error::Io { action: "write", path: self.path.clone(), source: io::ErrorKind::BrokenPipe.into() };
        self.pieces.send(Piece { tensor, bytes }).map_err(stopped)
    }
}

/// Runs `work` beside a thread that writes what it puts out, and gives the writer back when all is written.
///
/// # Errors
/// That of the writer, else that of `work`.
pub(crate) fn in_background<'a, Sink: TensorSink, T>(
    mut writer: Sink,
    source: &'a Checkpoint,
    work: impl FnOnce(&Output<'a>) -> Result<T>,
) -> Result<(Sink, T)> {
    let (pieces, to_write) = sync_channel(WAITING_PIECES);
    let (written, spent) = channel();
    let output = Output { pieces, path: writer.partial_path().to_owned(), pool: Pool::new(spent) };
    thread::scope(|scope| {
        let writing = scope.spawn(move || write_all(&mut writer, source, to_write, &written).map(|()| writer));
        let result = work(&output);
        // No more can come, and the thread ends.
        drop(output);
        let writer = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((writer, result?))
    })
}

fn write_all(writer: &mut impl TensorSink, source: &Checkpoint, pieces: Receiver<Piece<'_>>, written: &Sender<Buffer>) -> Result<()> {
    for Piece { tensor, bytes } in pieces {
        match bytes {
            Bytes::Mapped(bytes) => {
                writer.write_chunk(&tensor, bytes)?;
                source.release(bytes);
            }
            Bytes::Owned(bytes) => writer.write_chunk(&tensor, &bytes)?,
            Bytes::New(buffer) => {
                writer.write_chunk(&tensor, &buffer)?;
                // At the end nobody takes it.
                drop(written.send(buffer));
            }
        }
    }
    Ok(())
}
