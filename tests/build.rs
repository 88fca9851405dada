//! Builds the CUDA device that is the host (`native/cuda_emulator.cpp`), for the tests that open it.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=native");
    println!("cargo:rerun-if-changed=../quant/kernels");
    let library = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("libcuda.so");
    let mut compiler = cc::Build::new().cpp(true).std("c++17").opt_level(2).pic(true).warnings(true).get_compiler().to_command();
    // The name under which the driver's library is looked for. Pragmas of NVIDIA's compiler mean nothing to this one, and jumps between
    // stacks are meant.
    compiler.args([
        "-shared",
        "-Wl,-soname,libcuda.so",
        "-Wno-unknown-pragmas",
        "-ffp-contract=off",
        "-U_FORTIFY_SOURCE",
        "native/cuda_emulator.cpp",
        "-o",
    ]);
    match compiler.arg(&library).status() {
        Ok(status) if status.success() => {}
        failed => println!("cargo:error=native/cuda_emulator.cpp does not compile: {failed:?}"),
    }
    println!("cargo:rustc-env=FT_EMULATED_CUDA={}", library.display());
}
