//! The thread that writes: journal, event file, transaction log, and what is to be sent.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender as Channel};

use super::error::TrackingError;
use super::journal::{Entry, Header, Journal};
use super::tensorboard::TensorBoard;
use super::wandb::{Row, Rows, RunFiles, Sender, Settings};
use super::{LAST_WAIT, Message, clock};
use crate::recipe::Recipe;

#[derive(Debug)]
pub(super) struct Worker {
    journal: Option<Journal>,
    tensorboard: Option<TensorBoard>,
    wandb: Option<Wandb>,
    warn: Channel<String>,
}

#[derive(Debug)]
struct Wandb {
    header: Header,
    rows: Rows,
    files: Option<RunFiles>,
    sender: Option<Sender>,
}

impl Worker {
    /// `None` when the recipe asks for no tracker.
    pub(super) fn open(recipe: &Recipe, directory: &Path, steps_done: usize, warn: Channel<String>) -> Result<Option<Self>, TrackingError> {
        let settings = Settings::of(recipe)?;
        if settings.is_none() && !recipe.tracking.tensorboard {
            return Ok(None);
        }
        let folder = directory.join("tracking");
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| TrackingError::Write { path, source }
        };
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let path = folder.join("journal.jsonl");
        let (journal, header, entries) = Journal::open(&path, steps_done).map_err(at(&path))?;
        let tensorboard = if recipe.tracking.tensorboard {
            let folder = directory.join("tensorboard");
            Some(TensorBoard::open(&folder, &header, &entries).map_err(at(&folder))?)
        } else {
            None
        };
        let wandb = match settings {
            Some(settings) => Some(Wandb::open(&directory.join("wandb"), header, settings, &entries, &warn)?),
            None => None,
        };
        Ok(Some(Self { journal: Some(journal), tensorboard, wandb, warn }))
    }

    /// Writes what comes until the end.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        for message in messages {
            match message {
                Message::Record(entry) => self.record(&entry),
                Message::Finish(exit_code) => return self.finish(exit_code),
            }
        }
    }

    fn record(&mut self, entry: &Entry) {
        let Self { journal, tensorboard, wandb, warn } = self;
        keep("the journal of the trackers", journal, warn, |journal| journal.append(entry));
        keep("TensorBoard's event file", tensorboard, warn, |tensorboard| tensorboard.append(entry));
        if let Some(wandb) = wandb
            && let Some(row) = wandb.rows.add(entry)
        {
            wandb.row(&row, warn);
        }
    }

    fn finish(mut self, exit_code: u8) {
        let Some(mut wandb) = self.wandb.take() else { return };
        if let Some(row) = wandb.rows.finish() {
            wandb.row(&row, &self.warn);
        }
        let summary = wandb.rows.summary().clone();
        let runtime = clock::now() - wandb.header.started;
        keep(LOG, &mut wandb.files, &self.warn, |files| files.finish(&summary, exit_code, runtime));
        let Some(sender) = wandb.sender.take() else { return };
        let words = match sender.finish(summary, exit_code, LAST_WAIT) {
            Some(0) => return,
            Some(unsent) => format!("Weights & Biases: {unsent} steps were not sent"),
            None => "Weights & Biases: not everything was sent in time".to_owned(),
        };
        let later = wandb
            .files
            .as_ref()
            .map_or(String::new(), |files| format!("; `wandb sync --include-online {}` sends the run", files.folder().display()));
        let _ = self.warn.send(format!("{words}{later}"));
    }
}

const LOG: &str = "the run directory of Weights & Biases";

impl Wandb {
    fn open(root: &Path, header: Header, settings: Settings, entries: &[Entry], warn: &Channel<String>) -> Result<Self, TrackingError> {
        let at = |source| TrackingError::Write { path: root.to_path_buf(), source };
        let files = RunFiles::open(root, &header, &settings, entries).map_err(at)?;
        let mut rows = Rows::new(header.started);
        let sender = match settings.destination.clone() {
            Some(destination) => {
                let sender = Sender::start(destination, header.clone(), settings, warn.clone());
                Some(sender.map_err(|source| TrackingError::Thread { source })?)
            }
            None => None,
        };
        for entry in entries {
            if let (Some(row), Some(sender)) = (rows.add(entry), &sender) {
                sender.push(&row, rows.summary());
            }
        }
        Ok(Self { header, rows, files: Some(files), sender })
    }

    fn row(&mut self, row: &Row, warn: &Channel<String>) {
        keep(LOG, &mut self.files, warn, |files| files.append(row));
        if let Some(sender) = &self.sender {
            sender.push(row, self.rows.summary());
        }
    }
}

/// Writes to a file while it can be written: the first failure is said, and is the last.
fn keep<T>(what: &str, file: &mut Option<T>, warn: &Channel<String>, write: impl FnOnce(&mut T) -> io::Result<()>) {
    if let Some(open) = file
        && let Err(error) = write(open)
    {
        *file = None;
        let _ = warn.send(format!("{what} cannot be written, and ends here: {error}"));
    }
}
