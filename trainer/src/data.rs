//! Conversations to trained tokens: reading files, recognising their shapes, rendering, weighing, packing.
//!
//! [`load_conversations`] reads every shape that the program knows into harmony conversations, with the file and line of
//! each; [`samples`] turns one of them into what is trained; [`load_dataset`] does both for a whole dataset, applies the
//! rule for over-long samples and counts what happened. Nothing here knows the model: a [`Sample`] is ids and weights.

mod cache;
mod columns;
mod conversation;
mod dataset;
mod error;
mod field;
mod mapped;
mod options;
mod packing;
mod pieces;
mod reading;
mod sample;
mod shape;
mod shapes;
mod source;
mod speakers;
mod statistics;
mod tokenizing;
mod tokens;
mod turns;

pub use cache::cache_folder;
pub use columns::Columns;
pub use conversation::{Body, LoadedConversation, conversations_of_text, load_conversations};
pub use dataset::{Dataset, Duplicates, Leaks, dataset_of, load_dataset, split_validation};
pub use error::{DataError, NameKind, NothingToTrain, Place};
pub use options::{ChannelWeights, DatasetOptions, Overlong, SampleOptions, Turns};
pub use packing::pack;
pub use pieces::{Piece, pieces};
pub use reading::Reading;
pub use sample::{Sample, SampleOrigin, TrainedSpan, TrainedTokens, render_whole};
pub use shape::Shape;
pub use source::is_guarded;
pub use speakers::SpokenTokens;
pub use statistics::{LengthHistogram, Statistics};
pub use turns::samples;
