//! `ft plan`: what a recipe would do and need.

use std::path::{Path, PathBuf};

use clap::Args;
use ft_trainer::recipe::Recipe;
use ft_trainer::run::{self, PlanReport};
use serde::Serialize;

use crate::error::Result;
use crate::json;
use crate::report;
use crate::terminal::Terminal;

/// Say what training would do and need: steps, tokens, memory, disk
///
/// Exit code 3 when it does not fit this machine.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft plan recipes/quickstart.toml
  ft plan coding.toml --set dataset.max_tokens=8192 --json")]
pub(crate) struct Arguments {
    /// The recipe
    recipe: PathBuf,
    /// Change a value of the recipe; may be given several times
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    settings: Vec<String>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Outcome<'a> {
    fits: bool,
    plan: &'a PlanReport,
    recipe: &'a Recipe,
}

pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    show(&arguments.recipe, &arguments.settings, arguments.json, terminal)
}

/// Resolves the recipe, prints its plan, and fails when the plan does not fit the machine.
pub(crate) fn show(path: &Path, settings: &[String], as_json: bool, terminal: &Terminal) -> Result<()> {
    let recipe = Recipe::from_file(path, settings)?;
    let plan = run::plan(&recipe)?;
    let fits = plan.check_fits();
    if as_json {
        json::print(&Outcome { fits: fits.is_ok(), plan: &plan, recipe: &recipe }, terminal)?;
    } else {
        terminal.print(&words(&plan, &recipe, fits.is_ok(), terminal))?;
    }
    Ok(fits?)
}

fn words(plan: &PlanReport, recipe: &Recipe, fits: bool, terminal: &Terminal) -> String {
    let palette = terminal.stdout.palette;
    let mut text = palette.dim("# the recipe, every value written out\n");
    text += &recipe.to_toml();
    text += "\n";
    text += &report::header(plan, recipe, palette);
    text += &format!("\n\n{}\n{}\n", palette.heading("memory by class"), report::memory(plan));
    for warning in report::data_warnings(&plan.dataset) {
        text += &format!("\n{} {warning}", palette.warning("warning:"));
    }
    text += if fits { "\nit fits this machine" } else { "\nit does not fit this machine" };
    text
}
