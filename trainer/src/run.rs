//! A training run: its plan, its loop, and everything it leaves on disk.

pub mod batches;
pub mod checkpoint;
pub mod directory;
pub mod evaluation;
pub mod machine_dtype;
pub mod observer;
pub mod outcome;
pub mod plan;
pub mod result;
pub mod routing;
pub mod samples;
pub mod session;
pub mod signals;
pub mod train;

pub use observer::{Observer, StepReport};
pub use outcome::TrainOutcome;
pub use plan::{Machine, PlanReport};
pub use train::{TrainOptions, plan_of as plan, train};
