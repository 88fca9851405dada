//! How an error looks, and the exit code that it ends in.

use std::io;
use std::panic;
use std::path::Path;
use std::process::ExitCode;

use ft_formats::Hint;
use ft_trainer::recipe::{Problem, RecipeError};

use crate::error::{Error, io_error};
use crate::terminal::{Palette, Terminal};

/// The user's input, recipe, file or data is wrong.
const INPUT: u8 = 1;
/// A bug, or an environment that nobody thought of.
const UNEXPECTED: u8 = 2;
/// Out of memory or disk.
const RESOURCES: u8 = 3;
/// Stopped by a signal; a checkpoint is written.
const INTERRUPTED: u8 = 4;

/// Prints `error` with its causes and the next step to stderr, and gives the exit code.
pub(crate) fn show(error: &Error, terminal: &Terminal) -> ExitCode {
    // Whoever read the output has seen enough, as `head` does.
    if let Error::Output { source } = error
        && source.kind() == io::ErrorKind::BrokenPipe
    {
        return ExitCode::SUCCESS;
    }
    eprint!("{}", render(error, terminal.stderr.palette));
    ExitCode::from(code(error))
}

/// A panic is reported as what it is, a mistake of this program, and ends it with [`UNEXPECTED`].
pub(crate) fn take_panics(terminal: &Terminal) {
    let palette = terminal.stderr.palette;
    panic::set_hook(Box::new(move |details| {
        if ft_trainer::data::is_guarded() {
            return;
        }
        eprintln!("{} {details}", palette.failure("internal error:"));
        eprintln!("{} this is a mistake of ft; please report it with the command and this text", palette.hint("hint:"));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            eprintln!("{}", std::backtrace::Backtrace::force_capture());
        }
        // At once, whatever the thread: unwinding would end in Rust's own exit code, 101.
        #[expect(clippy::exit, reason = "nothing is left to be done")]
        std::process::exit(i32::from(UNEXPECTED));
    }));
}

fn code(error: &Error) -> u8 {
    if let Some(error) = io_error(error)
        && matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge | io::ErrorKind::OutOfMemory
        )
    {
        return RESOURCES;
    }
    match error {
        Error::Trainer(error) => trainer_code(error),
        Error::DiskSpace { .. } => RESOURCES,
        Error::Output { .. } | Error::Input { .. } => UNEXPECTED,
        _ => INPUT,
    }
}

fn trainer_code(error: &ft_trainer::Error) -> u8 {
    use ft_formats::Error::{UnknownTensor, WrittenLength};
    use ft_trainer::Error::{Format, Interrupted, MissingWeight, Shape, Torch};
    match error {
        error if error.is_out_of_resources() => RESOURCES,
        Interrupted { .. } => INTERRUPTED,
        Torch { .. } | Shape { .. } | MissingWeight { .. } | Format(WrittenLength { .. } | UnknownTensor { .. }) => UNEXPECTED,
        _ => INPUT,
    }
}

fn render(error: &Error, palette: Palette) -> String {
    if let Error::Trainer(error) = error {
        match &**error {
            ft_trainer::Error::Interrupted { step, checkpoint } => return interruption(*step, checkpoint, palette),
            ft_trainer::Error::Recipe(RecipeError::Invalid(problems)) => {
                return problems.list().iter().map(|problem| problem_text(problem, palette)).collect();
            }
            _ => {}
        }
    }
    let mut text = format!("{} {error}\n", palette.failure("error:"));
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let words = cause.to_string();
        // Some messages hold those of their causes.
        if !said.contains(&words) {
            text.push_str(&format!("  because: {words}\n"));
        }
        said = words;
        source = cause.source();
    }
    if let Some(hint) = error.hint() {
        text.push_str(&format!("{} {hint}\n", palette.hint("hint:")));
    }
    text
}

fn interruption(step: usize, checkpoint: &Path, palette: Palette) -> String {
    let (word, hint) = (palette.warning("interrupted"), palette.hint("hint:"));
    format!("{word} at step {step}; checkpoint written to {}\n{hint} `--resume` goes on from there\n", checkpoint.display())
}

fn problem_text(problem: &Problem, palette: Palette) -> String {
    let mut text = format!("{} {problem}\n", palette.failure("error:"));
    if let Some(hint) = problem.hint() {
        text.push_str(&format!("{} {hint}\n", palette.hint("hint:")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn file_error(kind: io::ErrorKind) -> Error {
        Error::File { action: "write", path: PathBuf::from("x"), source: kind.into() }
    }

    #[test]
    fn codes_are_those_of_the_help() {
        let (place, remedy) = (String::new(), ft_trainer::run::plan::Remedy::default());
        let too_large = ft_trainer::Error::DoesNotFit { resource: "disk space", needed_bytes: 2, available_bytes: 1, place, remedy };
        assert_eq!(code(&file_error(io::ErrorKind::NotFound)), 1);
        assert_eq!(code(&file_error(io::ErrorKind::StorageFull)), 3);
        assert_eq!(code(&too_large.into()), 3);
        assert_eq!(code(&ft_trainer::Error::Interrupted { step: 3, checkpoint: "c".into() }.into()), 4);
        assert_eq!(code(&ft_trainer::Error::MissingWeight { tensor: "t".into() }.into()), 2);
        assert_eq!(code(&Error::DiskSpace { needed_bytes: 2, available_bytes: 1, path: "p".into() }), 3);
    }

    #[test]
    fn causes_and_hints_follow_the_message() {
        assert_eq!(
            render(&file_error(io::ErrorKind::NotFound), Palette::plain()),
            "error: cannot write x\n  because: entity not found\nhint: check the path; relative ones start at the current directory\n"
        );
    }

    #[test]
    fn every_problem_of_a_recipe_is_an_error_with_a_hint() {
        let error = ft_trainer::recipe::Recipe::from_text("[model]\npth = \"m\"\n", Path::new("r.toml"), &[]).unwrap_err();
        let text = render(&error.into(), Palette::plain());
        assert_eq!(text.matches("error: ").count(), 3, "{text}");
        assert_eq!(text.matches("hint: ").count(), 3, "{text}");
        assert!(
            text.contains("error: r.toml:2:1: unknown key `pth` in `[model]`\n  |\n2 | pth = \"m\"\n  | ^^^\nhint: did you mean `path`?\n"),
            "{text}"
        );
    }
}
