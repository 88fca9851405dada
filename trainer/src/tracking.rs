//! Where metrics go beside `metrics.jsonl`: TensorBoard and Weights & Biases.
//!
//! The loop hands each record over and goes on; a thread of its own does all the writing, another all the sending. What is
//! handed over is kept in a journal in the run directory, with its time. All other files are made from it, so that a resumed
//! run, cut back to its checkpoint, has every step once. Nothing here stops a run once it has begun: what fails is said once.

mod clock;
mod error;
mod journal;
mod protobuf;
mod scalars;
mod tensorboard;
mod wandb;
mod worker;

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use serde::Serialize;

use crate::recipe::Recipe;
pub use error::TrackingError;
pub use wandb::{ApiKey, api_key};
use worker::Worker;

/// Longest time that the end of a run waits for what is still being sent.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// The trackers of a run.
#[derive(Debug, Default)]
pub struct Trackers {
    link: Option<Link>,
}

/// To the thread that writes.
#[derive(Debug)]
struct Link {
    records: Sender<Message>,
    /// What the user should know, from either thread.
    warnings: mpsc::Receiver<String>,
    done: mpsc::Receiver<()>,
}

/// What the loop says.
#[derive(Debug)]
enum Message {
    /// A record of `metrics.jsonl`, and when it was made.
    Record(journal::Entry),
    /// The run is over, with this exit code.
    Finish(u8),
}

/// Finds what is wrong with the tracking of `recipe` before anything long begins.
///
/// # Errors
/// No key for Weights & Biases, or a mode in the environment that is none.
pub fn check(recipe: &Recipe) -> Result<(), TrackingError> {
    wandb::Settings::of(recipe).map(drop)
}

impl Trackers {
    /// The trackers that `recipe` asks for, in the run directory `directory`; what the journal has beyond `steps_done` is forgotten.
    ///
    /// # Errors
    /// No key for Weights & Biases, or files that cannot be written: known before the first step.
    pub fn open(recipe: &Recipe, directory: &Path, steps_done: usize) -> Result<Self, TrackingError> {
        let (warn, warnings) = mpsc::channel();
        let Some(worker) = Worker::open(recipe, directory, steps_done, warn)? else { return Ok(Self::default()) };
        let (records, messages) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let work = move || {
            worker.run(&messages);
            // Nobody may be waiting any more.
            let _ = finished.send(());
        };
        std::thread::Builder::new().name("tracking".to_owned()).spawn(work).map_err(|source| TrackingError::Thread { source })?;
        Ok(Self { link: Some(Link { records, warnings, done }) })
    }

    /// Hands over what a line of `metrics.jsonl` holds. Takes microseconds, whatever the disk and the network do.
    pub fn record(&self, metrics: &impl Serialize) {
        if let Some(link) = &self.link
            && let Ok(serde_json::Value::Object(metrics)) = serde_json::to_value(metrics)
        {
            // A thread that is gone has said why.
            let _ = link.records.send(Message::Record(journal::Entry { time: clock::now(), metrics }));
        }
    }

    /// What went wrong since this was last asked.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.link.as_ref().map(|link| link.warnings.try_iter().collect()).unwrap_or_default()
    }

    /// Ends the trackers with the run's exit code, waiting a little for what is not sent yet; gives the last warnings.
    #[must_use]
    pub fn finish(self, exit_code: u8) -> Vec<String> {
        let Some(link) = self.link else { return Vec::new() };
        let _ = link.records.send(Message::Finish(exit_code));
        let mut warnings = Vec::new();
        // The sender keeps to its own limit; this one is for a disk that hangs.
        if link.done.recv_timeout(LAST_WAIT + Duration::from_secs(5)) == Err(RecvTimeoutError::Timeout) {
            warnings.push("trackers did not end in time; metrics.jsonl has everything".to_owned());
        }
        warnings.splice(0..0, link.warnings.try_iter());
        warnings
    }
}
