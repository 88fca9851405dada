//! `ft preview`: the samples of a dataset, as the model will see them.

use std::path::{Path, PathBuf};

use clap::Args;
use ft_formats::tokenizer::special;
use ft_trainer::data::{Dataset, DatasetOptions, Leaks, Overlong, Piece, Sample, Statistics, load_dataset, pieces, split_validation};
use ft_trainer::recipe::Recipe;
use ft_trainer::run::plan::leak_warnings;
use ft_trainer::run::session::dataset_options;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::json;
use crate::marks;
use crate::reading::ReadingWatcher;
use crate::report;
use crate::terminal::Terminal;
use crate::units::{counted, share, whole};

/// Show conversations as the model will see them, token by token, with what is trained
///
/// On a terminal trained tokens are green, context is dim, special tokens are boxed. Without colour what is trained stands
/// in [+...+]; a loss weight other than 1 is named. Takes a recipe, or data with the defaults of a recipe.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft preview recipes/quickstart.toml
  ft preview data/coding.jsonl --limit 10
  ft preview data/coding.jsonl --tokens          a token on each line, with its id and weight
  ft preview coding.toml --limit 0               counts and checks only")]
pub(crate) struct Arguments {
    /// A recipe (*.toml), or a file, folder or pattern of conversations
    source: PathBuf,
    /// Samples shown
    #[arg(long, default_value_t = 3)]
    limit: usize,
    /// A token on each line
    #[arg(long)]
    tokens: bool,
    /// Change a value of the recipe; may be given several times
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    settings: Vec<String>,
    /// Print samples and counts as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Outcome<'a> {
    statistics: &'a Statistics,
    /// Of what is held out.
    validation: Option<&'a Statistics>,
    leaks: &'a Leaks,
    warnings: Vec<String>,
    samples: Vec<SampleView<'a>>,
}

#[derive(Serialize)]
struct SampleView<'a> {
    file: &'a Path,
    line: usize,
    turn: Option<usize>,
    ids: &'a [u32],
    weights: &'a [f32],
    tokens: Vec<String>,
}

/// Recipe or data, samples, counts and checks.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let recipe = recipe(arguments)?;
    let (dataset, validation) = read(&recipe, terminal)?;
    let leaks = dataset.leaks_into(&validation);
    let warnings = [warnings(&dataset, recipe.dataset.max_tokens), leak_warnings(&leaks)].concat();
    let shown: Vec<Sample> = dataset.iter().take(arguments.limit).collect();
    if arguments.json {
        let samples = shown.iter().map(view).collect();
        let validation = (!validation.is_empty()).then_some(&validation.statistics);
        return json::print(&Outcome { statistics: &dataset.statistics, validation, leaks: &leaks, warnings, samples }, terminal);
    }
    for (index, sample) in shown.iter().enumerate() {
        terminal.print(&sample_words(index, sample, &dataset, arguments.tokens, terminal))?;
    }
    terminal.print(&counts(&dataset, terminal))?;
    if !validation.is_empty() {
        terminal.print(&terminal.stdout.palette.heading("held out"))?;
        terminal.print(&format!("  {}", report::held_out(&validation.statistics)))?;
    }
    for warning in warnings {
        terminal.print(&format!("{} {warning}", terminal.stdout.palette.warning("warning:")))?;
    }
    Ok(())
}

/// The recipe, or one with all its defaults for data alone.
fn recipe(arguments: &Arguments) -> Result<Recipe> {
    if arguments.source.extension().is_some_and(|extension| extension == "toml") {
        return Ok(Recipe::from_file(&arguments.source, &arguments.settings)?);
    }
    if let Some(argument) = arguments.settings.first() {
        return Err(Error::SettingWithoutRecipe { argument: argument.clone() });
    }
    let mut recipe = Recipe::default();
    recipe.dataset.train = vec![arguments.source.to_string_lossy().into_owned()];
    Ok(recipe)
}

/// What is trained on, and what is held out.
fn read(recipe: &Recipe, terminal: &Terminal) -> Result<(Dataset, Dataset)> {
    let section = &recipe.dataset;
    let mut options = dataset_options(recipe);
    // Training refuses what is too long; here it is shown and counted.
    if section.overlong == Overlong::Error {
        options = DatasetOptions { max_tokens: usize::MAX, ..options };
    }
    let mut watcher = ReadingWatcher::new(terminal);
    let mut load = |sources: &[String]| load_dataset(sources, &options, &mut |event| watcher.tell(&event));
    let train = load(&section.train)?;
    if section.validation.is_empty() {
        return Ok(split_validation(train, section.validation_fraction, recipe.training.seed));
    }
    let validation = load(&section.validation)?;
    Ok((train, validation))
}

fn view(sample: &Sample) -> SampleView<'_> {
    SampleView {
        file: &sample.origin.file,
        line: sample.origin.line,
        turn: sample.origin.turn,
        ids: &sample.ids,
        weights: &sample.weights,
        tokens: pieces(sample).into_iter().map(|piece| piece.text).collect(),
    }
}

fn sample_words(index: usize, sample: &Sample, dataset: &Dataset, is_table: bool, terminal: &Terminal) -> String {
    let palette = terminal.stdout.palette;
    let pieces: Vec<Piece> = pieces(sample);
    let heading = format!(
        "sample {} of {}  {}  {}, {} trained",
        index + 1,
        whole(dataset.len() as u64),
        sample.origin,
        counted(sample.ids.len(), "token"),
        whole(sample.trained.total() as u64)
    );
    let body = if is_table { marks::table(&pieces, palette) } else { marks::text(&pieces, palette) };
    format!("{}\n{}\n", palette.heading(&format!("--- {heading} ---")), body.trim_end_matches('\n'))
}

fn counts(dataset: &Dataset, terminal: &Terminal) -> String {
    let palette = terminal.stdout.palette;
    let statistics = &dataset.statistics;
    let (stops, all) = (trained_stops(dataset), statistics.samples);
    [
        palette.heading("dataset"),
        format!("  {}", report::data(statistics)),
        format!("  {}", report::trained(statistics)),
        format!("  by who says them: {}", report::spoken(statistics)),
        format!("  the stop token is trained in {} of {}", whole(stops as u64), counted(all, "sample")),
        palette.heading("tokens of a sample"),
        report::histogram(&statistics.lengths),
    ]
    .join("\n")
}

/// Samples whose last token ends the model's turn, and is trained.
fn trained_stops(dataset: &Dataset) -> usize {
    let is_trained = |sample: &Sample| {
        let last = sample.ids.last().zip(sample.weights.last());
        last.is_some_and(|(id, weight)| special::STOPS.contains(id) && *weight != 0.0)
    };
    dataset.iter().filter(is_trained).count()
}

fn warnings(dataset: &Dataset, max_tokens: usize) -> Vec<String> {
    let statistics = &dataset.statistics;
    let mut warnings = report::data_warnings(statistics);
    let overlong = dataset.lengths().into_iter().filter(|&tokens| tokens > max_tokens).count();
    if overlong > 0 {
        warnings.push(format!(
            "{} longer than `dataset.max_tokens` = {}: training will refuse them unless `dataset.overlong` says otherwise",
            if overlong == 1 { "1 sample is".to_owned() } else { format!("{} samples are", whole(overlong as u64)) },
            max_tokens
        ));
    }
    let without_stop = statistics.samples - trained_stops(dataset);
    if without_stop > 0 {
        warnings.push(format!(
            "in {} ({}) no stop token is trained: they do not teach the model to end its turn",
            counted(without_stop, "sample"),
            share(without_stop as u64, statistics.samples as u64)
        ));
    }
    warnings
}
