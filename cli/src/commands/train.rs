//! `ft train`: what a recipe says, done.

use std::path::{Path, PathBuf};

use clap::Args;
use ft_trainer::recipe::Recipe;
use ft_trainer::run::observer::Both;
use ft_trainer::run::{Machine, TrainOptions, TrainOutcome, train};

use super::plan;
use crate::error::Result;
use crate::json;
use crate::run_record::Recorder;
use crate::terminal::Terminal;
use crate::units::{counted, duration};
use crate::watch::Watcher;

/// Train what a recipe says
///
/// Everything goes to the recipe's run directory: metrics.jsonl, checkpoints, report.html, and at the end adapter/ or model/.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft train recipes/quickstart.toml
  ft train coding.toml --set optimizer.learning_rate=1e-4 --set output.name=slower
  ft train coding.toml --resume          go on from the newest checkpoint, to the same numbers
  ft train coding.toml --dry-run         what would happen, as `ft plan`

Ctrl-C writes a checkpoint and ends with exit code 4.")]
pub(crate) struct Arguments {
    /// The recipe
    recipe: PathBuf,
    /// Change a value of the recipe for this run; may be given several times
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    settings: Vec<String>,
    /// Go on from the newest valid checkpoint of the run
    #[arg(long)]
    resume: bool,
    /// Say what would happen, and do not do it
    #[arg(long)]
    dry_run: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// Recipe, run, outcome.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    if arguments.dry_run {
        return plan::show(&arguments.recipe, &arguments.settings, Machine::here(), arguments.json, terminal);
    }
    let recipe = Recipe::from_file(&arguments.recipe, &arguments.settings)?;
    let mut observers = Both(Watcher::new(&recipe, terminal), Recorder::new(terminal));
    let result = train(&recipe, &TrainOptions { resume: arguments.resume }, &mut observers);
    observers.0.finish();
    observers.1.finish(&result);
    let outcome = result?;
    if arguments.json {
        return json::print(&outcome, terminal);
    }
    terminal.print(&words(&outcome, Path::new(&recipe.model.path)))
}

fn words(outcome: &TrainOutcome, model: &Path) -> String {
    let loss = match (outcome.first_loss, outcome.last_loss) {
        (Some(first), Some(last)) => format!(", loss {first:.4} to {last:.4}"),
        _ => String::new(),
    };
    let validation = outcome.validation_loss.map_or(String::new(), |loss| format!(", validation loss {loss:.4}"));
    let result = outcome.result.display();
    let next = if outcome.kind == "adapter" {
        format!("ft generate {} --adapter {result} --prompt \"...\"", model.display())
    } else {
        format!("ft generate {result} --prompt \"...\"")
    };
    let steps = counted(outcome.steps, "step");
    format!("{steps} in {}{loss}{validation}\n{}: {result}\ntry it: {next}", duration(outcome.seconds), outcome.kind)
}
