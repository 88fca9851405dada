//! Running `ft`, the programs built beside it, and the Python peers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the tests run in the repository that built them")
}

/// A program of the target folder that this test was built into: `built("ft")`, `built("examples/gradients")`.
///
/// # Panics
/// When it has not been built: `cargo test` alone does not build the programs of other packages.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let folder = test.parent().and_then(Path::parent).expect("tests are built into PROFILE/deps");
    let program = folder.join(name);
    assert!(program.is_file(), "{} has not been built: run `make test`", program.display());
    program
}

/// `ft` with arguments, run at the root of the repository as a person without a terminal would, with a token cache of the tests' own.
pub fn ft<I, S>(arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let program = built("ft");
    let cache = program.with_file_name("test-cache");
    let mut command = Command::new(program);
    command.args(arguments).current_dir(repository()).env_remove("LD_LIBRARY_PATH").env("NO_COLOR", "1").env("FT_CACHE", cache);
    command
}

/// A script of `tests/peers` with arguments.
///
/// # Panics
/// When the peers are not installed.
pub fn peer<I, S>(script: &str, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let python = repository().join(".venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `make peers`", python.display());
    let mut command = Command::new(python);
    command.arg(repository().join("tests/peers").join(script)).args(arguments).current_dir(repository());
    command
}

/// What a finished program said.
#[derive(Debug)]
pub struct Said {
    /// The exit code, or `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Said {
    match command.output() {
        Ok(output) => output.into(),
        Err(error) => panic!("{command:?} could not be started: {error}"),
    }
}

/// Runs a command that has to succeed and gives its standard output.
///
/// # Panics
/// When it fails; the message holds what it said.
pub fn succeed(command: &mut Command) -> String {
    let said = run(command);
    assert!(said.code == Some(0), "{command:?} ended with {:?}\n{}\n{}", said.code, said.stdout, said.stderr);
    said.stdout
}
