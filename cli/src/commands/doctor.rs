//! `ft doctor`: whether this machine has what ft needs, and what to do where it has not.

mod accounts;
mod check;
mod gpu;
mod machine;
mod program;

use clap::Args;
use serde::Serialize;

use self::check::{Check, Status};
use crate::error::{Error, Result};
use crate::json;
use crate::terminal::{Palette, Terminal};
use crate::units::counted;

/// Check what ft needs of this machine: libtorch, GPU, memory, disk, accounts
///
/// Every check says what it found and where, and what to do where something is missing. A failure is what ft cannot work with, a warning what may
/// stop some runs. What this machine need not have is skipped: without an NVIDIA GPU, ft computes on the CPU. Tokens and keys are never printed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft doctor
  ft doctor --json | jq '.checks[] | select(.status == \"fail\")'

Exit code 1 when a check fails; warnings are no failures.

JSON: {\"version\": 1, \"ft\", \"failures\", \"warnings\", \"checks\": [{\"name\", \"status\": pass|warn|fail|skip, \"found\", \"fix\" or null}]}")]
pub(crate) struct Arguments {
    /// Print the checks as JSON
    #[arg(long)]
    json: bool,
}

/// All checks.
#[derive(Debug, Serialize)]
struct Outcome {
    ft: &'static str,
    failures: usize,
    warnings: usize,
    checks: Vec<Check>,
}

/// Check, print, judge.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let checks: Vec<Check> = [program::checks(), gpu::checks(), machine::checks(), accounts::checks()].into_iter().flatten().collect();
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let outcome = Outcome { ft: env!("CARGO_PKG_VERSION"), failures: count(Status::Fail), warnings: count(Status::Warn), checks };
    if arguments.json {
        json::print(&outcome, terminal)?;
    } else {
        terminal.print(&words(&outcome, terminal.stdout.palette))?;
    }
    match outcome.failures {
        0 => Ok(()),
        failures => Err(Error::Doctor { failures }),
    }
}

/// A line for each check, the fix below it where there is one, and the counts.
fn words(outcome: &Outcome, palette: Palette) -> String {
    let width = outcome.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = format!("{}\n", palette.heading(&format!("ft {}", outcome.ft)));
    for Check { name, status, found, fix } in &outcome.checks {
        let word = match status {
            Status::Pass => palette.trained("PASS"),
            Status::Warn => palette.warning("WARN"),
            Status::Fail => palette.failure("FAIL"),
            Status::Skip => palette.dim("SKIP"),
        };
        text += &format!("{word}  {name:width$}  {found}\n");
        if let Some(fix) = fix {
            text += &format!("      {:width$}  {} {fix}\n", "", palette.hint("fix:"));
        }
    }
    let counts = [counted(outcome.failures, "failure"), counted(outcome.warnings, "warning")].join(", ");
    text + &format!("{}: {counts}", counted(outcome.checks.len(), "check"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fix_stands_below_what_it_mends() {
        let checks = vec![Check::pass("disk", "9 GB"), Check::fail("libtorch", "none", "make setup")];
        let outcome = Outcome { ft: "1.0.0", failures: 1, warnings: 0, checks };
        assert_eq!(
            words(&outcome, Palette::plain()),
            "ft 1.0.0\nPASS  disk      9 GB\nFAIL  libtorch  none\n                fix: make setup\n2 checks: 1 failure, 0 warnings"
        );
    }

    #[test]
    fn whatever_fails_or_warns_has_a_fix() {
        let checks: Vec<Check> = [program::checks(), gpu::checks(), machine::checks(), accounts::checks()].into_iter().flatten().collect();
        assert!(checks.len() >= 12, "{checks:?}");
        for check in checks {
            let needs_fix = matches!(check.status, Status::Warn | Status::Fail);
            assert!(!check.found.is_empty() && (!needs_fix || check.fix.is_some()), "{check:?}");
        }
    }
}
