//! Compiles the C++ shim over libtorch and tells the linker where the tests of this crate find libtorch.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=native");
    let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        println!("cargo:warning=LIBTORCH is not set: run `make setup` first, which puts libtorch into third_party/");
        return;
    };
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .file("native/attention.cpp")
        .file("native/autograd.cpp")
        .file("native/memory.cpp")
        .file("native/optimizer.cpp")
        .file("native/parallel.cpp")
        .file("native/probe.cpp")
        .file("native/stream.cpp")
        // The wheel was built with OpenMP; without this the headers would run everything on one thread.
        .flag("-fopenmp")
        .compile("ft_native");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libtorch.join("lib").display());
}
