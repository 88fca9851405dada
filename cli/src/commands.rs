//! The verbs.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod man;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod preview;
pub(crate) mod quantize;
pub(crate) mod recipes;
pub(crate) mod render;
pub(crate) mod report;
pub(crate) mod train;
pub(crate) mod verify;

use crate::arguments::Verb;
use crate::error::Result;
use crate::terminal::Terminal;

/// Does what `verb` says.
pub(crate) fn run(verb: &Verb, terminal: &Terminal) -> Result<()> {
    match verb {
        Verb::Init(arguments) => init::run(arguments, terminal),
        Verb::Train(arguments) => train::run(arguments, terminal),
        Verb::Plan(arguments) => plan::run(arguments, terminal),
        Verb::Preview(arguments) => preview::run(arguments, terminal),
        Verb::Render(arguments) => render::run(arguments, terminal),
        Verb::Generate(arguments) => generate::run(arguments, terminal),
        Verb::Chat(arguments) => chat::run(arguments, terminal),
        Verb::Logits(arguments) => logits::run(arguments, terminal),
        Verb::Eval(arguments) => eval::run(arguments, terminal),
        Verb::Quantize(arguments) => quantize::run(arguments, terminal),
        Verb::Merge(arguments) => merge::run(arguments, terminal),
        Verb::Export(arguments) => export::run(arguments, terminal),
        Verb::Verify(arguments) => verify::run(arguments, terminal),
        Verb::Inspect(arguments) => inspect::run(arguments, terminal),
        Verb::Report(arguments) => report::run(arguments, terminal),
        Verb::Recipes(arguments) => recipes::run(arguments, terminal),
        Verb::Doctor(arguments) => doctor::run(arguments, terminal),
        Verb::Completions(arguments) => completions::run(arguments, terminal),
        Verb::Man(arguments) => man::run(arguments, terminal),
    }
}
