//! The thin layer over `tch`: fallible operators with named errors, devices, tensors from bytes, and autograd functions in Rust.
//!
//! Nothing outside this room calls a `tch` method that panics.

pub mod autograd;
pub mod device;
mod flash;
pub mod functions;
pub mod fused;
pub mod gpu;
pub mod host;
pub mod kernels;
pub mod mxfp4;
pub mod offload;
pub mod ops;
pub mod probe;
