//! The command line.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, Parser, Subcommand, ValueEnum};
use ft_trainer::recipe::TrainingDtype;

use crate::commands::{
    chat, completions, doctor, eval, export, generate, init, inspect, logits, man, merge, plan, preview, quantize, recipes, render, report,
    train, verify,
};

const AFTER_HELP: &str = "\
First steps:
  ft init models/nano --preset nano      a small random model
  ft recipes copy quickstart             a recipe and its data
  ft preview quickstart.toml             what the model will see
  ft train quickstart.toml               and it learns

stdout carries results, stderr progress. `--json` gives one object on stdout. NO_COLOR turns colour off.

Exit codes: 0 done, 1 the input is wrong, 2 unexpected, 3 out of memory or disk, 4 interrupted with a checkpoint written";

/// Fine-tune OpenAI's gpt-oss models.
#[derive(Debug, Parser)]
#[command(name = "ft", version, about, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Init(init::Arguments),
    Train(train::Arguments),
    Plan(plan::Arguments),
    Preview(preview::Arguments),
    Render(render::Arguments),
    Generate(generate::Arguments),
    Chat(chat::Arguments),
    Logits(logits::Arguments),
    Eval(eval::Arguments),
    Quantize(quantize::Arguments),
    Merge(merge::Arguments),
    Export(export::Arguments),
    Verify(verify::Arguments),
    Inspect(inspect::Arguments),
    Report(report::Arguments),
    Recipes(recipes::Arguments),
    Doctor(doctor::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

/// Type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ComputeDtype {
    /// 16 bits.
    Bf16,
    /// 32 bits.
    F32,
}

impl From<ComputeDtype> for TrainingDtype {
    fn from(dtype: ComputeDtype) -> Self {
        match dtype {
            ComputeDtype::Bf16 => Self::Bf16,
            ComputeDtype::F32 => Self::F32,
        }
    }
}

/// The verb that was asked for.
///
/// # Errors
/// The exit code, when help or the version was asked for, or the arguments are wrong; all is printed then.
pub(crate) fn parse() -> Result<Verb, ExitCode> {
    Arguments::try_parse().map(|arguments| arguments.verb).map_err(|error| {
        // A closed pipe is no reason to fail.
        let _ = error.print();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
            _ => ExitCode::from(1),
        }
    })
}

/// The description of the command line, for what is written from it.
pub(crate) fn command() -> Command {
    Arguments::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_verb_shows_examples() {
        for verb in Arguments::command().get_subcommands() {
            let help = verb.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{}: {help}", verb.get_name());
        }
    }
}
