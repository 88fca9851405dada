//! Where the CUDA libraries are: the loader's own places, else those of the libtorch that this process uses.
//!
//! cudarc opens libraries by name. A library that was opened before by its path answers to its name, so that no variable of the
//! environment has to be set.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::error::Unavailable;

/// Whether a driver library can be opened; it is then kept open.
pub(super) fn has_driver() -> bool {
    // SAFETY: opens the library of the driver by name; its initialisers are made to run at any time.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// Opens NVRTC, from one of `folders` or else from where libtorch keeps it, unless the loader finds it by itself.
pub(super) fn open_compiler(folders: &[PathBuf]) -> Result<(), Unavailable> {
    static OPENING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: opens NVRTC by name; its initialisers are made to run at any time.
    let is_present = || unsafe { cudarc::nvrtc::sys::is_culib_present() };
    let mut searched = folders.to_vec();
    searched.extend(folders_of_libtorch());
    // NVRTC opens its built-in functions by name, and has no path of its own to find them by.
    let opened = searched.iter().any(|folder| open_named(folder, "libnvrtc-builtins.so.") && open_named(folder, "libnvrtc.so."));
    if opened || is_present() { Ok(()) } else { Err(Unavailable::NoCompiler { searched }) }
}

/// Opens the library in `folder` whose name is `prefix` and a version.
fn open_named(folder: &Path, prefix: &str) -> bool {
    let is_meant =
        |name: &str| name.strip_prefix(prefix).is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(is_meant)).map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().rev().any(|path| open(path))
}

fn open(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: opens a library of CUDA, whose initialisers are made to run at any time. The handle stays open for good.
    !unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null()
}

/// The folders of CUDA libraries beside the libtorch that this process has opened, and beside that of `LIBTORCH`.
///
/// The wheels put libtorch into `torch/lib` and the libraries of CUDA into `nvidia/*/lib`.
fn folders_of_libtorch() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let opened = opened_library(&maps, "libtorch_cpu.so").and_then(|library| library.ancestors().nth(3).map(Path::to_path_buf));
    let named = std::env::var_os("LIBTORCH").and_then(|torch| PathBuf::from(torch).parent().map(Path::to_path_buf));
    let roots = opened.into_iter().chain(named);
    let folders = roots.flat_map(|root| std::fs::read_dir(root.join("nvidia")).into_iter().flatten().flatten());
    folders.map(|folder| folder.path().join("lib")).collect()
}

/// The path of a library of this name in the memory map of a process. Source: proc(5), `/proc/pid/maps`.
fn opened_library(maps: &str, name: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    paths.filter(|path| path.file_name().is_some_and(|found| found == name)).map(Path::to_path_buf).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_in_the_memory_map() {
        let maps = "7f10-7f20 r-xp 00000000 fe:00 123   /opt/a b/torch/lib/libtorch_cpu.so\n7f30-7f40 rw-p 00000000 00:00 0 [heap]\n";
        assert_eq!(opened_library(maps, "libtorch_cpu.so"), Some(PathBuf::from("/opt/a b/torch/lib/libtorch_cpu.so")));
        assert_eq!(opened_library(maps, "torch_cpu.so"), None);
    }

    #[test]
    fn a_folder_without_the_library_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libnvrtc.so.13"), "no library").unwrap();
        assert!(!open_named(folder.path(), "libnvrtc.so."));
        assert!(!open_named(Path::new("/nonexistent"), "libnvrtc.so."));
    }
}
