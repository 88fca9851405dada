//! What a run leaves beside its numbers: `run.json` (what ran, where, and how it ended), `run.log` (what happened when) and `report.html`.
//!
//! None of them decides anything: a file that cannot be written is a warning, and the run goes on.

mod machine;
mod secrets;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ft_trainer::run::directory::write_atomically;
use ft_trainer::run::observer::EvaluationReport;
use ft_trainer::run::{Observer, PlanReport, StepReport, TrainOutcome};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock;
use crate::json;
use crate::run_page;
use crate::terminal::Terminal;

pub(crate) use machine::Host;

/// Processes of a run that `run.json` keeps; the oldest go first.
const MOST_SESSIONS: usize = 100;

/// Bytes of a `run.json` that is read again: one of ours stays far below.
const MOST_BYTES: u64 = 16 << 20;

/// Share of a run's time that its page may take: it is left out where the last one took more since.
const PAGE_SHARE: u32 = 50;

/// The content of `run.json`, beside its version.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Version of the program of the latest process.
    pub(crate) ft_version: String,
    /// Version of the libtorch that it was built for.
    pub(crate) libtorch_version: Option<String>,
    /// Where the latest process runs.
    pub(crate) host: Option<Host>,
    /// The processes that worked on this run, in order.
    #[serde(default)]
    pub(crate) sessions: Vec<Session>,
    /// What the latest process planned.
    pub(crate) plan: Option<Value>,
}

/// One process of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Program and arguments, without secrets.
    pub(crate) command: Vec<String>,
    /// UTC.
    pub(crate) started: String,
    /// UTC; nothing while it runs, or when it was killed.
    pub(crate) finished: Option<String>,
    /// How it stands.
    pub(crate) state: State,
    /// Steps done before it.
    pub(crate) first_step: usize,
    /// Steps done after it; of a process that runs or was killed, as many as are known.
    pub(crate) last_step: usize,
    /// Duration in seconds, once it has ended.
    pub(crate) seconds: Option<f64>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The adapter or model that it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<PathBuf>,
}

/// How a process ended, if it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It is at work, or was killed and could not say so.
    Running,
    /// All steps are done.
    Finished,
    /// A signal stopped it, and a checkpoint was written.
    Interrupted,
    /// An error ended it.
    Failed,
    /// It was found dead by the next one.
    Killed,
}

impl Record {
    /// The record in `directory`; nothing where there is none that can be read.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        let path = directory.join("run.json");
        if fs::metadata(&path).ok()?.len() > MOST_BYTES {
            return None;
        }
        serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
    }
}

/// Writes the files of one process, from [`Observer::started`] on.
pub(crate) struct Recorder<'a> {
    terminal: &'a Terminal,
    begun: Instant,
    /// The run directory, once it is known to be ours.
    directory: Option<PathBuf>,
    record: Record,
    /// Lines for `run.log` from before there was one.
    early: Vec<String>,
    page: Pace,
    has_warned: bool,
}

/// When the page was written, and how long that took.
#[derive(Debug)]
struct Pace {
    written: Instant,
    took: Duration,
}

impl Pace {
    fn is_due(&self) -> bool {
        self.took * PAGE_SHARE <= self.written.elapsed()
    }
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(terminal: &'a Terminal) -> Self {
        let now = Instant::now();
        Self {
            terminal,
            begun: now,
            directory: None,
            record: Record::default(),
            early: Vec::new(),
            page: Pace { written: now, took: Duration::ZERO },
            has_warned: false,
        }
    }

    /// Says how the process ended. `error` is the message of what ended it early.
    pub(crate) fn finish(&mut self, result: &Result<TrainOutcome, ft_trainer::Error>) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let Some(session) = self.record.sessions.last_mut().filter(|_| self.directory.is_some()) else { return };
        session.finished = Some(clock::now());
        session.seconds = Some(seconds);
        let line = match result {
            Ok(outcome) => {
                session.state = State::Finished;
                session.last_step = outcome.steps;
                session.result = Some(outcome.result.clone());
                format!("finished: step {}, {} in {}", outcome.steps, outcome.kind, outcome.result.display())
            }
            Err(ft_trainer::Error::Interrupted { step, checkpoint }) => {
                session.state = State::Interrupted;
                session.last_step = *step;
                format!("interrupted: step {step}, checkpoint {}", checkpoint.display())
            }
            Err(error) => {
                session.state = State::Failed;
                let words = chain(error);
                session.error = Some(words.clone());
                format!("error: {words}")
            }
        };
        self.log(&line);
        self.write_record();
        self.write_page();
    }

    fn log(&mut self, line: &str) {
        // A message may hold text of the user's; a line is one event.
        let line: String = line.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        let line = format!("{} {}\n", clock::now(), line.trim_end());
        let Some(directory) = &self.directory else {
            self.early.push(line);
            return;
        };
        let path = directory.join("run.log");
        let written = OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            self.warn(&format!("cannot write {}: {error}", path.display()));
        }
    }

    fn write_record(&mut self) {
        let Some(directory) = &self.directory else { return };
        let path = directory.join("run.json");
        let written = json::text(&self.record).and_then(|text| Ok(write_atomically(&path, (text + "\n").as_bytes())?));
        if let Err(error) = written {
            self.warn(&error.to_string());
        }
    }

    fn write_page(&mut self) {
        let Some(directory) = self.directory.clone() else { return };
        let start = Instant::now();
        let written = run_page::write(&directory, &directory.join("report.html"));
        self.page = Pace { written: Instant::now(), took: start.elapsed() };
        if let Err(error) = written {
            self.warn(&error.to_string());
        }
    }

    /// Once: what kept one file from being written keeps the next one too.
    fn warn(&mut self, message: &str) {
        if !self.has_warned {
            self.has_warned = true;
            self.terminal.warn(message);
        }
    }
}

impl Observer for Recorder<'_> {
    fn started(&mut self, plan: &PlanReport, steps_done: usize) {
        let directory = plan.run_directory.clone();
        let mut sessions = if steps_done > 0 || directory.join("run.json").exists() {
            Record::read(&directory).map_or_else(Vec::new, |record| record.sessions)
        } else {
            Vec::new()
        };
        for session in &mut sessions {
            if session.state == State::Running {
                session.state = State::Killed;
            }
        }
        let command = secrets::without_secrets(std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()));
        sessions.drain(..sessions.len().saturating_sub(MOST_SESSIONS - 1));
        sessions.push(Session {
            command: command.clone(),
            started: clock::now(),
            finished: None,
            state: State::Running,
            first_step: steps_done,
            last_step: steps_done,
            seconds: None,
            error: None,
            result: None,
        });
        self.record = Record {
            ft_version: env!("CARGO_PKG_VERSION").to_owned(),
            libtorch_version: option_env!("FT_LIBTORCH_VERSION").map(str::to_owned),
            host: Some(Host::here()),
            sessions,
            plan: serde_json::to_value(plan).ok(),
        };
        self.directory = Some(directory);
        let verb = if steps_done > 0 { format!("going on after step {steps_done}") } else { "start".to_owned() };
        let line = format!("{verb}: {} steps, {}, {}: {}", plan.steps, plan.training, plan.machine.device, command.join(" "));
        self.log(&line);
        for line in std::mem::take(&mut self.early) {
            self.log(line.split_once(' ').map_or("", |(_, words)| words));
        }
        self.write_record();
    }

    fn step(&mut self, report: &StepReport) {
        if let Some(session) = self.record.sessions.last_mut() {
            session.last_step = report.step;
        }
    }

    fn evaluation(&mut self, report: &EvaluationReport) {
        self.log(&format!(
            "evaluation: step {}, validation loss {}, {:.1} s",
            report.step, report.validation_loss, report.validation_seconds
        ));
    }

    fn sample(&mut self, step: usize, _markdown: &str) {
        self.log(&format!("samples: step {step}"));
    }

    fn checkpoint(&mut self, step: usize, path: &Path) {
        self.log(&format!("checkpoint: step {step}, {}", path.display()));
        if self.page.is_due() {
            self.write_page();
        }
    }

    fn warning(&mut self, message: &str) {
        self.log(&format!("warning: {message}"));
    }
}

/// A message and those of its causes.
fn chain(error: &ft_trainer::Error) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_takes_long_is_left_out_until_it_is_a_small_share() {
        let long_ago = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        assert!(Pace { written: long_ago, took: Duration::from_millis(199) }.is_due());
        assert!(!Pace { written: long_ago, took: Duration::from_secs(1) }.is_due());
    }

    #[test]
    fn a_record_reads_back_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Record::read(folder.path()).is_none());
        let session = Session {
            command: vec!["ft".to_owned(), "train".to_owned()],
            started: clock::now(),
            finished: None,
            state: State::Killed,
            first_step: 3,
            last_step: 7,
            seconds: Some(0.1),
            error: Some("it broke".to_owned()),
            result: None,
        };
        let record = Record { sessions: vec![session], host: Some(Host::here()), ..Record::default() };
        let text = json::text(&record).unwrap();
        fs::write(folder.path().join("run.json"), &text).unwrap();
        let read = Record::read(folder.path()).unwrap();
        assert_eq!((read.sessions, read.host), (record.sessions, record.host));
        fs::write(folder.path().join("run.json"), &text[..text.len() / 2]).unwrap();
        assert!(Record::read(folder.path()).is_none());
    }
}
