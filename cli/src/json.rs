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
    let object = Versioned { version: VERSION, content };
    let text = serde_json::to_string(&object).map_err(|error| Error::Output { source: error.into() })?;
    terminal.print(&text)
}
