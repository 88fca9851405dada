//! Results for scripts: one JSON object on stdout, with the version of its form.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::terminal::Terminal;

/// Version of every object that is printed.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

/// Prints `content`, which is a struct, as JSON. Numbers read back to the same bits.
pub(crate) fn print(content: &impl Serialize, terminal: &Terminal) -> Result<()> {
    terminal.print(&text(content)?)
}

/// The same object as text.
pub(crate) fn text(content: &impl Serialize) -> Result<String> {
    serde_json::to_string(&Versioned { version: VERSION, content }).map_err(|error| Error::Output { source: error.into() })
}
