//! What can go wrong between a call and its kernel.

use std::path::PathBuf;

use cudarc::driver::DriverError;
use cudarc::nvrtc::result::NvrtcError;

/// Why this machine cannot run kernels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// There is no driver library.
    #[error("no NVIDIA driver (libcuda.so) is installed")]
    NoDriver,
    /// The driver is there and refuses to start.
    #[error("the NVIDIA driver refused `{call}`")]
    Driver {
        /// The function of the driver.
        call: &'static str,
        /// What it said.
        #[source]
        source: DriverError,
    },
    /// There are fewer devices.
    #[error("there is no CUDA device {ordinal}: the driver has {found}")]
    NoDevice {
        /// The device that was asked for, counted from 0.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// There is no NVRTC library.
    #[error("no NVRTC (libnvrtc.so) was found, neither by the loader nor in {searched:?}")]
    NoCompiler {
        /// The folders that were searched.
        searched: Vec<PathBuf>,
    },
    /// NVRTC is there and refuses to start.
    #[error("NVRTC refused `{call}`")]
    Compiler {
        /// The function of NVRTC.
        call: &'static str,
        /// What it said.
        #[source]
        source: NvrtcError,
    },
}

/// Why something was not done on the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The arguments or what they hold cannot be converted; as the CPU says it.
    #[error(transparent)]
    Codec(#[from] crate::Error),
    /// This machine cannot run kernels.
    #[error("no CUDA device can be used")]
    Unavailable(#[from] Unavailable),
    /// The driver refused a call.
    #[error("the NVIDIA driver refused `{call}`")]
    Driver {
        /// The function of the driver.
        call: &'static str,
        /// What it said.
        #[source]
        source: DriverError,
    },
    /// The device has no room for a buffer.
    #[error("the device has no room for {bytes} bytes")]
    OutOfMemory {
        /// Size of the buffer.
        bytes: usize,
    },
    /// NVRTC refused a call.
    #[error("NVRTC refused `{call}` for kernel file `{kernel}`")]
    Compiler {
        /// The function of NVRTC.
        call: &'static str,
        /// The kernel file.
        kernel: &'static str,
        /// What it said.
        #[source]
        source: NvrtcError,
    },
    /// A kernel file does not compile.
    #[error("kernel file `{kernel}` does not compile: {log}")]
    Compile {
        /// The kernel file.
        kernel: &'static str,
        /// What NVRTC wrote.
        log: String,
    },
    /// An address that the kernel cannot use.
    #[error("`{argument}` lies at no multiple of {alignment} bytes")]
    Misaligned {
        /// Name of the argument.
        argument: &'static str,
        /// Bytes.
        alignment: u64,
    },
    /// A dimension that does not fit the kernel's 32 bits.
    #[error("`{dimension}` is {found}, more than a kernel takes")]
    TooLarge {
        /// Name of the dimension.
        dimension: &'static str,
        /// Its size.
        found: usize,
    },
}
