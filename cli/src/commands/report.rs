//! `ft report`: the page of a run, made anew.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::error::Result;
use crate::json;
use crate::report_file::ReportFile;
use crate::run_page;
use crate::terminal::Terminal;

/// Make the page of a run anew
///
/// `ft train` keeps report.html in the run directory up to date; this makes it again, of an older run too, or puts it elsewhere.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft report runs/quickstart
  ft report runs/quickstart --output quickstart.html")]
pub(crate) struct Arguments {
    /// The run directory
    run: PathBuf,
    /// Where the page goes, instead of report.html in the run directory
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print where it is as JSON
    #[arg(long)]
    json: bool,
}

/// Where the page is.
#[derive(Debug, Serialize)]
struct Outcome {
    report: PathBuf,
}

/// Read, draw, write.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let report = arguments.output.clone().unwrap_or_else(|| arguments.run.join("report.html"));
    let page = run_page::render(&arguments.run)?;
    ReportFile::prepare(&report)?.publish_text(&page)?;
    if arguments.json {
        return json::print(&Outcome { report }, terminal);
    }
    terminal.print(&report.display().to_string())
}
