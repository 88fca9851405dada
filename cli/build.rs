//! Tells the linker where `ft` finds libtorch (beside itself once installed, in `third_party/` before that), and collects the recipes
//! that are embedded.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/ft/torch/lib");
    if let Some(libtorch) = env::var_os("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", Path::new(&libtorch).join("lib").display());
        if let Some(version) = libtorch_version(Path::new(&libtorch)) {
            println!("cargo:rustc-env=FT_LIBTORCH_VERSION={version}");
        }
    }
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let code = table("RECIPES", "recipe", &recipes, "", "toml") + &table("DATA", "dataset of recipes", &recipes, "data/", "jsonl");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("embedded.rs");
    if let Err(error) = fs::write(&out, code) {
        println!("cargo:error=cannot write {}: {error}", out.display());
    }
}

/// The version of libtorch that its headers state, `2.11.0`.
fn libtorch_version(libtorch: &Path) -> Option<String> {
    let header = fs::read_to_string(libtorch.join("include/torch/headeronly/version.h")).ok()?;
    let part = |name: &str| {
        let line = header.lines().find_map(|line| line.strip_prefix("#define TORCH_VERSION_")?.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<u32>().ok())
    };
    Some(format!("{}.{}.{}", part("MAJOR ")?, part("MINOR ")?, part("PATCH ")?))
}

/// A table of the files in `root` + `folder` with the ending `extension`, their texts included.
fn table(name: &str, what: &str, root: &Path, folder: &str, extension: &str) -> String {
    let directory = root.join(folder);
    println!("cargo:rerun-if-changed={}", directory.display());
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    let mut code = format!("/// Every {what}, by name.\npub(crate) const {name}: &[Embedded] = &[\n");
    for path in paths {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("cargo:rerun-if-changed={}", path.display());
        // Writing to a string does not fail.
        let _ = writeln!(code, "Embedded {{ name: {:?}, text: include_str!({path:?}) }},", format!("{folder}{file}"));
    }
    code + "];\n"
}
