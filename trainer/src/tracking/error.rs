//! What can be wrong with tracking, before a run begins.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Tracking that cannot begin.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrackingError {
    /// Weights & Biases online, without a key.
    #[error("no API key for Weights & Biases at {host}")]
    NoKey {
        /// Host of the API.
        host: String,
    },
    /// A variable of the environment that says nothing that is known.
    #[error("the environment variable {name} is `{found}`, and should be {expected}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A file of a tracker.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The thread that writes.
    #[error("cannot start the thread of the trackers")]
    Thread {
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl ft_formats::Hint for TrackingError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoKey { .. } => Some(
                "set WANDB_API_KEY or run `wandb login`; `tracking.wandb.mode = \"offline\"` keeps the run here for `wandb sync`"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
