//! Progress of reading or writing bytes, on stderr.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal::Terminal;
use crate::units::{bytes, duration, share};

/// Seconds between two lines where stderr is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// A bar on a terminal; elsewhere a line every few seconds, so that short work says nothing.
#[derive(Debug)]
pub(crate) struct ByteProgress {
    label: String,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
    done: u64,
}

impl ByteProgress {
    pub(crate) fn new(label: String, terminal: &Terminal) -> Self {
        let bar = terminal.stderr.is_terminal.then(|| {
            let template = "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
            let bar = ProgressBar::no_length().with_message(label.clone());
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { label, bar, started: Instant::now(), last_line: Instant::now(), done: 0 }
    }

    /// `more` bytes of `total` are done.
    pub(crate) fn advance(&mut self, more: u64, total: u64) {
        self.set(self.done.saturating_add(more), total);
    }

    /// `done` bytes of `total` are done.
    pub(crate) fn set(&mut self, done: u64, total: u64) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}: {} of {}, {} left", self.label, share(done, total), bytes(total), duration(self.seconds_left(total)));
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

impl Drop for ByteProgress {
    fn drop(&mut self) {
        self.finish();
    }
}
