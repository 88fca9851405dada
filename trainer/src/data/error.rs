//! What can be wrong with data, and where.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::sample::SampleOrigin;

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file.display(), self.line)
    }
}

/// What kind of name was not recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameKind {
    /// `role` or `from`.
    Role,
    /// `channel`.
    Channel,
    /// `reasoning`.
    ReasoningLevel,
    /// `type` of a content part.
    ContentType,
    /// `type` of a tool or of a tool call.
    ToolType,
}

impl fmt::Display for NameKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            NameKind::Role => "role",
            NameKind::Channel => "channel",
            NameKind::ReasoningLevel => "reasoning level",
            NameKind::ContentType => "content type",
            NameKind::ToolType => "tool type",
        })
    }
}

/// Why a sample has no token to train on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NothingToTrain {
    /// There is no assistant message.
    NoAssistant,
    /// Every assistant message has weight 0, by its channel or by its own `weight`.
    AllWeightsZero,
    /// The text is empty.
    EmptyText,
}

impl fmt::Display for NothingToTrain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            NothingToTrain::NoAssistant => "it has no assistant message",
            NothingToTrain::AllWeightsZero => "every assistant message in it has loss weight 0",
            NothingToTrain::EmptyText => "its text is empty",
        })
    }
}

/// Data that cannot be trained on, and where it stands.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A source is neither a file, nor a folder, nor a pattern that matches one.
    #[error("no data at `{origin}`")]
    MissingSource {
        /// The source as written.
        origin: String,
    },
    /// A pattern that cannot be read.
    #[error("`{origin}` is no file pattern")]
    Pattern {
        /// The source as written.
        origin: String,
        /// What is wrong with it.
        #[source]
        source: glob::PatternError,
    },
    /// A source without a conversation.
    #[error("no conversation in `{origin}`")]
    EmptySource {
        /// The source as written.
        origin: String,
    },
    /// A file of a kind that is not read.
    #[error("cannot read conversations from `{}`: `.{extension}` is not supported by this version", path.display())]
    UnsupportedFormat {
        /// The file.
        path: PathBuf,
        /// Its extension.
        extension: String,
    },
    /// A file that is not what its name says.
    #[error("`{}` is no {expected} file", path.display())]
    NotOfItsKind {
        /// The file.
        path: PathBuf,
        /// What its name says.
        expected: &'static str,
    },
    /// What Git LFS leaves in the place of a file that was not fetched.
    #[error("`{}` is a Git LFS pointer, not the data itself", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A packed file that is broken or cut.
    #[error("cannot unpack `{}` as {format}", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// How it is packed.
        format: &'static str,
        /// What the unpacker said.
        #[source]
        source: io::Error,
    },
    /// A table that is broken or cut.
    #[error("cannot read `{}` as {format}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: &'static str,
        /// What the reader said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A line that is too long to be one conversation.
    #[error("{place}: the line is longer than {} MB", limit_bytes >> 20)]
    LongLine {
        /// The line.
        place: Place,
        /// Longest line, in bytes.
        limit_bytes: u64,
    },
    /// An array that is too long to be read as one.
    #[error("`{}` is one JSON array of more than {} MB", path.display(), limit_bytes >> 20)]
    LargeArray {
        /// The file.
        path: PathBuf,
        /// Longest text of an array, in bytes.
        limit_bytes: u64,
    },
    /// A column of a type that says nothing in a conversation.
    #[error("{place}: column `{column}` has type {found}, which holds no text")]
    ColumnType {
        /// The row.
        place: Place,
        /// The column.
        column: String,
        /// Its type, as Arrow names it.
        found: String,
    },
    /// A number that is none.
    #[error("{place}: column `{column}` holds a number that is not finite")]
    NotANumber {
        /// The row.
        place: Place,
        /// The column.
        column: String,
    },
    /// A column that the recipe names and the data does not have.
    #[error("{place}: no column `{column}`, which `dataset.columns.{key}` names")]
    MissingColumn {
        /// The row.
        place: Place,
        /// What the column stands for.
        key: &'static str,
        /// Its name in the recipe.
        column: String,
        /// The columns that there are.
        found: Vec<String>,
    },
    /// Tokens that could not be kept.
    #[error("cannot write tokens to `{}`", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Samples that do not fit the columns that hold them.
    #[error("the samples do not fit into columns")]
    Columns {
        /// What Arrow said.
        #[source]
        source: arrow::error::ArrowError,
    },
    /// Columns that are not those of samples.
    #[error("the cached columns are not those of samples")]
    ForeignColumns,
    /// The operating system refused.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A line is not JSON.
    #[error("{place}:{column}: broken JSON: {reason}")]
    Json {
        /// The line.
        place: Place,
        /// The column in bytes, counted from 1.
        column: usize,
        /// What the parser said, less the place, which it counts within the line.
        reason: String,
    },
    /// A line's keys are of no shape that is known.
    #[error("{place}: no known conversation shape has the keys {}", quoted(keys))]
    UnknownShape {
        /// The line.
        place: Place,
        /// Its keys.
        keys: Vec<String>,
        /// A key that is close to one of a shape, and that one.
        nearest: Option<(String, &'static str)>,
    },
    /// A key that is not known.
    #[error("{place}: unknown key `{key}` in {at}")]
    UnknownKey {
        /// The line.
        place: Place,
        /// Where in the line.
        at: String,
        /// The key.
        key: String,
        /// The known key that is closest.
        nearest: Option<&'static str>,
    },
    /// A key that is missing.
    #[error("{place}: missing key `{key}` in {at}")]
    MissingKey {
        /// The line.
        place: Place,
        /// Where in the line.
        at: String,
        /// The key.
        key: &'static str,
    },
    /// A key that means nothing for this role.
    #[error("{place}: key `{key}` in {at} is not for a message of role `{role}`")]
    KeyNotForRole {
        /// The line.
        place: Place,
        /// Where in the line.
        at: String,
        /// The key.
        key: &'static str,
        /// The role.
        role: &'static str,
    },
    /// A value of the wrong type.
    #[error("{place}: {at} should be {expected}, found {found}")]
    WrongType {
        /// The line.
        place: Place,
        /// Where in the line.
        at: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A role, channel or level that does not exist.
    #[error("{place}: unknown {kind} `{found}` in {at}")]
    UnknownName {
        /// The line.
        place: Place,
        /// Where in the line.
        at: String,
        /// What kind of name.
        kind: NameKind,
        /// The name, shortened when long.
        found: String,
        /// The names that exist.
        allowed: Vec<&'static str>,
        /// The one that is closest.
        nearest: Option<&'static str>,
    },
    /// A tool's result that belongs to no call.
    #[error("{place}: {at} does not say which tool it comes from")]
    ToolWithoutName {
        /// The line.
        place: Place,
        /// Where in the line.
        at: String,
    },
    /// A tool's result for a call that was not made.
    #[error("{place}: `tool_call_id` `{id}` in {at} is of no tool call before it")]
    UnknownCall {
        /// The line.
        place: Place,
        /// Where in the line.
        at: String,
        /// The id.
        id: String,
    },
    /// A tool call beside an answer.
    #[error("{place}: {at} is on channel `final` and has tool calls")]
    FinalWithToolCalls {
        /// The line.
        place: Place,
        /// Where in the line.
        at: String,
    },
    /// A conversation that trains nothing.
    #[error("{place}: nothing to train on: {reason}")]
    NothingToTrain {
        /// The line.
        place: Place,
        /// Why.
        reason: NothingToTrain,
    },
    /// A sample that is longer than the limit.
    #[error("{origin}: sample of {tokens} tokens is longer than `dataset.max_tokens` = {max_tokens}")]
    Overlong {
        /// The line, and the turn where the conversation makes several samples.
        origin: SampleOrigin,
        /// Its length in tokens.
        tokens: usize,
        /// The limit in tokens.
        max_tokens: usize,
    },
    /// Every sample was longer than the limit.
    #[error("no sample is left: all {dropped} are longer than `dataset.max_tokens` = {max_tokens}")]
    AllDropped {
        /// How many there were.
        dropped: usize,
        /// The limit in tokens.
        max_tokens: usize,
    },
}

impl DataError {
    pub(super) fn json(place: Place, error: &serde_json::Error) -> DataError {
        let said = error.to_string();
        let reason = said.split(" at line ").next().unwrap_or(&said).to_owned();
        DataError::Json { place, column: error.column().max(1), reason }
    }

    pub(super) fn read(path: &Path, source: io::Error) -> DataError {
        DataError::Read { path: path.to_owned(), source }
    }
}

impl ft_formats::Hint for DataError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            DataError::MissingSource { origin } if looks_like_hub_id(origin) => format!(
                "there is no file of that name; if `{origin}` is a dataset of the Hugging Face Hub, download it and give \
                 the path of its files"
            ),
            DataError::MissingSource { .. } => {
                "give a file (JSONL, Parquet, Arrow), a folder with such files, or a pattern such as `data/*.jsonl`".to_owned()
            }
            DataError::EmptySource { .. } => {
                "a folder is searched for .jsonl and .ndjson files, these with .gz or .zst, .parquet, .arrow, .feather and .ipc".to_owned()
            }
            DataError::UnsupportedFormat { .. } => "convert it to JSONL, one JSON object per line, or to Parquet".to_owned(),
            DataError::LfsPointer { .. } => "fetch the data itself with `git lfs pull`".to_owned(),
            DataError::Compressed { .. } | DataError::Table { .. } => "the file may be cut or damaged: fetch or write it again".to_owned(),
            DataError::Cache { .. } => "free some space, or set FT_CACHE (without a cache, TMPDIR) to a folder with more".to_owned(),
            DataError::LargeArray { .. } => "convert it to JSONL: one JSON object per line".to_owned(),
            DataError::MissingColumn { found, .. } => format!("the columns are {}", quoted(found)),
            DataError::Json { .. } => "each line is one complete JSON object; line breaks inside a text are written \\n".to_owned(),
            DataError::UnknownShape { nearest: Some((found, meant)), .. } => format!("`{found}` may mean `{meant}`"),
            DataError::UnknownShape { .. } => "a line has `messages`, `conversations`, `prompt` and `completion`, \
                                               `instruction` and `output`, or `text`; `[dataset.columns]` says which column is which"
                .to_owned(),
            DataError::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            DataError::UnknownName { allowed, nearest, .. } => match nearest {
                Some(nearest) => format!("did you mean `{nearest}`? known are {}", quoted(allowed)),
                None => format!("known are {}", quoted(allowed)),
            },
            DataError::ToolWithoutName { .. } => "give the tool's name as `name`, or the call's id as `tool_call_id`".to_owned(),
            DataError::FinalWithToolCalls { .. } => {
                "words to the user before a tool call go to `commentary`; leave `channel` out for that".to_owned()
            }
            DataError::NothingToTrain { reason: NothingToTrain::AllWeightsZero, .. } => {
                "raise a channel's weight in [loss], or remove the line".to_owned()
            }
            DataError::NothingToTrain { .. } => "remove the line, or complete it".to_owned(),
            DataError::Overlong { tokens, .. } => {
                format!("set `dataset.max_tokens` to {tokens} or more, or `dataset.overlong` to \"truncate\" or \"drop\"")
            }
            DataError::AllDropped { .. } => "raise `dataset.max_tokens`".to_owned(),
            _ => return None,
        })
    }
}

/// Whether `origin` reads like `owner/name`.
fn looks_like_hub_id(origin: &str) -> bool {
    origin.matches('/').count() == 1 && !origin.contains(['.', '*', '\\', ' ']) && !origin.starts_with('/')
}

fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    if names.is_empty() {
        return "(none)".to_owned();
    }
    names.iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// The known name that `found` may be a misspelling of.
pub(super) fn nearest_name(found: &str, known: &[&'static str]) -> Option<&'static str> {
    let found = found.to_lowercase();
    known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&found, name), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).clamp(1, 2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
