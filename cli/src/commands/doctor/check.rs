//! One check, and what came of it.

use serde::Serialize;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    /// It is as it should be.
    Pass,
    /// It may stop some runs.
    Warn,
    /// ft cannot work with it.
    Fail,
    /// It need not be here.
    Skip,
}

/// A check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What was looked at.
    pub(super) name: &'static str,
    pub(super) status: Status,
    /// What was found, and where.
    pub(super) found: String,
    /// What to do.
    pub(super) fix: Option<String>,
}

impl Check {
    pub(super) fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Pass, found: found.into(), fix: None }
    }

    pub(super) fn skip(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Skip, found: found.into(), fix: None }
    }

    pub(super) fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    pub(super) fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), fix: Some(fix.into()) }
    }
}
