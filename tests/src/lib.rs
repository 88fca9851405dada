//! What the whole-program tests share: running `ft` and its peers, and reading what they write.
//!
//! The tests in `tests/tests` see `ft` as its users do, as a program. The peers are the Python scripts of `tests/peers`, run
//! with the packages of `.venv`; `make test` builds and installs all of it first.

pub mod codec;
pub mod conversations;
pub mod metrics;
pub mod nvrtc;
pub mod pages;
pub mod program;
pub mod recording_server;
pub mod scratch;
pub mod sparse;
pub mod tensors;
pub mod training_kernels;
