//! The directory of a run, as the `wandb` package lays it out: what `wandb sync` reads.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::clock;
use super::super::journal::{Entry, Header};
use super::super::protobuf::Message;
use super::log::TransactionLog;
use super::rows::{Row, Rows};
use super::settings::Settings;

/// Fields of `Record`. Source: wandb 0.31, `proto/wandb_internal.proto`; so are the numbers of fields below.
mod record {
    pub(super) const HISTORY: u64 = 2;
    pub(super) const SUMMARY: u64 = 3;
    pub(super) const RUN: u64 = 17;
    pub(super) const EXIT: u64 = 18;
    pub(super) const FINAL: u64 = 20;
    pub(super) const HEADER: u64 = 21;
    pub(super) const FOOTER: u64 = 22;
}

/// Field of the JSON text of a value, in every kind of item.
const VALUE_JSON: u64 = 16;
/// The versions of the package that this log is written like, and that can read it.
const PRODUCER: &str = "0.31.0";
const MIN_CONSUMER: &str = "0.13.0";

/// The files of a run.
#[derive(Debug)]
pub(in crate::tracking) struct RunFiles {
    folder: PathBuf,
    log: TransactionLog<File>,
}

impl RunFiles {
    /// Writes the files of a run anew from what its journal holds, under `root` (the run directory's `wandb`).
    pub(in crate::tracking) fn open(root: &Path, header: &Header, settings: &Settings, entries: &[Entry]) -> io::Result<Self> {
        let kind = if settings.destination.is_some() { "run" } else { "offline-run" };
        let folder = root.join(format!("{kind}-{}-{}", clock::stamp(header.started), header.id));
        // One run directory has one run; what an earlier one left here is its.
        if root.exists() {
            fs::remove_dir_all(root)?;
        }
        fs::create_dir_all(folder.join("files"))?;
        fs::create_dir_all(folder.join("logs"))?;
        let path = folder.join(format!("run-{}.wandb", header.id));
        let mut log = TransactionLog::new(Vec::new())?;
        log.append(record::HEADER, Message::new().message(1, Message::new().text(1, PRODUCER).text(2, MIN_CONSUMER)))?;
        log.append(record::RUN, run(header, settings))?;
        let mut rows = Rows::new(header.started);
        for row in entries.iter().filter_map(|entry| rows.add(entry)).collect::<Vec<_>>() {
            log.append(record::HISTORY, history(&row))?;
        }
        let log = log.into_file(|bytes| {
            fs::write(&path, bytes)?;
            OpenOptions::new().append(true).open(&path)
        })?;
        let files = Self { folder, log };
        files.write("config.yaml", &wrapped(&settings.config))?;
        let metadata = json!({
            "os": std::env::consts::OS,
            "host": clock::host(),
            "program": "ft",
            "startedAt": clock::iso(header.started),
            "writerId": header.id,
        });
        files.write("wandb-metadata.json", &metadata)?;
        Ok(files)
    }

    /// The directory to give to `wandb sync`.
    pub(in crate::tracking) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(in crate::tracking) fn append(&mut self, row: &Row) -> io::Result<()> {
        self.log.append(record::HISTORY, history(row))
    }

    /// The end of the run.
    pub(in crate::tracking) fn finish(&mut self, summary: &Map<String, Value>, exit_code: u8, runtime_seconds: f64) -> io::Result<()> {
        let items = summary.iter().fold(Message::new(), |message, (name, value)| message.message(1, item(name, value)));
        self.log.append(record::SUMMARY, items)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds")]
        let exit = Message::new().integer(1, u64::from(exit_code)).integer(2, runtime_seconds.max(0.0) as u64);
        self.log.append(record::EXIT, exit)?;
        self.log.append(record::FINAL, Message::new())?;
        self.log.append(record::FOOTER, Message::new())?;
        self.write("wandb-summary.json", &Value::Object(summary.clone()))
    }

    fn write(&self, name: &str, value: &Value) -> io::Result<()> {
        // JSON is YAML.
        fs::write(self.folder.join("files").join(name), format!("{value:#}\n"))
    }
}

/// The configuration as files and the API have it: each value under `value`.
pub(super) fn wrapped(config: &Value) -> Value {
    let wrap = |(key, value): (&String, &Value)| (key.clone(), json!({"value": value}));
    Value::Object(config.as_object().into_iter().flatten().map(wrap).collect())
}

fn run(header: &Header, settings: &Settings) -> Message {
    let mut run = Message::new().text(1, &header.id);
    let config = settings.config.as_object().into_iter().flatten();
    let items = config.fold(Message::new(), |message, (key, value)| message.message(1, item(key, value)));
    if let Some(entity) = &settings.entity {
        run = run.text(2, entity);
    }
    run = run.text(3, &settings.project).message(4, items);
    if let Some(group) = &settings.group {
        run = run.text(6, group);
    }
    run = run.text(8, &settings.name);
    if let Some(notes) = &settings.notes {
        run = run.text(9, notes);
    }
    for tag in &settings.tags {
        run = run.text(10, tag);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since 1970, and a fraction of one")]
    let started = Message::new().integer(1, header.started as u64).integer(2, (header.started.fract() * 1e9) as u64);
    run.text(13, &clock::host()).message(17, started)
}

fn history(row: &Row) -> Message {
    let items = row.values.iter().fold(Message::new(), |message, (name, value)| message.message(1, item(name, value)));
    items.message(2, Message::new().integer(1, row.step))
}

/// An item of a history, a summary or a configuration. A name with a `/` is one name, not a path.
fn item(name: &str, value: &Value) -> Message {
    Message::new().text(1, name).text(VALUE_JSON, &value.to_string())
}
