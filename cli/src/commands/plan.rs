//! `ft plan`: what a recipe would do and need.

use std::path::{Path, PathBuf};

use clap::Args;
use ft_trainer::recipe::Recipe;
use ft_trainer::run::{self, Machine, PlanReport};
use serde::Serialize;

use crate::error::Result;
use crate::json;
use crate::reading::ReadingWatcher;
use crate::report;
use crate::terminal::Terminal;
use crate::units::{bytes, parse_bytes};

/// Say what training would do and need: steps, tokens, operations, memory, disk
///
/// Reads the headers of the model and the data, and no weights. Figures of memory are estimates. Where the run does not fit, the exit code is
/// 3 and the settings that would make it fit are named.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft plan recipes/quickstart.toml
  ft plan coding.toml --set dataset.max_tokens=8192 --json
  ft plan coding.toml --device-memory 24GB      would it fit a GPU of 24 GB?")]
pub(crate) struct Arguments {
    /// The recipe
    recipe: PathBuf,
    /// Change a value of the recipe; may be given several times
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    settings: Vec<String>,
    /// Plan for another machine: one with a CUDA device of this size, such as 80GB or 80GiB, and enough host memory and disk
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    device_memory: Option<u64>,
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
    let machine = arguments.device_memory.map_or_else(Machine::here, Machine::with_device_memory);
    show(&arguments.recipe, &arguments.settings, machine, arguments.json, terminal)
}

/// Resolves the recipe, prints its plan, and fails when the plan does not fit the machine.
pub(crate) fn show(path: &Path, settings: &[String], machine: Machine, as_json: bool, terminal: &Terminal) -> Result<()> {
    let recipe = Recipe::from_file(path, settings)?;
    let mut reading = ReadingWatcher::new(terminal);
    let plan = run::plan(&recipe, machine, &mut |event| reading.tell(&event))?;
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
    for table in [report::memory, report::operations, report::disk] {
        text += &format!("\n\n{}", table(plan, palette));
    }
    text += "\n";
    for warning in report::data_warnings(&plan.dataset).iter().chain(&plan.warnings) {
        text += &format!("\n{} {warning}", palette.warning("warning:"));
    }
    let verdict = if fits { "it fits" } else { "it does not fit" };
    let machine = match plan.machine.device_available_bytes {
        Some(size) if !plan.machine.is_here => format!("a device of {}", bytes(size)),
        _ => "this machine".to_owned(),
    };
    text += &format!("\n{verdict} {machine}");
    text
}
