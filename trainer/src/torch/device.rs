//! Which device to compute on: the CPU, or a CUDA device whose library is opened at run time.

use std::ffi::CString;
use std::sync::OnceLock;

use tch::Device;

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

/// Peak memory of this process in bytes: device memory on CUDA is not counted, resident host memory is.
///
/// Source: `VmHWM` of proc(5); 0 where there is none.
#[must_use]
pub fn peak_memory_bytes() -> u64 {
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
    static OPENED: OnceLock<bool> = OnceLock::new();
    *OPENED.get_or_init(|| {
        let Ok(name) = CString::new("libtorch_cuda.so") else { return false };
        // SAFETY: dlopen of a library by name; its initialisers register CUDA with libtorch. The handle stays open for good.
        !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null()
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_figures_are_read() {
        assert!(peak_memory_bytes() > 0);
        assert!(available_memory_bytes().unwrap() > 0);
    }

    #[test]
    fn a_missing_field_is_none() {
        assert_eq!(field_bytes("VmHWM:  12 kB\n", "VmRSS:"), None);
        assert_eq!(field_bytes("VmHWM:  12 kB\n", "VmHWM:"), Some(12 * 1024));
    }
}
