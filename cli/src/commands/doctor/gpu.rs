//! The NVIDIA GPU and what it takes to use it. Without one, a single line.

use std::fs;
use std::path::Path;

use ft_quant::cuda::{Compiler, CudaError, Driver, Gpu, KERNELS, Unavailable, codec_agrees, driver, kernel_cache};
use ft_trainer::error::chain;
use ft_trainer::torch::probe::{cuda_problem, nccl, num_cuda_devices};

use super::check::Check;
use super::program::products;
use crate::units::bytes;

/// The oldest driver that serves CUDA 13. Source: CUDA 13.0 release notes, table "CUDA Toolkit and Minimum Required Driver Version".
const OLDEST_DRIVER: u32 = 580;
const OLDEST_CUDA: (i32, i32) = (13, 0);
const DRIVER_FIX: &str = "install NVIDIA driver 580 or newer, and start the machine anew";
const SETUP: &str = "run `make setup` on this machine, which fetches the CUDA libraries where it sees a GPU, then `make install` again";

pub(super) fn checks() -> Vec<Check> {
    const NAME: &str = "GPU";
    match driver() {
        Ok(driver) if driver.devices.is_empty() => vec![no_device(hidden().as_deref())],
        Ok(driver) => [vec![version(&driver)], devices(&driver), libraries()].concat(),
        Err(Unavailable::NoDriver) if has_nvidia_hardware(Path::new("/sys/bus/pci/devices")) => {
            vec![Check::fail(NAME, "there is an NVIDIA GPU, but no driver (libcuda.so)", DRIVER_FIX)]
        }
        Err(Unavailable::NoDriver) => vec![Check::skip(NAME, "no NVIDIA GPU and no driver: ft computes on the CPU")],
        Err(error) => vec![Check::fail(NAME, chain(&error), DRIVER_FIX)],
    }
}

/// The value of `CUDA_VISIBLE_DEVICES`, which may hide every device.
fn hidden() -> Option<String> {
    std::env::var("CUDA_VISIBLE_DEVICES").ok()
}

fn no_device(hidden: Option<&str>) -> Check {
    let reason = hidden.map_or_else(String::new, |value| format!(" (CUDA_VISIBLE_DEVICES is `{value}`)"));
    Check::skip("GPU", format!("the NVIDIA driver shows no GPU{reason}: ft computes on the CPU"))
}

/// Whether a display or compute device of NVIDIA sits on the bus. Source: PCI ID 10de, classes 0x03.
fn has_nvidia_hardware(bus: &Path) -> bool {
    let entries = fs::read_dir(bus).into_iter().flatten().flatten();
    let holds = |folder: &Path, file: &str, start: &str| fs::read_to_string(folder.join(file)).is_ok_and(|text| text.starts_with(start));
    entries.map(|entry| entry.path()).any(|folder| holds(&folder, "vendor", "0x10de") && holds(&folder, "class", "0x03"))
}

fn version(driver: &Driver) -> Check {
    const NAME: &str = "NVIDIA driver";
    let text = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let release = release(&text);
    let (major, minor) = driver.cuda_version;
    let words = format!("{}, for CUDA {major}.{minor} and older", release.unwrap_or("of an unknown version"));
    let is_old = release.and_then(|release| release.split('.').next()?.parse().ok()).is_some_and(|major: u32| major < OLDEST_DRIVER);
    if is_old || driver.cuda_version < OLDEST_CUDA { Check::fail(NAME, words, DRIVER_FIX) } else { Check::pass(NAME, words) }
}

/// The release in the driver's own words: `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  ...`.
fn release(text: &str) -> Option<&str> {
    let is_release =
        |word: &&str| word.contains('.') && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    text.lines().next()?.split_whitespace().find(is_release)
}

fn devices(driver: &Driver) -> Vec<Check> {
    let words = |device: &ft_quant::cuda::DeviceFacts| {
        let (major, minor) = device.compute_capability;
        format!("{}, {}, compute capability {major}.{minor}", device.name, bytes(device.total_bytes as u64))
    };
    let check = |device| {
        let (major, _) = ft_quant::cuda::DeviceFacts::clone(device).compute_capability;
        if major < 8 {
            Check::warn("GPU", words(device), "ft is made for compute capability 8.0 and newer: A100, H100, RTX 30 and later")
        } else {
            Check::pass("GPU", words(device))
        }
    };
    driver.devices.iter().map(check).collect()
}

fn libraries() -> Vec<Check> {
    let libtorch = match cuda_problem() {
        Some(problem) => Check::fail("libtorch for CUDA", problem, SETUP),
        None if num_cuda_devices() == 0 => Check::fail("libtorch for CUDA", "it is open, and sees no GPU", DRIVER_FIX),
        None => products(Some(0), "libtorch for CUDA"),
    };
    vec![libtorch, compiler(), kernels(), cache(), nccl_library()]
}

fn compiler() -> Check {
    const NAME: &str = "NVRTC";
    let compiled = Compiler::open(&[]).map_err(CudaError::from).and_then(|compiler| {
        let [kernel, ..] = KERNELS;
        compiler.compile(kernel, compiler.target_for(90))?;
        Ok((compiler.version(), kernel.name))
    });
    match compiled {
        Ok(((major, minor), kernel)) => Check::pass(NAME, format!("{major}.{minor} compiles {kernel}")),
        Err(error) => Check::fail(NAME, chain(&error), SETUP),
    }
}

fn kernels() -> Check {
    const NAME: &str = "GPU kernels";
    match Gpu::open(0).map_err(CudaError::from).and_then(|gpu| codec_agrees(&gpu)) {
        Ok(true) => Check::pass(NAME, "MXFP4 is packed and unpacked to the bytes of the CPU"),
        Ok(false) => Check::fail(
            NAME,
            "MXFP4 is packed or unpacked to other bytes than on the CPU",
            "update the driver; if that does not help, report it",
        ),
        Err(error) => Check::fail(NAME, chain(&error), SETUP),
    }
}

/// Whether kernels, once compiled, are kept.
fn cache() -> Check {
    const NAME: &str = "kernel cache";
    const FIX: &str = "set XDG_CACHE_HOME to a folder that can be written; until then kernels are compiled at every start";
    let Some(folder) = kernel_cache() else { return Check::warn(NAME, "there is neither XDG_CACHE_HOME nor HOME", FIX) };
    match is_writable(&folder) {
        Ok(()) => Check::pass(NAME, folder.display().to_string()),
        Err(error) => Check::warn(NAME, format!("{} cannot be written: {error}", folder.display()), FIX),
    }
}

fn is_writable(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let probe = folder.join(format!("doctor-{}", std::process::id()));
    fs::write(&probe, b"")?;
    fs::remove_file(probe)
}

fn nccl_library() -> Check {
    const NAME: &str = "NCCL";
    match nccl() {
        Some(found) => {
            let (major, minor, patch) = (found.version / 10_000, found.version / 100 % 100, found.version % 100);
            let place = found.path.map_or_else(String::new, |path| format!(" at {}", path.display()));
            Check::pass(NAME, format!("{major}.{minor}.{patch}{place}"))
        }
        None => Check::warn(NAME, "no libnccl.so.2; a run on one GPU does without", SETUP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_a_driver_is_read() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12.3.0\n";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n";
        assert_eq!([release(closed), release(open), release("")], [Some("535.183.01"), Some("580.65.06"), None]);
    }

    #[test]
    fn an_old_driver_fails() {
        let driver = |cuda_version| Driver { cuda_version, devices: Vec::new() };
        let is_failure = |check: Check| check.status == super::super::check::Status::Fail;
        assert!(is_failure(version(&driver((12, 8)))) && !is_failure(version(&driver((13, 0)))));
    }

    #[test]
    fn a_card_without_a_driver_is_seen_on_the_bus() {
        let bus = tempfile::tempdir().unwrap();
        let add = |name: &str, vendor: &str, class: &str| {
            fs::create_dir(bus.path().join(name)).unwrap();
            fs::write(bus.path().join(name).join("vendor"), vendor).unwrap();
            fs::write(bus.path().join(name).join("class"), class).unwrap();
        };
        add("audio", "0x10de\n", "0x040300\n");
        add("other", "0x8086\n", "0x030000\n");
        assert!(!has_nvidia_hardware(bus.path()));
        add("gpu", "0x10de\n", "0x030200\n");
        assert!(has_nvidia_hardware(bus.path()));
    }

    #[test]
    fn a_variable_that_hides_devices_is_named() {
        assert!(no_device(Some("")).found.contains("CUDA_VISIBLE_DEVICES") && !no_device(None).found.contains("CUDA"));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_not_writable() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(is_writable(&file.path().join("kernels")).is_err());
        let folder = tempfile::tempdir().unwrap();
        is_writable(&folder.path().join("a/b")).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("a/b")).unwrap().count(), 0);
    }
}
