//! What was handed to the trackers, with its times: a header, then a record on each line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::clock;

/// A record of `metrics.jsonl`, and when it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Seconds since 1970.
    pub(super) time: f64,
    pub(super) metrics: Map<String, Value>,
}

impl Entry {
    /// Steps done when it was made.
    pub(super) fn step(&self) -> u64 {
        self.metrics.get("step").and_then(Value::as_u64).unwrap_or(0)
    }
}

/// Which run it is, as long as its directory stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Eight letters and digits.
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) started: f64,
}

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

impl Journal {
    /// Opens the journal of a run that goes on after `steps_done`: later records are cut off. Gives what it holds.
    pub(super) fn open(path: &Path, steps_done: usize) -> io::Result<(Self, Header, Vec<Entry>)> {
        let text = match fs::read_to_string(path) {
            Ok(text) if steps_done > 0 => text,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => String::new(),
        };
        let mut lines = text.lines();
        let header = lines.next().and_then(|line| serde_json::from_str(line).ok());
        let header: Header = header.unwrap_or_else(|| Header { id: new_id(path), started: clock::now() });
        // A line that a kill cut short is the last; what comes of it is cut off with it.
        let entries: Vec<Entry> = lines
            .map_while(|line| serde_json::from_str::<Entry>(line).ok())
            .take_while(|entry| usize::try_from(entry.step()).is_ok_and(|step| step <= steps_done))
            .collect();
        let mut whole = line_of(&header)?;
        for entry in &entries {
            whole.push_str(&line_of(entry)?);
        }
        let partial = path.with_extension("partial");
        fs::write(&partial, whole)?;
        fs::rename(&partial, path)?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok((Self { file }, header, entries))
    }

    pub(super) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        self.file.write_all(line_of(entry)?.as_bytes())
    }
}

fn line_of(value: &impl Serialize) -> io::Result<String> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    Ok(line)
}

/// Differs from run to run; nothing else depends on it.
fn new_id(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(path.as_os_str().as_encoded_bytes());
    hasher.update(&clock::now().to_bits().to_le_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    hasher.update(clock::host().as_bytes());
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    hasher.finalize().as_bytes()[..8].iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(step: u64, value: f64) -> Entry {
        let Value::Object(metrics) = json!({"step": step, "loss": value}) else { unreachable!() };
        Entry { time: 1.5 + value, metrics }
    }

    #[test]
    fn a_resumed_run_keeps_what_came_before_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let (mut journal, header, entries) = Journal::open(&path, 0).unwrap();
        assert!(entries.is_empty());
        for step in 1..=5 {
            journal.append(&entry(step, step as f64)).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 4]).unwrap();
        let (mut journal, again, entries) = Journal::open(&path, 3).unwrap();
        assert_eq!(again, header);
        assert_eq!(entries, [entry(1, 1.0), entry(2, 2.0), entry(3, 3.0)]);
        journal.append(&entry(4, 0.5)).unwrap();
        assert_eq!(Journal::open(&path, 9).unwrap().2.last(), Some(&entry(4, 0.5)));
        // A run that begins anew is another run.
        assert_ne!(Journal::open(&path, 0).unwrap().1.id, header.id);
    }
}
