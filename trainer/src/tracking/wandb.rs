//! Weights & Biases: a run directory that `wandb sync` takes, and the same run sent as it goes.

mod client;
mod log;
mod offline;
mod rows;
mod sender;
mod settings;

pub(super) use offline::RunFiles;
pub(super) use rows::{Row, Rows};
pub(super) use sender::Sender;
pub(super) use settings::Settings;
pub use settings::{ApiKey, api_key};
