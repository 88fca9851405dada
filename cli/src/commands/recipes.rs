//! `ft recipes`: the recipes that come with ft.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ft_trainer::recipe::{Recipe, SCHEMA_ID};
use serde::Serialize;

use crate::embedded::{DATA, Embedded, RECIPES, SCHEMA, recipe};
use crate::error::{Error, Result};
use crate::json;
use crate::terminal::Terminal;

/// List, show or copy the recipes that come with ft; say what a recipe may hold
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft recipes
  ft recipes show quickstart
  ft recipes copy quickstart            quickstart.toml and its data, into this folder
  ft recipes copy quickstart work/
  ft recipes schema > recipe.schema.json      for editors that complete and check TOML
  ft recipes reference                        every table and key, in Markdown")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Names and what they are for
    List,
    /// Print a recipe
    Show {
        /// Its name
        name: String,
    },
    /// Copy a recipe, the data that it uses and the schema for editors into a folder
    Copy {
        /// Its name
        name: String,
        /// The folder
        #[arg(default_value = ".")]
        directory: PathBuf,
    },
    /// Print the JSON schema of recipes, for editors
    Schema,
    /// Print every table and key with its default, in Markdown
    Reference,
}

#[derive(Serialize)]
struct Outcome {
    recipes: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    summary: String,
}

pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    match &arguments.action {
        None | Some(Action::List) => list(arguments.json, terminal),
        Some(Action::Show { name }) => terminal.write(find(name)?.text),
        Some(Action::Copy { name, directory }) => copy(find(name)?, directory, terminal),
        Some(Action::Schema) => terminal.write(&Recipe::json_schema_text()),
        Some(Action::Reference) => terminal.write(&Recipe::reference()),
    }
}

fn list(as_json: bool, terminal: &Terminal) -> Result<()> {
    let recipes: Vec<Entry> = RECIPES.iter().map(|recipe| Entry { name: recipe.stem(), summary: recipe.summary() }).collect();
    if as_json {
        return json::print(&Outcome { recipes }, terminal);
    }
    for entry in recipes {
        terminal.print(&format!("{}\n  {}", terminal.stdout.palette.heading(entry.name), entry.summary))?;
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Embedded> {
    let known = || RECIPES.iter().map(Embedded::stem).collect();
    recipe(name).ok_or_else(|| Error::UnknownRecipe { name: name.to_owned(), known: known() })
}

/// Copies the recipe and its data. The copy finds its data beside itself.
fn copy(recipe: &Embedded, directory: &Path, terminal: &Terminal) -> Result<()> {
    let text = recipe.text.replace("\"recipes/data/", "\"data/");
    let parsed = Recipe::from_text(&text, Path::new(recipe.name), &[])?;
    let sources: Vec<&String> = parsed.dataset.train.iter().chain(&parsed.dataset.validation).collect();
    let is_used = |file: &&Embedded| sources.iter().any(|source| matches(source, file.name));
    let files = DATA.iter().filter(is_used).map(|file| (file.name, file.text)).chain([(recipe.name, text.as_str())]);
    let files: Vec<(PathBuf, &str)> = files.map(|(name, text)| (directory.join(name), text)).collect();
    if let Some((path, _)) = files.iter().find(|(path, text)| path.exists() && !has_text(path, text)) {
        return Err(Error::Exists { path: path.clone() });
    }
    for (path, text) in files.iter().filter(|(path, text)| !has_text(path, text)) {
        write_new(path, text).map_err(|source| Error::File { action: "write", path: path.clone(), source })?;
        terminal.print(&path.display().to_string())?;
    }
    copy_schema(directory, terminal)
}

/// Puts the schema beside a copied recipe. That of another version of ft gives way; a file that is none of ft's stays.
fn copy_schema(directory: &Path, terminal: &Terminal) -> Result<()> {
    let (path, text) = (directory.join(SCHEMA), Recipe::json_schema_text());
    let is_other = |found: Vec<u8>| serde_json::from_slice(&found).is_ok_and(|found: serde_json::Value| found["$id"] != SCHEMA_ID);
    if has_text(&path, &text) || fs::read(&path).is_ok_and(is_other) {
        return Ok(());
    }
    fs::write(&path, text).map_err(|source| Error::File { action: "write", path: path.clone(), source })?;
    terminal.print(&path.display().to_string())
}

/// Whether the source of a recipe, a path or a pattern with `*`, names the file.
fn matches(source: &str, file: &str) -> bool {
    match source.split_once('*') {
        Some((before, after)) => file.len() >= before.len() + after.len() && file.starts_with(before) && file.ends_with(after),
        None => source == file || file.strip_prefix(source.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/')),
    }
}

fn has_text(path: &Path, text: &str) -> bool {
    fs::read(path).is_ok_and(|found| found == text.as_bytes())
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_files_folders_or_patterns() {
        assert!(matches("data/*.jsonl", "data/a.jsonl") && matches("data", "data/a.jsonl") && matches("data/a.jsonl", "data/a.jsonl"));
        assert!(!matches("data/b*.jsonl", "data/a.jsonl") && !matches("dat", "data/a.jsonl"));
    }

    #[test]
    fn a_copy_works_where_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let terminal = Terminal::detect();
        for recipe in RECIPES {
            copy(recipe, folder.path(), &terminal).unwrap();
            // A second time finds everything in its place.
            copy(recipe, folder.path(), &terminal).unwrap();
            let read = Recipe::from_file(&folder.path().join(recipe.name), &[]).unwrap();
            let has_data = !DATA.is_empty();
            assert!(
                !has_data || read.dataset.train.iter().all(|source| source.starts_with(folder.path().to_str().unwrap())),
                "{:?}",
                read.dataset
            );
        }
        let schema = folder.path().join(SCHEMA);
        assert_eq!(fs::read_to_string(&schema).unwrap(), Recipe::json_schema_text());
        for (found, stays) in [("{\"$id\": \"mine\"}", true), ("{\"$id\": \"ft:recipe.schema.json\"}", false)] {
            fs::write(&schema, found).unwrap();
            copy(&RECIPES[0], folder.path(), &terminal).unwrap();
            assert_eq!(fs::read_to_string(&schema).unwrap() == found, stays, "{found}");
        }
        fs::write(folder.path().join(RECIPES[0].name), "mine").unwrap();
        assert!(matches!(copy(&RECIPES[0], folder.path(), &terminal), Err(Error::Exists { .. })));
    }
}
