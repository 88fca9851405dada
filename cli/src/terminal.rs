//! Where words go: which stream is a terminal, and whether it shows colour.

use std::env;
use std::io::{self, IsTerminal, Write};

use owo_colors::OwoColorize;

use crate::error::{Error, Result};

/// The two streams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    pub(crate) stdout: Stream,
    pub(crate) stderr: Stream,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) is_terminal: bool,
    pub(crate) palette: Palette,
}

impl Terminal {
    /// The streams of this process. Colour needs a terminal that can show it, and no `NO_COLOR`.
    ///
    /// Source: <https://no-color.org>.
    pub(crate) fn detect() -> Self {
        let is_wanted =
            env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && env::var_os("TERM").is_none_or(|value| value != "dumb");
        let stream = |is_terminal| Stream { is_terminal, palette: Palette { is_coloured: is_terminal && is_wanted } };
        Self { stdout: stream(io::stdout().is_terminal()), stderr: stream(io::stderr().is_terminal()) }
    }

    /// Prints a piece of the result.
    pub(crate) fn write(&self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|source| Error::Output { source })
    }

    /// Prints a line of the result.
    pub(crate) fn print(&self, line: &str) -> Result<()> {
        self.write(&format!("{line}\n"))
    }

    /// Says something that is no result.
    pub(crate) fn note(&self, line: &str) {
        eprintln!("{line}");
    }

    /// Says something that the user should know.
    pub(crate) fn warn(&self, message: &str) {
        eprintln!("{} {message}", self.stderr.palette.warning("warning:"));
    }
}

/// The colours of a stream, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Palette {
    pub(crate) is_coloured: bool,
}

impl Palette {
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { is_coloured: false }
    }

    #[cfg(test)]
    pub(crate) fn coloured() -> Self {
        Self { is_coloured: true }
    }

    pub(crate) fn failure(self, text: &str) -> String {
        self.paint(text, |text| text.red().bold().to_string())
    }

    pub(crate) fn hint(self, text: &str) -> String {
        self.paint(text, |text| text.cyan().bold().to_string())
    }

    pub(crate) fn warning(self, text: &str) -> String {
        self.paint(text, |text| text.yellow().bold().to_string())
    }

    pub(crate) fn heading(self, text: &str) -> String {
        self.paint(text, |text| text.bold().to_string())
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint(text, |text| text.dimmed().to_string())
    }

    pub(crate) fn trained(self, text: &str) -> String {
        self.paint(text, |text| text.green().bold().to_string())
    }

    /// A special token in the midst of text.
    pub(crate) fn boxed(self, text: &str) -> String {
        self.paint(text, |text| text.reversed().to_string())
    }

    fn paint(self, text: &str, colour: impl Fn(&str) -> String) -> String {
        if !self.is_coloured {
            return text.to_owned();
        }
        // Line by line, so that a pager that starts in the middle shows it too.
        text.split('\n').map(|line| if line.is_empty() { String::new() } else { colour(line) }).collect::<Vec<_>>().join("\n")
    }
}
