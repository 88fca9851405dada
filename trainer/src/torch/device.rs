//! Which device to compute on: the CPU, or a CUDA device whose library is opened at run time.

use std::ffi::{CStr, c_int};
use std::sync::OnceLock;

use tch::Device;

use super::gpu;

unsafe extern "C" {
    fn ft_device_memory(device: c_int, free_bytes: *mut u64, total_bytes: *mut u64) -> c_int;
    fn ft_device_peak_memory(device: c_int, bytes: *mut u64) -> c_int;
    fn ft_expand_segments() -> c_int;
}

/// The device that this machine offers: the first CUDA device when libtorch's CUDA half and a driver are there, else the CPU.
#[must_use]
pub fn best() -> Device {
    open_cuda();
    let device = Device::cuda_if_available();
    if device == Device::Cpu {
        keep_freed_memory();
    }
    device
}

/// Whether libtorch multiplies bf16 matrices on this CPU by instructions made for it.
///
/// Source: libtorch 2.11, ATen `native/mkldnn/Utils.h`, `mkldnn_bf16_device_check`: on x86 it takes AVX-512 with BW, VL and DQ.
#[must_use]
pub fn has_fast_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// Lets the allocator keep what tensors free, up to the largest size that it can: otherwise every large tensor is a fresh mapping, and
/// the page faults of a training step cost a fifth of its time.
fn keep_freed_memory() {
    const LARGEST_THRESHOLD: i32 = 32 << 20;
    // SAFETY: sets two parameters of the C allocator; a value that it does not take changes nothing.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_THRESHOLD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// The name that the driver has for `device`, such as `NVIDIA H100 80GB HBM3`; `None` for the CPU, or where it cannot be asked.
#[must_use]
pub fn name(device: Device) -> Option<String> {
    let Device::Cuda(ordinal) = device else { return None };
    gpu::gpu("name", ordinal).ok()?.name().ok()
}

/// Memory of a CUDA device in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Held by no process.
    pub free_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

/// Memory of `device`; `None` for the CPU, or where libtorch has no such device.
#[must_use]
pub fn memory(device: Device) -> Option<DeviceMemory> {
    let Device::Cuda(ordinal) = device else { return None };
    let (mut free_bytes, mut total_bytes) = (0, 0);
    // SAFETY: writes two numbers, and throws nothing.
    let status = unsafe { ft_device_memory(c_int::try_from(ordinal).ok()?, &raw mut free_bytes, &raw mut total_bytes) };
    (status == 0).then_some(DeviceMemory { free_bytes, total_bytes })
}

/// The most memory that a run on `device` has held, in bytes: tensors on a CUDA device, else what [`host_peak_memory_bytes`] says.
#[must_use]
pub fn peak_memory_bytes(device: Device) -> u64 {
    let Device::Cuda(ordinal) = device else { return host_peak_memory_bytes() };
    let mut bytes = 0;
    let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    // SAFETY: writes one number, and throws nothing; where it fails the number stays 0.
    let _ = unsafe { ft_device_peak_memory(ordinal, &raw mut bytes) };
    bytes
}

/// The most host memory that this process has held, in bytes.
///
/// Source: `VmHWM` of proc(5); 0 where there is none.
#[must_use]
pub fn host_peak_memory_bytes() -> u64 {
    status_bytes("VmHWM:")
}

/// Memory that the system could give to this process now, in bytes; `None` where it does not say.
///
/// Source: `MemAvailable` of proc(5).
#[must_use]
pub fn available_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    field_bytes(&text, "MemAvailable:")
}

fn status_bytes(field: &str) -> u64 {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|text| field_bytes(&text, field)).unwrap_or(0)
}

fn field_bytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Opens libtorch_cuda.so if the wheel came with its dependencies; the program links only the CPU half, so one build serves both.
fn open_cuda() -> bool {
    cuda_problem().is_none()
}

/// Why libtorch_cuda.so, which the first call opens, cannot be opened, in the loader's words; `None` when it is open.
pub(super) fn cuda_problem() -> Option<&'static str> {
    static PROBLEM: OnceLock<Option<String>> = OnceLock::new();
    let problem = PROBLEM.get_or_init(|| {
        // SAFETY: dlopen of a library by name; its initialisers register CUDA with libtorch. The handle stays open for good.
        if unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null() {
            return Some(loader_message());
        }
        if !ALLOCATOR_VARIABLES.iter().any(|variable| std::env::var_os(variable).is_some()) {
            expand_segments();
        }
        None
    });
    problem.as_deref()
}

/// What the loader says of this thread's last call that failed.
fn loader_message() -> String {
    // SAFETY: gives null, or a string that ends with zero and stays until this thread's next call of the loader.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "the loader gives no reason".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

/// Whether operators must give the same bits at every run, which on a GPU costs flash attention's backward pass some speed and memory.
///
/// Call it before the first operator on a GPU, and before other threads read the environment: cuBLAS takes its fixed workspace from there,
/// which this sets unless it is set. Operators of libtorch that have no such form warn of it from then on, each by name.
///
/// Source: `at::Context::setDeterministicAlgorithms` of libtorch 2.11.0; `_flash_attention_backward` asks for it (pytorch/pytorch 00afd8f2,
/// `aten/src/ATen/native/transformers/cuda/attention_backward.cu`).
pub fn set_deterministic(is_deterministic: bool) {
    unsafe extern "C" {
        fn ft_set_deterministic(is_deterministic: bool);
    }
    // SAFETY: sets flags of libtorch, and throws nothing.
    unsafe { ft_set_deterministic(is_deterministic) };
}

/// Variables by which a user tells libtorch's allocator what to do; then nothing is changed.
const ALLOCATOR_VARIABLES: [&str; 2] = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"];

/// What `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True` does, without a change of the environment, which other threads may be reading.
/// Sequences differ in length from step to step; in segments of a fixed size the room between their tensors would be lost.
fn expand_segments() -> bool {
    // SAFETY: sets a parameter of the allocator, and throws nothing.
    unsafe { ft_expand_segments() != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_figures_are_read() {
        assert!(host_peak_memory_bytes() > 0);
        assert!(peak_memory_bytes(Device::Cpu) > 0);
        assert!(available_memory_bytes().unwrap() > 0);
    }

    #[test]
    fn a_device_that_is_not_there_has_no_memory_and_no_name() {
        assert_eq!((memory(Device::Cuda(100)), name(Device::Cuda(100)), peak_memory_bytes(Device::Cuda(100))), (None, None, 0));
        assert_eq!((memory(Device::Cpu), name(Device::Cpu)), (None, None));
    }

    #[test]
    fn the_allocator_takes_growing_segments() {
        assert!(expand_segments());
    }

    #[test]
    fn a_missing_field_is_none() {
        assert_eq!(field_bytes("VmHWM:  12 kB\n", "VmRSS:"), None);
        assert_eq!(field_bytes("VmHWM:  12 kB\n", "VmHWM:"), Some(12 * 1024));
    }
}
