//! A device that runs our kernels.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::compiler::{self, Compiler, KernelSource, Target};
use super::driver::{Context, Event, Memory, Module, Stream};
use super::error::{CudaError, Unavailable};

/// A CUDA device, with the kernels of this crate. It may be used from several threads; calls that take host slices take turns.
///
/// It uses the primary context of the device, the one that libtorch uses, so that addresses may be handed back and forth.
pub struct Gpu {
    compiler: Compiler,
    pub(super) modules: Modules,
    /// Device memory of the calls that take host slices, which take turns by it.
    pub(super) workspace: Mutex<Workspace>,
    pub(super) stream: Stream,
    pub(super) context: Arc<Context>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Gpu").field("target", &self.target()).field("compiler", &self.compiler).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens device number `ordinal`, counted from 0 as the driver counts the visible ones. Kernels are compiled when they are first used.
    ///
    /// # Errors
    /// What is missing; nothing panics where there is no driver, no device or no NVRTC.
    pub fn open(ordinal: usize) -> Result<Self, Unavailable> {
        Self::open_with(ordinal, &[])
    }

    /// As [`Gpu::open`], with folders in which NVRTC is looked for first.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn open_with(ordinal: usize, folders: &[PathBuf]) -> Result<Self, Unavailable> {
        let context = Context::open(ordinal)?;
        let compiler = Compiler::open(folders)?;
        let stream = Stream::new(&context).map_err(|error| match error {
            CudaError::Driver { call, source } => Unavailable::Driver { call, source },
            _ => Unavailable::NoDriver,
        })?;
        Ok(Self { compiler, modules: Modules::new(), workspace: Mutex::default(), stream, context })
    }

    /// The name that the driver has for the device.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn name(&self) -> Result<String, CudaError> {
        self.context.name()
    }

    /// What kernels are compiled for.
    #[must_use]
    pub fn target(&self) -> Target {
        self.compiler.target_for(self.context.compute_capability)
    }

    /// Memory of the device, of which nothing is written yet.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] when there is not enough.
    pub fn allocate(&self, num_bytes: usize) -> Result<DeviceBuffer, CudaError> {
        Ok(DeviceBuffer(Memory::new(&self.context, num_bytes)?))
    }

    /// Copies `from` to the beginning of `to`.
    ///
    /// # Panics
    /// When `from` is larger than `to`.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn write(&self, to: &DeviceBuffer, from: &[u8]) -> Result<(), CudaError> {
        to.0.write(from, &self.stream)
    }

    /// Copies the beginning of `from` to `to`, after all that was launched on [`Gpu::stream`].
    ///
    /// # Panics
    /// When `to` is larger than `from`.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong in an earlier kernel.
    pub fn read(&self, from: &DeviceBuffer, to: &mut [u8]) -> Result<(), CudaError> {
        from.0.read(to, &self.stream)
    }

    /// Copies all of `from` to the beginning of `to` on [`Gpu::stream`], and does not wait for it.
    ///
    /// # Panics
    /// When `from` is larger than `to`.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn copy(&self, from: &DeviceBuffer, to: &DeviceBuffer) -> Result<(), CudaError> {
        to.0.copy(&from.0, &self.stream)
    }

    /// The stream (`CUstream`) of this device's calls that take none, which no other library uses.
    #[must_use]
    pub fn stream(&self) -> u64 {
        self.stream.handle.addr() as u64
    }

    /// Waits for all that was launched on [`Gpu::stream`].
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong in a kernel.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.stream.wait()
    }

    /// Starts to measure the time that the device spends on [`Gpu::stream`].
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn start_timer(&self) -> Result<DeviceTimer<'_>, CudaError> {
        Ok(DeviceTimer { start: Event::record(&self.context, &self.stream)?, gpu: self })
    }

    /// The module of a kernel file, compiled and loaded at its first use.
    pub(super) fn module(&self, lazy: &LazyModule) -> Result<Arc<Module>, CudaError> {
        let mut loaded = lazy.module.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = &*loaded {
            return Ok(module.clone());
        }
        let code = self.compiler.cached(lazy.source, self.target())?;
        Ok(loaded.insert(Arc::new(Module::load(&self.context, &code)?)).clone())
    }
}

/// Memory of a device, freed at the end.
pub struct DeviceBuffer(Memory);

impl DeviceBuffer {
    /// Where it lies (`CUdeviceptr`): a multiple of 256.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// Its size in bytes.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.0.num_bytes
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DeviceBuffer({:#x}, {} bytes)", self.0.address, self.0.num_bytes)
    }
}

/// A measurement of device time that was started.
pub struct DeviceTimer<'a> {
    start: Event,
    gpu: &'a Gpu,
}

impl DeviceTimer<'_> {
    /// Milliseconds that the device spent on what was launched since the start.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn elapsed_ms(self) -> Result<f32, CudaError> {
        Event::record(&self.gpu.context, &self.gpu.stream)?.milliseconds_since(&self.start)
    }
}

/// A kernel file, and its module once it was used.
pub(super) struct LazyModule {
    source: KernelSource,
    module: Mutex<Option<Arc<Module>>>,
}

impl LazyModule {
    fn new(source: KernelSource) -> Self {
        Self { source, module: Mutex::default() }
    }
}

/// The modules of all kernel files.
pub(super) struct Modules {
    pub(super) unpack: LazyModule,
    pub(super) pack: LazyModule,
    pub(super) swiglu: LazyModule,
    pub(super) rms_norm: LazyModule,
    pub(super) rope: LazyModule,
    pub(super) combine: LazyModule,
    pub(super) expert_bias: LazyModule,
    pub(super) cross_entropy: LazyModule,
}

impl Modules {
    fn new() -> Self {
        Self {
            unpack: LazyModule::new(compiler::UNPACK),
            pack: LazyModule::new(compiler::PACK),
            swiglu: LazyModule::new(compiler::SWIGLU),
            rms_norm: LazyModule::new(compiler::RMS_NORM),
            rope: LazyModule::new(compiler::ROPE),
            combine: LazyModule::new(compiler::COMBINE),
            expert_bias: LazyModule::new(compiler::EXPERT_BIAS),
            cross_entropy: LazyModule::new(compiler::CROSS_ENTROPY),
        }
    }
}

/// Device memory that is kept from call to call, by what it is for.
#[derive(Default)]
pub(super) struct Workspace {
    values: Option<Memory>,
    blocks: Option<Memory>,
    scales: Option<Memory>,
    hints: Option<Memory>,
    status: Option<Memory>,
}

/// What a conversion needs on the device.
pub(super) struct Buffers<'a> {
    pub(super) values: &'a Memory,
    pub(super) blocks: &'a Memory,
    pub(super) scales: &'a Memory,
    pub(super) hints: &'a Memory,
    pub(super) status: &'a Memory,
}

impl Workspace {
    /// Room for `num_blocks` blocks.
    pub(super) fn buffers(&mut self, context: &Arc<Context>, num_blocks: usize, has_hints: bool) -> Result<Buffers<'_>, CudaError> {
        use crate::mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS};
        Ok(Buffers {
            values: at_least(&mut self.values, context, num_blocks * BLOCK_ELEMENTS * 2)?,
            blocks: at_least(&mut self.blocks, context, num_blocks * BLOCK_BYTES)?,
            scales: at_least(&mut self.scales, context, num_blocks)?,
            hints: at_least(&mut self.hints, context, if has_hints { num_blocks } else { 0 })?,
            status: at_least(&mut self.status, context, super::STATUS_BYTES)?,
        })
    }
}

fn at_least<'a>(kept: &'a mut Option<Memory>, context: &Arc<Context>, num_bytes: usize) -> Result<&'a Memory, CudaError> {
    match kept.take().filter(|kept| kept.num_bytes >= num_bytes) {
        Some(large_enough) => Ok(kept.insert(large_enough)),
        // The smaller one is freed first.
        None => Ok(kept.insert(Memory::new(context, num_bytes)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_device_says_so() {
        // Whatever this machine has, it does not have that many devices.
        let reason = Gpu::open(1000).unwrap_err();
        assert!(
            matches!(reason, Unavailable::NoDriver | Unavailable::NoDevice { ordinal: 1000, .. } | Unavailable::Driver { .. }),
            "{reason:?}"
        );
        assert!(!reason.to_string().is_empty());
    }
}
