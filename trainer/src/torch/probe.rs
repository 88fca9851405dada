//! What there is of libtorch on this machine, and whether it computes what it should.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use half::bf16;
use tch::{Device, Kind};

use super::autograd::native_error;
use super::device;
use super::ops;
use crate::error::Result;
use crate::recipe::TrainingDtype;

/// The version that this program is built for.
pub const LIBTORCH_VERSION: &str = "2.11.0";

unsafe extern "C" {
    fn ft_libtorch_configuration(text: *mut *mut c_char) -> c_int;
    fn ft_autograd_free_message(message: *mut c_char);
}

/// The libtorch that this process has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libtorch {
    /// Its version, if it says so.
    pub version: Option<String>,
    /// Its file.
    pub path: Option<PathBuf>,
    /// Threads that it computes with.
    pub num_threads: i32,
}

/// The libtorch that this process has loaded.
///
/// # Errors
/// [`crate::Error::Torch`] when it does not say how it was built.
pub fn libtorch() -> Result<Libtorch> {
    let mut text = std::ptr::null_mut();
    // SAFETY: writes one pointer, and throws nothing.
    let status = unsafe { ft_libtorch_configuration(&raw mut text) };
    if status != 0 || text.is_null() {
        return Err(native_error("show_config", text));
    }
    // SAFETY: a C string of the shim, released exactly once.
    let configuration = unsafe {
        let configuration = CStr::from_ptr(text).to_string_lossy().into_owned();
        ft_autograd_free_message(text);
        configuration
    };
    Ok(Libtorch { version: version(&configuration), path: loaded("libtorch_cpu.so"), num_threads: tch::get_num_threads() })
}

/// The version in what `at::show_config` says: `..., TORCH_VERSION=2.11.0, ...`.
fn version(configuration: &str) -> Option<String> {
    let (_, rest) = configuration.split_once("TORCH_VERSION=")?;
    Some(rest.split([',', '\n', ' ']).next()?.to_owned())
}

/// The path under which this process has loaded a library. Source: proc(5), `/proc/pid/maps`.
fn loaded(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    paths.find(|path| path.file_name().is_some_and(|found| found == name)).map(Path::to_path_buf)
}

/// Why libtorch's CUDA half cannot be opened, as the loader says it; `None` when it is open.
#[must_use]
pub fn cuda_problem() -> Option<&'static str> {
    device::cuda_problem()
}

/// CUDA devices that libtorch sees.
#[must_use]
pub fn num_cuda_devices() -> usize {
    if cuda_problem().is_some() {
        return 0;
    }
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}

/// Whether libtorch's matrix product is what plain loops give: of small whole numbers, whose products and sums are exact, so that nothing but
/// the last rounding is left to it.
///
/// On the CUDA device `ordinal`, or on the CPU.
///
/// # Errors
/// [`crate::Error::Torch`] when it refuses.
pub fn computes_products(dtype: TrainingDtype, ordinal: Option<usize>) -> Result<bool> {
    const ROWS: usize = 33;
    const INNER: usize = 70;
    const COLUMNS: usize = 19;
    let numbers = |count: usize, step: usize| (0..count).map(|index| ((index * step) % 11) as f32 - 5.0).collect::<Vec<f32>>();
    let (left, right) = (numbers(ROWS * INNER, 7), numbers(COLUMNS * INNER, 5));
    let (kind, round): (Kind, fn(f32) -> f32) = match dtype {
        TrainingDtype::F32 => (Kind::Float, |value| value),
        TrainingDtype::Bf16 => (Kind::BFloat16, |value| bf16::from_f32(value).to_f32()),
    };
    let expected: Vec<f32> = (0..ROWS * COLUMNS)
        .map(|index| {
            let (row, column) = (index / COLUMNS, index % COLUMNS);
            let pairs = left[row * INNER..][..INNER].iter().zip(&right[column * INNER..][..INNER]);
            round(pairs.map(|(left, right)| left * right).sum())
        })
        .collect();
    let device = ordinal.map_or(Device::Cpu, Device::Cuda);
    let matrix = |values: &[f32], rows: usize| -> Result<tch::Tensor> {
        let shape = [rows, INNER].map(|dim| i64::try_from(dim).unwrap_or(0));
        ops::cast(&ops::reshape(&ops::from_slice(values, device)?, &shape)?, kind)
    };
    let product = ops::linear(&matrix(&left, ROWS)?, &matrix(&right, COLUMNS)?, None)?;
    Ok(ops::to_f32_vec(&product)? == expected)
}

/// The NCCL library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nccl {
    /// Where the loader found it, if that is known.
    pub path: Option<PathBuf>,
    /// As NCCL counts: 10,000 for each major version, 100 for each minor one.
    pub version: i32,
}

/// The NCCL library beside libtorch, or where the loader looks; `None` where there is none. One that libtorch has loaded already is that one.
#[must_use]
pub fn nccl() -> Option<Nccl> {
    const NAME: &str = "libnccl.so.2";
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    let beside = loaded("libtorch_cpu.so").and_then(|library| Some(library.ancestors().nth(3)?.join("nvidia/nccl/lib").join(NAME)));
    let handle = [Some(PathBuf::from(NAME)), beside].into_iter().flatten().find_map(|path| {
        let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
        // SAFETY: opens NCCL, whose initialisers are made to run at any time. The handle stays open for good.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        (!handle.is_null()).then_some(handle)
    })?;
    // SAFETY: looks a name up in an open library.
    let symbol = unsafe { libc::dlsym(handle, c"ncclGetVersion".as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    let mut version = 0;
    // SAFETY: the signature of `ncclGetVersion` in nccl.h of NCCL 2; it writes one number.
    let status = unsafe { std::mem::transmute::<*mut c_void, GetVersion>(symbol)(&raw mut version) };
    (status == 0).then(|| Nccl { path: loaded(NAME), version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_is_the_one_that_this_was_built_for() {
        let found = libtorch().unwrap();
        assert_eq!(found.version.as_deref().map(|version| version.split('+').next().unwrap()), Some(LIBTORCH_VERSION));
        assert!(found.path.unwrap().ends_with("torch/lib/libtorch_cpu.so") && found.num_threads > 0);
    }

    #[test]
    fn products_on_the_cpu_are_right() {
        assert!(computes_products(TrainingDtype::F32, None).unwrap() && computes_products(TrainingDtype::Bf16, None).unwrap());
    }

    #[test]
    fn a_device_that_is_not_there_refuses() {
        assert!(computes_products(TrainingDtype::F32, Some(100)).is_err());
        assert_eq!(num_cuda_devices() > 0, cuda_problem().is_none() && tch::Cuda::is_available());
    }

    #[test]
    fn a_version_is_read_where_there_is_one() {
        assert_eq!(version("Build settings: A=b, TORCH_VERSION=2.11.0, USE=1"), Some("2.11.0".to_owned()));
        assert_eq!(version("Build settings:"), None);
    }
}
