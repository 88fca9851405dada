//! The driver's objects, each released with its last owner, and every call with its return code checked.
//!
//! All of it runs in the primary context of a device, which is the one that libtorch uses. It is made current for a call and no longer, so
//! that the device which the calling thread has chosen stays chosen.

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};

use super::error::{CudaError, Unavailable};
use super::libraries;

/// An error of the driver as ours.
pub(super) fn refused(call: &'static str) -> impl FnOnce(DriverError) -> CudaError {
    move |source| CudaError::Driver { call, source }
}

/// The primary context of a device.
pub(super) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
    pub(super) compute_capability: u32,
    pub(super) multiprocessors: u32,
}

// SAFETY: the driver's functions may be called from any thread; a context is no more than the handle that is made current.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn open(ordinal: usize) -> Result<Arc<Self>, Unavailable> {
        if !libraries::has_driver() {
            return Err(Unavailable::NoDriver);
        }
        let refused = |call| move |source| Unavailable::Driver { call, source };
        match result::init() {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(Unavailable::NoDevice { ordinal, found: 0 }),
            other => other.map_err(refused("cuInit"))?,
        }
        let found = usize::try_from(result::device::get_count().map_err(refused("cuDeviceGetCount"))?).unwrap_or(0);
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < found).ok_or(Unavailable::NoDevice { ordinal, found })?;
        let device = result::device::get(number).map_err(refused("cuDeviceGet"))?;
        let attribute = |attribute| {
            // SAFETY: the device is one of the driver's.
            let value = unsafe { result::device::get_attribute(device, attribute) }.map_err(refused("cuDeviceGetAttribute"))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        // SAFETY: the device is one of the driver's; `drop` releases the context once.
        let handle = unsafe { result::primary_ctx::retain(device) }.map_err(refused("cuDevicePrimaryCtxRetain"))?;
        Ok(Arc::new(Self { device, handle, compute_capability: major * 10 + minor, multiprocessors }))
    }

    pub(super) fn name(&self) -> Result<String, CudaError> {
        result::device::get_name(self.device).map_err(refused("cuDeviceGetName"))
    }

    /// Makes the context current for this thread until what it returns is dropped.
    pub(super) fn enter(&self) -> Result<Current, CudaError> {
        // SAFETY: the context is retained.
        unsafe { sys::cuCtxPushCurrent_v2(self.handle) }.result().map_err(refused("cuCtxPushCurrent"))?;
        Ok(Current { _stays_on_its_thread: std::marker::PhantomData })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`. There is nothing to be done about a refusal.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A context that is current.
pub(super) struct Current {
    _stays_on_its_thread: std::marker::PhantomData<*const ()>,
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: takes away what `enter` put there; writes one handle.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
    }
}

/// Loaded code.
pub(super) struct Module {
    handle: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// `code` is a cubin, or PTX that ends with zero.
    pub(super) fn load(context: &Arc<Context>, code: &[u8]) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        // SAFETY: NVRTC made the code, and the driver reads no further than its headers, or the zero, say.
        let handle = unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(refused("cuModuleLoadData"))?;
        Ok(Self { handle, context: context.clone() })
    }

    /// Launches kernel `name` with blocks of 256 threads.
    ///
    /// # Safety
    /// `arguments` point to values of the types of the kernel's parameters, in their order; what those point to on the device is there until
    /// the kernel has run, as large and as aligned as the kernel's file says. `stream` is one of this context's.
    pub(super) unsafe fn launch(
        &self,
        name: &CStr,
        num_blocks: u32,
        stream: sys::CUstream,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with zero; the rest is as the caller says.
        unsafe {
            sys::cuModuleGetFunction(&raw mut function, self.handle, name.as_ptr()).result().map_err(refused("cuModuleGetFunction"))?;
            result::launch_kernel(function, (num_blocks, 1, 1), (256, 1, 1), 0, stream, arguments).map_err(refused("cuLaunchKernel"))
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            // SAFETY: loaded in `load`, and unloaded once.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

/// Memory of the device.
pub(super) struct Memory {
    pub(super) address: sys::CUdeviceptr,
    pub(super) num_bytes: usize,
    context: Arc<Context>,
}

impl Memory {
    pub(super) fn new(context: &Arc<Context>, num_bytes: usize) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        // SAFETY: the memory is read only where it was written.
        let address = match unsafe { result::malloc_sync(num_bytes.max(1)) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Err(CudaError::OutOfMemory { bytes: num_bytes }),
            other => other.map_err(refused("cuMemAlloc"))?,
        };
        Ok(Self { address, num_bytes, context: context.clone() })
    }

    /// Copies `from` here and waits for it.
    pub(super) fn write(&self, from: &[u8], stream: &Stream) -> Result<(), CudaError> {
        assert!(from.len() <= self.num_bytes, "{} bytes into a buffer of {}", from.len(), self.num_bytes);
        let _current = self.context.enter()?;
        // SAFETY: both sides have that many bytes, and both stay until the copy is done.
        unsafe { result::memcpy_htod_async(self.address, from, stream.handle) }.map_err(refused("cuMemcpyHtoDAsync"))?;
        stream.wait()
    }

    /// Copies from here, waits for it and for all before it on the stream.
    pub(super) fn read(&self, to: &mut [u8], stream: &Stream) -> Result<(), CudaError> {
        assert!(to.len() <= self.num_bytes, "{} bytes out of a buffer of {}", to.len(), self.num_bytes);
        let _current = self.context.enter()?;
        // SAFETY: both sides have that many bytes, and both stay until the copy is done.
        unsafe { result::memcpy_dtoh_async(to, self.address, stream.handle) }.map_err(refused("cuMemcpyDtoHAsync"))?;
        stream.wait()
    }

    /// Copies all of `from` to the beginning of this, and does not wait for it.
    pub(super) fn copy(&self, from: &Self, stream: &Stream) -> Result<(), CudaError> {
        assert!(from.num_bytes <= self.num_bytes, "{} bytes into a buffer of {}", from.num_bytes, self.num_bytes);
        let _current = self.context.enter()?;
        // SAFETY: both sides have that many bytes; freeing either waits for the copy.
        unsafe { result::memcpy_dtod_async(self.address, from.address, from.num_bytes, stream.handle) }
            .map_err(refused("cuMemcpyDtoDAsync"))
    }

    /// Sets the first bytes to 0xff on a stream of this context, and does not wait for it.
    pub(super) fn fill(&self, num_bytes: usize, stream: &Stream) -> Result<(), CudaError> {
        assert!(num_bytes <= self.num_bytes, "{num_bytes} bytes of a buffer of {}", self.num_bytes);
        let _current = self.context.enter()?;
        // SAFETY: the memory has that many bytes; freeing it waits for this.
        unsafe { result::memset_d8_async(self.address, 0xff, num_bytes, stream.handle) }.map_err(refused("cuMemsetD8Async"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            // SAFETY: allocated in `new`, and freed once; the driver waits for what uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// A stream of our own.
pub(super) struct Stream {
    pub(super) handle: sys::CUstream,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        let handle = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(refused("cuStreamCreate"))?;
        Ok(Self { handle, context: context.clone() })
    }

    pub(super) fn wait(&self) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.handle) }.map_err(refused("cuStreamSynchronize"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            // SAFETY: created in `new`, and destroyed once.
            let _ = unsafe { result::stream::destroy(self.handle) };
        }
    }
}

/// A mark on a stream that has a time.
pub(super) struct Event {
    handle: sys::CUevent,
    context: Arc<Context>,
}

impl Event {
    /// Marks where `stream` is now.
    pub(super) fn record(context: &Arc<Context>, stream: &Stream) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        let handle = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(refused("cuEventCreate"))?;
        let event = Self { handle, context: context.clone() };
        // SAFETY: event and stream live.
        unsafe { result::event::record(event.handle, stream.handle) }.map_err(refused("cuEventRecord"))?;
        Ok(event)
    }

    /// Milliseconds from `earlier` to here, once both have been passed.
    pub(super) fn milliseconds_since(&self, earlier: &Self) -> Result<f32, CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: both events live.
        unsafe {
            result::event::synchronize(self.handle).map_err(refused("cuEventSynchronize"))?;
            result::event::elapsed(earlier.handle, self.handle).map_err(refused("cuEventElapsedTime"))
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            // SAFETY: created in `record`, and destroyed once.
            let _ = unsafe { result::event::destroy(self.handle) };
        }
    }
}
