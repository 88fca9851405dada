//! Our own kernels on libtorch's devices and streams.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ft_quant::cuda::{CudaError, Gpu, Unavailable};
use tch::{Device, Kind, TchError, Tensor};

use super::ops::Named;
use crate::error::{Error, Result};

unsafe extern "C" {
    fn ft_current_stream(device: c_int, stream: *mut *mut c_void) -> c_int;
}

/// Device `ordinal` for kernels of ours; opened once, with NVRTC from beside libtorch.
///
/// # Errors
/// [`Error::Codec`] with what is missing, the same at every call.
pub fn gpu(operation: &'static str, ordinal: usize) -> Result<Arc<Gpu>> {
    type Opened = HashMap<usize, Result<Arc<Gpu>, Unavailable>>;
    static OPENED: OnceLock<Mutex<Opened>> = OnceLock::new();
    let mut opened = OPENED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let gpu = opened.entry(ordinal).or_insert_with(|| Gpu::open(ordinal).map(Arc::new));
    gpu.clone().map_err(|reason| Error::Codec { operation, source: CudaError::Unavailable(reason) })
}

/// The stream (`CUstream`) on which this thread's operators of libtorch run on device `ordinal`; `None` where libtorch has no such device.
#[must_use]
pub fn current_stream(ordinal: usize) -> Option<u64> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: writes one handle, and throws nothing.
    let status = unsafe { ft_current_stream(c_int::try_from(ordinal).ok()?, &raw mut stream) };
    (status == 0).then(|| stream.addr() as u64)
}

/// [`current_stream`], or an error with the operation's name.
pub(super) fn stream(operation: &'static str, ordinal: usize) -> Result<u64> {
    current_stream(ordinal).ok_or_else(|| TchError::Torch(format!("libtorch has no CUDA device {ordinal}"))).named(operation, &[])
}

pub(super) fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr().addr() as u64
}

pub(super) fn shape_error(operation: &'static str, tensor: &'static str, expected: &'static str, found: &Tensor) -> Error {
    Error::Shape { operation, tensor, expected, found: found.size() }
}

/// Whether a tensor is what a kernel takes: of this shape, type and device, and contiguous.
pub(super) fn check_tensor(
    operation: &'static str,
    name: &'static str,
    expected: &'static str,
    tensor: &Tensor,
    shape: &[i64],
    kind: Kind,
    device: Device,
) -> Result<()> {
    if tensor.size() != shape {
        return Err(shape_error(operation, name, expected, tensor));
    }
    if tensor.kind() == kind && tensor.device() == device && tensor.is_contiguous() {
        return Ok(());
    }
    let found = format!("`{name}` is {:?} on {:?}, expected contiguous {kind:?} on {device:?}", tensor.kind(), tensor.device());
    Err(TchError::Torch(found)).named(operation, &[tensor])
}

/// Names the operation that was refused.
pub(super) trait InOperation<T> {
    fn in_operation(self, operation: &'static str) -> Result<T>;
}

impl<T, E: Into<CudaError>> InOperation<T> for Result<T, E> {
    fn in_operation(self, operation: &'static str) -> Result<T> {
        self.map_err(|source| Error::Codec { operation, source: source.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_has_no_stream_and_says_why_it_cannot_be_used() {
        assert_eq!(current_stream(100), None);
        let error = gpu("unpack", 100).unwrap_err();
        assert!(matches!(error, Error::Codec { operation: "unpack", source: CudaError::Unavailable(_) }), "{error:?}");
        assert_eq!(gpu("unpack", 100).unwrap_err().to_string(), error.to_string());
    }
}
