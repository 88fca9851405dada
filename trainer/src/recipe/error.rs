//! What can be wrong with a recipe, and where.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ft_formats::Hint;

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read recipe {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its content is wrong.
    #[error("{0}")]
    Invalid(Problems),
}

impl Hint for RecipeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some(
                "give the path of a recipe; `ft recipes list` shows those that come with ft, `ft recipes copy NAME` copies one".to_owned(),
            ),
            Self::Invalid(problems) => problems.list.first().and_then(Problem::hint),
        }
    }
}

/// Everything that is wrong with a recipe, in the order of the file, overrides last.
#[derive(Debug, Clone, PartialEq)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    pub(super) fn new(found: Vec<Found>, text: &str, path: &Path) -> Self {
        let mut found = found;
        found.sort_by_key(|problem| match &problem.origin {
            Origin::Whole => (0, 0),
            Origin::File(range) => (1, range.start),
            Origin::Override { .. } => (2, 0),
        });
        let list = found.into_iter().map(|Found { origin, kind }| Problem { place: origin.place(text, path), kind }).collect();
        Self { list }
    }

    /// The problems; never empty.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            write!(formatter, "{problem}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What.
    pub kind: ProblemKind,
}

impl fmt::Display for Problem {
    /// The place and the problem on a line; below it, where it stands in the file, that line with a caret under the spot.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.kind)?;
        if let Place::File { line, column, text, width, .. } = &self.place {
            let number = line.to_string();
            let margin = " ".repeat(number.len());
            let blank: String = text.chars().take(column - 1).map(|character| if character == '\t' { '\t' } else { ' ' }).collect();
            write!(formatter, "\n{margin} |\n{number} | {text}\n{margin} | {blank}{}", "^".repeat(*width))?;
        }
        Ok(())
    }
}

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The character in it, counted from 1.
        column: usize,
        /// The line's text.
        text: String,
        /// Characters that are meant, at least 1.
        width: usize,
    },
    /// In a `--set`.
    Override {
        /// What was set: `section.key=value`.
        argument: String,
    },
    /// Nowhere in particular: something is missing.
    Whole {
        /// The file.
        path: PathBuf,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column, .. } => write!(formatter, "{}:{line}:{column}", path.display()),
            Self::Override { argument } => write!(formatter, "--set {argument}"),
            Self::Whole { path } => write!(formatter, "{}", path.display()),
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The text is no TOML.
    #[error("{message}")]
    Syntax {
        /// What the parser said.
        message: String,
    },
    /// An override that is not `section.key=value`.
    #[error("an override is written `section.key=value`")]
    Override,
    /// A key that does not exist.
    #[error("unknown key `{key}`{}", within(table))]
    UnknownKey {
        /// The key.
        key: String,
        /// The table that it stands in; empty at the top.
        table: String,
        /// The keys that may be meant, with their tables where those are others.
        nearest: Vec<String>,
        /// The keys that there are.
        known: Vec<String>,
    },
    /// A value of another type.
    #[error("`{key}` should be {expected}, found {found}")]
    WrongType {
        /// The key with its table.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
        /// A line that would do.
        example: String,
    },
    /// A word that is not among those that there are.
    #[error("`{key}` cannot be `{found}`")]
    UnknownChoice {
        /// The key with its table.
        key: String,
        /// The word.
        found: String,
        /// The words that there are.
        allowed: Vec<&'static str>,
        /// The ones that may be meant.
        nearest: Vec<String>,
    },
    /// A value that makes no sense.
    #[error("`{key}` should be {rule}, found {found}")]
    OutOfRange {
        /// The key with its table.
        key: &'static str,
        /// What it should be.
        rule: &'static str,
        /// What it is.
        found: String,
        /// A line that would do.
        example: String,
    },
    /// A key without which there is no recipe.
    #[error("missing key `{key}`")]
    Missing {
        /// The key with its table.
        key: &'static str,
        /// The lines that would do.
        example: String,
    },
    /// Two settings that contradict each other.
    #[error("`{later}` and `{earlier}` exclude each other")]
    Exclusive {
        /// The one that stands first.
        earlier: &'static str,
        /// The other.
        later: &'static str,
    },
    /// A setting of the contract that this version cannot honour.
    #[error("`{key}` is not supported by this version")]
    NotSupported {
        /// The setting.
        key: &'static str,
    },
    /// A value that the recipe's types refuse.
    #[error("{message}")]
    Refused {
        /// What the deserialiser said.
        message: String,
    },
}

impl Hint for Problem {
    fn hint(&self) -> Option<String> {
        Some(match &self.kind {
            ProblemKind::Syntax { .. } => {
                "a recipe is TOML: `key = value` line by line under `[table]` headings, texts in quotes".to_owned()
            }
            ProblemKind::Override => "for example `--set optimizer.learning_rate=1e-4`".to_owned(),
            ProblemKind::UnknownKey { nearest, known, table, .. } => {
                if !nearest.is_empty() {
                    format!("did you mean {}?", quoted(nearest, " or "))
                } else if table.is_empty() {
                    format!("a recipe has the tables {}", quoted(known, ", "))
                } else if known.is_empty() {
                    format!("`[{table}]` has no keys")
                } else {
                    format!("`[{table}]` has {}", quoted(known, ", "))
                }
            }
            ProblemKind::WrongType { example, .. } | ProblemKind::OutOfRange { example, .. } => {
                format!("for example `{example}`")
            }
            ProblemKind::UnknownChoice { allowed, nearest, .. } => {
                let allowed = allowed.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
                if nearest.is_empty() {
                    format!("it is one of {allowed}")
                } else {
                    format!("did you mean {}? it is one of {allowed}", quoted(nearest, " or "))
                }
            }
            ProblemKind::Missing { example, .. } => format!("add {example}"),
            ProblemKind::Exclusive { .. } => "keep one of them".to_owned(),
            ProblemKind::NotSupported { key } => format!("remove `{key}`"),
            ProblemKind::Refused { .. } => return None,
        })
    }
}

fn within(table: &str) -> String {
    if table.is_empty() { String::new() } else { format!(" in `[{table}]`") }
}

fn quoted(names: &[String], separator: &str) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(separator)
}

/// A problem that is not yet tied to a file's lines.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) origin: Origin,
    pub(super) kind: ProblemKind,
}

/// Where a key or value of the tree comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// Bytes of the file.
    File(Range<usize>),
    /// An override.
    Override { argument: String },
    /// Nowhere.
    Whole,
}

impl Origin {
    fn place(self, text: &str, path: &Path) -> Place {
        let range = match self {
            Self::Whole => return Place::Whole { path: path.to_path_buf() },
            Self::Override { argument } => return Place::Override { argument },
            Self::File(range) => range,
        };
        let start = floor_boundary(text, range.start);
        let end = floor_boundary(text, range.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let width = text[start..end.min(line_end)].trim_end().chars().count().max(1);
        Place::File {
            path: path.to_path_buf(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: text[line_start..line_end].trim_end().to_owned(),
            width,
        }
    }
}

/// The last character boundary at or before `index`.
fn floor_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|&index| text.is_char_boundary(index)).unwrap_or(0)
}
