//! `ft`: words in, words out. Each verb has a file in `commands`; tensors are the trainer's business, bytes those of the formats.

mod accuracy_page;
mod answer;
mod arguments;
mod clock;
mod commands;
mod conversion;
mod disk;
mod embedded;
mod error;
mod evaluation;
mod failure;
mod json;
mod marks;
mod page;
mod progress;
mod reading;
mod report;
mod report_file;
mod run_page;
mod run_record;
mod terminal;
mod units;
mod verification;
mod watch;

use std::process::ExitCode;

use terminal::Terminal;

fn main() -> ExitCode {
    let terminal = Terminal::detect();
    failure::take_panics(&terminal);
    match arguments::parse() {
        Ok(verb) => commands::run(&verb, &terminal).map_or_else(|error| failure::show(&error, &terminal), |()| ExitCode::SUCCESS),
        Err(code) => code,
    }
}
