//! `ft man`: manual pages, written from the command line's own description.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;

use crate::arguments::command;
use crate::error::{Error, Result};
use crate::terminal::Terminal;

/// Print the manual page, or write one for ft and one for each verb into a folder
///
/// `make install` puts them where `man ft` and `man ft-train` find them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft man | man -l -
  ft man ~/.local/share/man/man1")]
pub(crate) struct Arguments {
    /// The folder that all pages are written into
    directory: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    match &arguments.directory {
        None => terminal.write(&page(command())?),
        Some(directory) => write_all(directory, terminal),
    }
}

/// A page as roff.
fn page(command: Command) -> Result<String> {
    let mut roff = Vec::new();
    Man::new(command).render(&mut roff).map_err(|source| Error::Output { source })?;
    Ok(String::from_utf8_lossy(&roff).into_owned())
}

/// Writes `ft.1` and `ft-VERB.1`, and says where they are.
fn write_all(directory: &Path, terminal: &Terminal) -> Result<()> {
    fs::create_dir_all(directory).map_err(|source| Error::File { action: "create", path: directory.to_owned(), source })?;
    for (name, text) in pages()? {
        let path = directory.join(name);
        fs::write(&path, text).map_err(|source| Error::File { action: "write", path: path.clone(), source })?;
        terminal.print(&path.display().to_string())?;
    }
    Ok(())
}

/// Names of files with their pages. Words within a verb, such as `ft recipes copy`, are on the verb's page.
fn pages() -> Result<Vec<(String, String)>> {
    let mut whole = command();
    whole.build();
    let mut pages = vec![("ft.1".to_owned(), page(whole.clone())?)];
    for verb in whole.get_subcommands() {
        pages.push((format!("ft-{}.1", verb.get_name()), page(verb.clone())?));
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_with_its_examples() {
        let pages = pages().unwrap();
        assert_eq!(pages.len(), 1 + command().get_subcommands().count());
        for (name, text) in pages {
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{name}: {text}");
            assert!(name == "ft.1" || text.contains("Examples:"), "{name}: {text}");
        }
    }
}
