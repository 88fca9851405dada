//! Kernels for NVIDIA GPUs, and the way to them without a CUDA toolkit.
//!
//! The sources in `quant/kernels` are compiled at run time by NVRTC and kept in a cache; the driver and NVRTC are opened at run time too,
//! so that one program serves machines with and without a GPU. [`Gpu::open`] says what is missing where something is.
//!
//! This module owns device, compiler, cache and launches. What a kernel must compute is defined by the CPU path of the same name: those of
//! MXFP4 give the same bytes, those of training (`crate::training`) the same values within the bounds that their files state.

mod cache;
mod combine;
mod compiler;
mod cross_entropy;
mod driver;
mod error;
mod expert_bias;
mod gpu;
mod launch;
mod libraries;
mod mxfp4;
mod probe;
mod rms_norm;
mod rope;
mod swiglu;

pub use combine::{Combine, CombineTypes};
pub use compiler::{Compiled, Compiler, KERNELS, KernelSource, Target};
pub use cross_entropy::CrossEntropy;
pub use error::{CudaError, Unavailable};
pub use expert_bias::ExpertBias;
pub use gpu::{DeviceBuffer, DeviceTimer, Gpu};
pub use launch::ElementType;
pub use mxfp4::{Layout, PackedPointers, STATUS_BYTES};
pub use probe::{DeviceFacts, Driver, codec_agrees, driver, kernel_cache};
pub use rms_norm::{RmsNorm, rms_norm_slices};
pub use rope::{Rope, RopeDirection};
pub use swiglu::Swiglu;
