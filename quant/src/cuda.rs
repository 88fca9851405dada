//! Kernels for NVIDIA GPUs, and the way to them without a CUDA toolkit.
//!
//! The sources in `quant/kernels` are compiled at run time by NVRTC and kept in a cache; the driver and NVRTC are opened at run time too,
//! so that one program serves machines with and without a GPU. [`Gpu::open`] says what is missing where something is.
//!
//! This module owns device, compiler, cache and launches. What a kernel must compute is defined by the CPU path of the same name, and the
//! kernels give the same bytes.

mod cache;
mod compiler;
mod driver;
mod error;
mod gpu;
mod libraries;
mod mxfp4;

pub use compiler::{Compiled, Compiler, KERNELS, KernelSource, Target};
pub use error::{CudaError, Unavailable};
pub use gpu::{DeviceBuffer, DeviceTimer, Gpu};
pub use mxfp4::{Layout, PackedPointers, STATUS_BYTES};
