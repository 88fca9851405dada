//! Sends a run as it goes, from a thread of its own: the network may hang for as long as it likes.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::super::journal::Header;
use super::client::{Client, ClientError, RemoteRun};
use super::rows::Row;
use super::settings::{Destination, Settings};

/// Rows are collected for so long before they are sent.
const INTERVAL: Duration = Duration::from_secs(2);
/// A run that says nothing for longer than some minutes counts as crashed.
const HEARTBEAT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Rows of one request, at most.
const MOST_LINES: usize = 2000;
/// Rows that wait for the network, at most: the directory on disk has them all.
const MOST_WAITING: usize = 200_000;

enum Message {
    Row { line: String, summary: Map<String, Value> },
    Finish { summary: Map<String, Value>, exit_code: u8, limit: Duration },
}

/// To the thread that sends.
#[derive(Debug)]
pub(in crate::tracking) struct Sender {
    messages: mpsc::Sender<Message>,
    /// Rows that were not sent, when all is over.
    done: Receiver<usize>,
}

impl Sender {
    /// Begins to send the run; problems are told to `warn`.
    pub(in crate::tracking) fn start(
        destination: Destination,
        header: Header,
        settings: Settings,
        warn: mpsc::Sender<String>,
    ) -> io::Result<Self> {
        let (messages, received) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let work = move || {
            let mut state =
                State { client: None, run: None, header, settings, lines: Vec::new(), first: 0, warn, is_told: false, has_given_up: false };
            let unsent = state.work(destination, &received);
            // Nobody may be waiting any more.
            let _ = finished.send(unsent);
        };
        std::thread::Builder::new().name("wandb".to_owned()).spawn(work)?;
        Ok(Self { messages, done })
    }

    pub(in crate::tracking) fn push(&self, row: &Row, summary: &Map<String, Value>) {
        let line = Value::Object(row.values.clone()).to_string();
        // A sender that has given up has said so.
        let _ = self.messages.send(Message::Row { line, summary: summary.clone() });
    }

    /// Waits until everything is sent, at most for `limit`; gives the number of rows that are not.
    pub(in crate::tracking) fn finish(self, summary: Map<String, Value>, exit_code: u8, limit: Duration) -> Option<usize> {
        let _ = self.messages.send(Message::Finish { summary, exit_code, limit });
        self.done.recv_timeout(limit).ok()
    }
}

struct State {
    client: Option<Client>,
    run: Option<RemoteRun>,
    header: Header,
    settings: Settings,
    /// Rows that wait.
    lines: Vec<String>,
    /// Number of the first of them, counted from the beginning of the run.
    first: usize,
    warn: mpsc::Sender<String>,
    is_told: bool,
    has_given_up: bool,
}

impl State {
    /// Sends until the end; gives the number of rows that were not.
    fn work(&mut self, destination: Destination, messages: &Receiver<Message>) -> usize {
        match Client::new(destination, &self.header.id) {
            Ok(client) => self.client = Some(client),
            Err(error) => self.give_up(&error),
        }
        let mut summary = Map::new();
        let mut pause = FIRST_PAUSE;
        let mut due = Instant::now();
        let mut last_sent = Instant::now();
        let mut end: Option<(u8, Instant)> = None;
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            match messages.recv_timeout(wait) {
                Ok(Message::Row { line, summary: newest }) => {
                    summary = newest;
                    self.push(line);
                    continue;
                }
                Ok(Message::Finish { summary: newest, exit_code, limit }) => {
                    summary = newest;
                    end = Some((exit_code, Instant::now() + limit));
                    (due, pause) = (Instant::now(), FIRST_PAUSE);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The run is gone without a word.
                Err(RecvTimeoutError::Disconnected) if end.is_none() => return self.lines.len(),
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
            }
            if self.has_given_up {
                if end.is_some() {
                    return self.lines.len();
                }
                due = Instant::now() + LONGEST_PAUSE;
                continue;
            }
            let is_beat_due = last_sent.elapsed() >= HEARTBEAT;
            let sent = if self.lines.is_empty() && self.run.is_some() && !is_beat_due && end.is_none() {
                Ok(())
            } else {
                self.send(&summary, is_beat_due).and_then(|()| end.map_or(Ok(()), |(code, _)| self.complete(code)))
            };
            match sent {
                Ok(()) if end.is_some() => return 0,
                Ok(()) => {
                    if is_beat_due || self.lines.is_empty() {
                        last_sent = Instant::now();
                    }
                    (due, pause) = (Instant::now() + INTERVAL, FIRST_PAUSE);
                }
                Err(ClientError::Lasting(reason)) => self.give_up(&ClientError::Lasting(reason)),
                Err(ClientError::Passing(reason)) => {
                    self.tell(&format!("Weights & Biases: {reason}; it is tried again, and the run goes on"));
                    (due, pause) = (Instant::now() + pause, (pause * 2).min(LONGEST_PAUSE));
                }
            }
            if end.is_some_and(|(_, limit)| Instant::now() >= limit) {
                return self.lines.len();
            }
        }
    }

    fn push(&mut self, line: String) {
        if self.lines.len() < MOST_WAITING {
            self.lines.push(line);
        } else if !self.has_given_up {
            self.give_up(&ClientError::Lasting("too much waits to be sent".to_owned()));
        }
    }

    fn send(&mut self, summary: &Map<String, Value>, is_beat_due: bool) -> Result<(), ClientError> {
        let Some(client) = &self.client else { return Ok(()) };
        let run = match &self.run {
            Some(run) => run,
            None => {
                let run = client.upsert(&self.header, &self.settings)?;
                self.run.insert(run)
            }
        };
        if self.lines.is_empty() && is_beat_due {
            return client.heartbeat(run);
        }
        while !self.lines.is_empty() {
            let count = self.lines.len().min(MOST_LINES);
            // A line that the server has already, from before a resumed run's checkpoint, is written over by the same.
            client.send(run, self.first, &self.lines[..count], summary)?;
            self.lines.drain(..count);
            self.first += count;
        }
        Ok(())
    }

    fn complete(&self, exit_code: u8) -> Result<(), ClientError> {
        match (&self.client, &self.run) {
            (Some(client), Some(run)) => client.complete(run, exit_code),
            _ => Ok(()),
        }
    }

    /// Once: a network that is gone is gone for every row.
    fn tell(&mut self, words: &str) {
        if !std::mem::replace(&mut self.is_told, true) {
            let _ = self.warn.send(words.to_owned());
        }
    }

    fn give_up(&mut self, error: &ClientError) {
        self.has_given_up = true;
        let _ = self.warn.send(format!("Weights & Biases: {error}; nothing more is sent, and the run goes on"));
    }
}
