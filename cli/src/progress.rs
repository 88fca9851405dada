//! Progress of work that is counted in bytes or tokens, on stderr.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal::Terminal;
use crate::units::{bytes, duration, share, whole};

/// Seconds between two lines where stderr is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// What is counted.
pub(crate) trait Unit {
    /// The bar, for indicatif.
    const TEMPLATE: &'static str;
    /// So many of it.
    fn words(count: u64) -> String;
}

#[derive(Debug)]
pub(crate) enum Bytes {}

#[derive(Debug)]
pub(crate) enum Tokens {}

#[derive(Debug)]
pub(crate) enum Elements {}

impl Unit for Bytes {
    const TEMPLATE: &'static str = "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";

    fn words(count: u64) -> String {
        bytes(count)
    }
}

impl Unit for Tokens {
    const TEMPLATE: &'static str = "{msg} [{bar:30}] {human_pos}/{human_len} tokens, {eta} left";

    fn words(count: u64) -> String {
        format!("{} tokens", whole(count))
    }
}

impl Unit for Elements {
    const TEMPLATE: &'static str = "{msg} [{bar:30}] {human_pos}/{human_len} weights, {eta} left";

    fn words(count: u64) -> String {
        format!("{} weights", whole(count))
    }
}

/// Progress in bytes.
pub(crate) type ByteProgress = Progress<Bytes>;

/// Progress in tokens.
pub(crate) type TokenProgress = Progress<Tokens>;

/// Progress in weights.
pub(crate) type ElementProgress = Progress<Elements>;

/// A bar on a terminal; elsewhere a line every few seconds, so that short work says nothing.
#[derive(Debug)]
pub(crate) struct Progress<U: Unit> {
    label: String,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
    done: u64,
    unit: PhantomData<U>,
}

impl<U: Unit> Progress<U> {
    pub(crate) fn new(label: String, terminal: &Terminal) -> Self {
        let bar = terminal.stderr.is_terminal.then(|| {
            let bar = ProgressBar::no_length().with_message(label.clone());
            bar.set_style(ProgressStyle::with_template(U::TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { label, bar, started: Instant::now(), last_line: Instant::now(), done: 0, unit: PhantomData }
    }

    /// `more` of `total` are done.
    pub(crate) fn advance(&mut self, more: u64, total: u64) {
        self.set(self.done.saturating_add(more), total);
    }

    /// `done` of `total` are done.
    pub(crate) fn set(&mut self, done: u64, total: u64) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}: {} of {}, {} left", self.label, share(done, total), U::words(total), duration(self.seconds_left(total)));
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn seconds_left(&self, total: u64) -> f64 {
        let left = total.saturating_sub(self.done) as f64;
        self.started.elapsed().as_secs_f64() / (self.done.max(1) as f64) * left
    }
}

impl<U: Unit> Drop for Progress<U> {
    fn drop(&mut self) {
        self.finish();
    }
}
