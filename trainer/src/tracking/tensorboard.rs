//! TensorBoard's event files.
//!
//! Source: a TFRecord is the length as u64, the masked CRC-32C of its bytes, the data, and the data's masked CRC-32C, all little-endian
//! (TensorFlow, `core/lib/io/record_writer.cc`); the data is an `Event` (TensorBoard, `compat/proto/event.proto`, `summary.proto`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::clock;
use super::journal::{Entry, Header};
use super::protobuf::Message;
use super::scalars::scalars;

/// Added to a rotated checksum, so that a checksum of data that holds checksums stays a good one. Source: as above, `lib/hash/crc32c.h`.
const MASK_DELTA: u32 = 0xa282_ead8;

/// Numbers of the fields of `Event`.
mod event {
    pub(super) const WALL_TIME: u64 = 1;
    pub(super) const STEP: u64 = 2;
    pub(super) const FILE_VERSION: u64 = 3;
    pub(super) const SUMMARY: u64 = 5;
}

#[derive(Debug)]
pub(super) struct TensorBoard {
    file: File,
}

impl TensorBoard {
    /// Writes the event file of a run anew from what its journal holds, in the place of what is in `folder`.
    pub(super) fn open(folder: &Path, header: &Header, entries: &[Entry]) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since 1970")]
        let name = format!("events.out.tfevents.{:010}.{}.{}", header.started as u64, clock::host(), header.id);
        let path = folder.join(name);
        // One run has one file: of an earlier run of this name nothing stays.
        for file in event_files(folder)?.into_iter().filter(|file| *file != path) {
            fs::remove_file(file)?;
        }
        let mut bytes = record(Message::new().double(event::WALL_TIME, header.started).text(event::FILE_VERSION, "brain.Event:2"));
        for entry in entries {
            bytes.extend(record(event_of(entry)));
        }
        let partial = folder.join("partial");
        fs::write(&partial, bytes)?;
        fs::rename(&partial, &path)?;
        Ok(Self { file: OpenOptions::new().append(true).open(&path)? })
    }

    pub(super) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        self.file.write_all(&record(event_of(entry)))
    }
}

fn event_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let paths: io::Result<Vec<PathBuf>> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect();
    let is_ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("events.out.tfevents."));
    Ok(paths?.into_iter().filter(is_ours).collect())
}

fn event_of(entry: &Entry) -> Message {
    let mut summary = Message::new();
    for (name, value) in scalars(&entry.metrics) {
        #[expect(clippy::cast_possible_truncation, reason = "the format holds f32")]
        let value = Message::new().text(1, &name).float(2, value as f32);
        summary = summary.message(1, value);
    }
    Message::new().double(event::WALL_TIME, entry.time).integer(event::STEP, entry.step()).message(event::SUMMARY, summary)
}

fn record(message: Message) -> Vec<u8> {
    let data = message.into_bytes();
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), &data, &masked(&data).to_le_bytes()].concat()
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}
