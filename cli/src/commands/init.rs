//! `ft init`: a random model.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ft_formats::checkpoint::{Config, ExpertStorage, tensor_specs, write_random_model};
use ft_formats::dtype::Dtype;
use ft_trainer::run::plan::parameters;
use serde::Serialize;

use crate::disk::check_room;
use crate::error::{Error, Result};
use crate::json;
use crate::progress::ByteProgress;
use crate::terminal::Terminal;
use crate::units;

/// Make a random model of the architecture, with its tokenizer
///
/// The directory must not exist, or be empty. It appears when it is complete.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft init models/nano --preset nano
  ft init models/wide --preset nano --set hidden_size=256 --set num_hidden_layers=6
  ft init models/20b --preset gpt-oss-20b --experts bf16 --seed 7")]
pub(crate) struct Arguments {
    /// Where the model goes
    directory: PathBuf,
    /// The sizes to start from
    #[arg(long, value_enum)]
    preset: Preset,
    /// Seed of the weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How the experts are stored
    #[arg(long, value_enum, default_value_t = Experts::Mxfp4)]
    experts: Experts,
    /// Change a key of config.json; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Preset {
    /// Trains in minutes on two CPU cores
    Nano,
    /// openai/gpt-oss-20b: 13.8 GB with MXFP4 experts
    #[value(name = "gpt-oss-20b")]
    GptOss20b,
    /// openai/gpt-oss-120b: 65.2 GB with MXFP4 experts
    #[value(name = "gpt-oss-120b")]
    GptOss120b,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Experts {
    /// Four bits an element, as published
    Mxfp4,
    /// 16 bits an element
    Bf16,
}

#[derive(Debug, Serialize)]
struct Outcome {
    directory: PathBuf,
    parameters: u64,
    bytes: u64,
}

/// Config, room on the disk, then the tensors one after the other.
pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let config = configured(arguments)?;
    let storage = match arguments.experts {
        Experts::Mxfp4 => ExpertStorage::Mxfp4,
        Experts::Bf16 => ExpertStorage::Float(Dtype::Bf16),
    };
    let bytes: u64 = tensor_specs(&config, storage).iter().filter_map(|spec| spec.byte_length()).sum();
    check_room(&arguments.directory, bytes)?;
    let mut progress = ByteProgress::new(format!("writing {}", arguments.directory.display()), terminal);
    let directory =
        write_random_model(&arguments.directory, &config, storage, arguments.seed, &mut |done, total| progress.set(done, total))?;
    progress.finish();
    let outcome = Outcome { directory, parameters: parameters(&config), bytes };
    if arguments.json {
        return json::print(&outcome, terminal);
    }
    terminal.print(&format!(
        "{}: {} parameters, {}",
        arguments.directory.display(),
        units::parameters(outcome.parameters),
        units::bytes(outcome.bytes)
    ))
}

fn configured(arguments: &Arguments) -> Result<Config> {
    let mut config = match arguments.preset {
        Preset::Nano => Config::nano(),
        Preset::GptOss20b => Config::gpt_oss_20b(),
        Preset::GptOss120b => Config::gpt_oss_120b(),
    };
    for argument in &arguments.settings {
        let (key, value) = argument.split_once('=').ok_or_else(|| Error::Setting { argument: argument.clone() })?;
        config.set(key.trim(), value.trim())?;
    }
    // Sizes that make no model must be refused before their product is asked of the disk.
    config.has_mxfp4_experts = arguments.experts == Experts::Mxfp4;
    config.validate().map_err(ft_formats::Error::Setting)?;
    Ok(config)
}
