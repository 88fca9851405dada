//! NVRTC: kernel sources to code for a device. It needs no GPU.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::PathBuf;
use std::ptr;

use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys;

use super::cache::Cache;
use super::error::{CudaError, Unavailable};
use super::libraries;

/// A kernel file, all of which it includes beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelSource {
    /// Name of the file.
    pub name: &'static str,
    /// What it holds.
    pub text: &'static str,
}

/// What the kernel files include.
const HEADERS: [(&CStr, &str); 3] = [
    (c"mxfp4_element.cuh", include_str!("../../kernels/mxfp4_element.cuh")),
    (c"floating.cuh", include_str!("../../kernels/floating.cuh")),
    (c"expert_rows.cuh", include_str!("../../kernels/expert_rows.cuh")),
];

pub(super) const UNPACK: KernelSource = KernelSource { name: "mxfp4_unpack.cu", text: include_str!("../../kernels/mxfp4_unpack.cu") };

pub(super) const PACK: KernelSource = KernelSource { name: "mxfp4_pack.cu", text: include_str!("../../kernels/mxfp4_pack.cu") };

pub(super) const SWIGLU: KernelSource = KernelSource { name: "swiglu.cu", text: include_str!("../../kernels/swiglu.cu") };

pub(super) const RMS_NORM: KernelSource = KernelSource { name: "rms_norm.cu", text: include_str!("../../kernels/rms_norm.cu") };

pub(super) const ROPE: KernelSource = KernelSource { name: "rope.cu", text: include_str!("../../kernels/rope.cu") };

pub(super) const COMBINE: KernelSource = KernelSource { name: "combine.cu", text: include_str!("../../kernels/combine.cu") };

pub(super) const EXPERT_BIAS: KernelSource = KernelSource { name: "expert_bias.cu", text: include_str!("../../kernels/expert_bias.cu") };

pub(super) const CROSS_ENTROPY: KernelSource =
    KernelSource { name: "cross_entropy.cu", text: include_str!("../../kernels/cross_entropy.cu") };

/// Every kernel file.
pub const KERNELS: [KernelSource; 8] = [UNPACK, PACK, SWIGLU, RMS_NORM, ROPE, COMBINE, EXPERT_BIAS, CROSS_ENTROPY];

/// How all of them are compiled. Nothing is flushed or fused, whatever NVRTC's defaults become; the last one has registers and spills of
/// every kernel written to the log.
const OPTIONS: [&str; 5] = ["--std=c++17", "--ftz=false", "--fmad=false", "--restrict", "--ptxas-options=-v"];

/// What code is made for. Compute capabilities are written as NVIDIA does, 90 for 9.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Machine code (a cubin) for devices of this compute capability.
    Machine(u32),
    /// PTX, which the driver compiles for devices of this compute capability and later ones.
    Ptx(u32),
}

/// Code that the driver can load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// A cubin, or PTX with the zero that ends it.
    pub code: Vec<u8>,
    /// What NVRTC wrote, such as the registers of each kernel.
    pub log: String,
}

/// NVRTC, opened.
#[derive(Debug)]
pub struct Compiler {
    version: (i32, i32),
    architectures: Vec<i32>,
}

impl Compiler {
    /// Opens the NVRTC in one of `folders`, in the libtorch that this process uses, or where the loader looks.
    ///
    /// # Errors
    /// [`Unavailable::NoCompiler`] where there is none, [`Unavailable::Compiler`] where it does not work.
    pub fn open(folders: &[PathBuf]) -> Result<Self, Unavailable> {
        libraries::open_compiler(folders)?;
        let refused = |call| move |source| Unavailable::Compiler { call, source };
        let mut version = (0, 0);
        // SAFETY: NVRTC is open (above); each call writes one number, or as many as the one before it said.
        let architectures = unsafe {
            sys::nvrtcVersion(&raw mut version.0, &raw mut version.1).result().map_err(refused("nvrtcVersion"))?;
            let mut count = 0;
            sys::nvrtcGetNumSupportedArchs(&raw mut count).result().map_err(refused("nvrtcGetNumSupportedArchs"))?;
            let mut architectures = vec![0; usize::try_from(count).unwrap_or(0)];
            sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()).result().map_err(refused("nvrtcGetSupportedArchs"))?;
            architectures
        };
        Ok(Self { version, architectures })
    }

    /// Major and minor version of NVRTC.
    #[must_use]
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// The best that this NVRTC can make for a device: machine code, or PTX where the device is newer than NVRTC.
    #[must_use]
    pub fn target_for(&self, compute_capability: u32) -> Target {
        let known = self.architectures.iter().filter_map(|&known| u32::try_from(known).ok());
        match known.filter(|&known| known <= compute_capability).max() {
            Some(known) if known < compute_capability => Target::Ptx(known),
            _ => Target::Machine(compute_capability),
        }
    }

    /// Compiles a kernel file.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the log where it does not compile, [`CudaError::Compiler`] where NVRTC refuses another call.
    pub fn compile(&self, source: KernelSource, target: Target) -> Result<Compiled, CudaError> {
        let refused = |call| move |error| CudaError::Compiler { call, kernel: source.name, source: error };
        let program = Program::new(source).map_err(refused("nvrtcCreateProgram"))?;
        let options = options(target);
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).unwrap_or(0);
        // SAFETY: the program lives; the options are strings that end with zero and outlive the call.
        let compiled = unsafe { sys::nvrtcCompileProgram(program.handle, count, pointers.as_ptr()) }.result();
        // SAFETY: the program lives.
        let log = unsafe { result::get_program_log(program.handle) }.map_err(refused("nvrtcGetProgramLog"))?;
        let log = String::from_utf8_lossy(&bytes(&log)).trim_end_matches('\0').to_owned();
        match compiled {
            Ok(()) => {}
            Err(NvrtcError(sys::nvrtcResult::NVRTC_ERROR_COMPILATION)) => return Err(CudaError::Compile { kernel: source.name, log }),
            Err(error) => return Err(refused("nvrtcCompileProgram")(error)),
        }
        let code = match target {
            // SAFETY: the program lives and is compiled.
            Target::Ptx(_) => bytes(&unsafe { result::get_ptx(program.handle) }.map_err(refused("nvrtcGetPTX"))?),
            Target::Machine(_) => program.machine_code().map_err(refused("nvrtcGetCUBIN"))?,
        };
        Ok(Compiled { code, log })
    }

    /// The code of a kernel file, from the cache where it is there.
    pub(super) fn cached(&self, source: KernelSource, target: Target) -> Result<Vec<u8>, CudaError> {
        let (version, options) = (format!("{:?}", self.version), options(target));
        let headers = HEADERS.iter().map(|(_, text)| text.as_bytes());
        let parts: Vec<&[u8]> = [source.text.as_bytes(), version.as_bytes()]
            .into_iter()
            .chain(headers)
            .chain(options.iter().map(|option| option.as_bytes()))
            .collect();
        Cache::of_this_person().get_or_make(source.name, &parts, || Ok(self.compile(source, target)?.code))
    }
}

fn options(target: Target) -> Vec<CString> {
    let architecture = match target {
        Target::Machine(capability) => format!("--gpu-architecture=sm_{capability}"),
        Target::Ptx(capability) => format!("--gpu-architecture=compute_{capability}"),
    };
    // None of them holds a zero.
    OPTIONS.into_iter().map(str::to_owned).chain([architecture]).filter_map(|option| CString::new(option).ok()).collect()
}

fn bytes(characters: &[c_char]) -> Vec<u8> {
    characters.iter().map(|character| character.to_ne_bytes()[0]).collect()
}

/// A program of NVRTC, destroyed at the end.
struct Program {
    handle: sys::nvrtcProgram,
}

impl Program {
    fn new(source: KernelSource) -> Result<Self, NvrtcError> {
        // No source holds a zero; one that did would be compiled up to it, and fail.
        let string = |text: &str| CString::new(text).unwrap_or_default();
        let (text, name) = (string(source.text), string(source.name));
        let headers = HEADERS.map(|(_, text)| string(text));
        let (headers, names) = (headers.each_ref().map(|text| text.as_ptr()), HEADERS.map(|(name, _)| name.as_ptr()));
        let mut handle = ptr::null_mut();
        // SAFETY: all strings end with zero and outlive the call, which copies them; there are as many headers as names.
        unsafe {
            let count = c_int::try_from(headers.len()).unwrap_or(0);
            sys::nvrtcCreateProgram(&raw mut handle, text.as_ptr(), name.as_ptr(), count, headers.as_ptr(), names.as_ptr()).result()?;
        }
        Ok(Self { handle })
    }

    fn machine_code(&self) -> Result<Vec<u8>, NvrtcError> {
        let mut num_bytes = 0;
        // SAFETY: the program lives; the buffer has the size that NVRTC asks for.
        unsafe {
            sys::nvrtcGetCUBINSize(self.handle, &raw mut num_bytes).result()?;
            let mut code = vec![0u8; num_bytes];
            sys::nvrtcGetCUBIN(self.handle, code.as_mut_ptr().cast()).result()?;
            Ok(code)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program lives until here. What NVRTC says to its destruction changes nothing.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.handle) };
    }
}
