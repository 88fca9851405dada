//! What makes ft comfortable: completions, manual pages, the schema of recipes, and the doctor.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use ft_tests::nvrtc;
use ft_tests::program::{built, ft, peer, repository, run, succeed};
use ft_tests::scratch::{Scratch, names};
use serde_json::Value;

#[test]
fn bash_completes_a_verb_an_option_and_nothing_else() {
    let scratch = Scratch::new("completions");
    let script = scratch.write("ft.bash", succeed(&mut ft(["completions", "bash"])));
    let complete = |words: &str| {
        let count = words.split(' ').count();
        let line = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={}; COMP_LINE='{words}'; _ft ft \"${{COMP_WORDS[-1]}}\" x; echo \"${{COMPREPLY[@]}}\"",
            script.display(),
            count - 1
        );
        succeed(Command::new("bash").args(["--norc", "-c", &line])).trim().to_owned()
    };
    assert_eq!(complete("ft tra"), "train");
    assert_eq!(complete("ft train --res"), "--resume");
    assert_eq!(complete("ft recipes sche"), "schema");
    assert_eq!(complete("ft zzz"), "");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(succeed(&mut ft(["completions", shell])).contains("quantize"), "{shell}");
    }
    assert_eq!(run(&mut ft(["completions", "cmd"])).code, Some(1));
}

#[test]
fn manual_pages_are_set_without_a_warning() {
    let scratch = Scratch::new("man");
    let folder = scratch.join("share/man/man1");
    let written = succeed(ft(["man"]).arg(&folder));
    let pages = names(&folder);
    assert!(pages.len() > 10 && pages.contains(&"ft.1".to_owned()) && pages.contains(&"ft-train.1".to_owned()), "{pages:?}");
    assert_eq!(written.lines().count(), pages.len());
    assert_eq!(succeed(&mut ft(["man"])), fs::read_to_string(folder.join("ft.1")).expect("a page"));
    for page in &pages {
        let mut groff = Command::new("groff");
        let Ok(output) = groff.args(["-man", "-Tutf8", "-P-cbou", "-ww"]).arg(folder.join(page)).output() else {
            writeln!(std::io::stderr(), "SKIPPED manual pages: no groff").expect("standard error is open");
            return;
        };
        let (text, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && complaints.is_empty(), "{page}: {complaints}");
        let name = page.trim_end_matches(".1");
        assert!(text.contains(name) && text.contains("SYNOPSIS"), "{page}: {text}");
    }
}

#[test]
fn a_python_validator_accepts_our_recipes_and_refuses_misspelt_ones() {
    let scratch = Scratch::new("schema");
    let schema = scratch.write("recipe.schema.json", succeed(&mut ft(["recipes", "schema"])));
    let said = succeed(&mut peer("recipe_schema.py", [&schema, &repository().join("recipes")]));
    let value: Value = serde_json::from_str(&said).expect("JSON");
    assert!(value["valid"].as_u64() >= Some(6), "{value}");
    assert_eq!(value["wrongly_refused"], Value::Array(Vec::new()), "{value}");
    assert_eq!(value["wrongly_accepted"], Value::Array(Vec::new()), "{value}");
    assert!(value["refused"].as_u64() >= Some(100), "{value}");
}

/// The checks of the doctor by name, and its exit code.
fn doctor(command: &mut Command) -> (Option<i32>, Vec<Value>) {
    let said = run(command);
    let value: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {}\n{}", said.stdout, said.stderr));
    assert_eq!(value["version"], 1);
    let checks = value["checks"].as_array().expect("checks").clone();
    let failures = checks.iter().filter(|check| check["status"] == "fail").count();
    assert_eq!((value["failures"].as_u64(), said.code), (Some(failures as u64), Some(i32::from(failures > 0))), "{value}");
    for check in &checks {
        let needs_fix = ["warn", "fail"].contains(&check["status"].as_str().expect("a status"));
        assert!(!needs_fix || check["fix"].is_string(), "{check}");
    }
    (said.code, checks)
}

fn check<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check `{name}` in {checks:?}"))
}

#[test]
fn the_doctor_finds_libtorch_from_any_folder_and_says_no_secret() {
    let scratch = Scratch::new("doctor");
    let mut command = Command::new(built("ft"));
    command.args(["doctor", "--json"]).current_dir(&*scratch).env_clear();
    command.env("HOME", &*scratch).env("HF_TOKEN", "hf_very_secret").env("WANDB_API_KEY", "very_secret");
    let (_, checks) = doctor(&mut command);
    assert!(check(&checks, "libtorch")["found"].as_str().expect("words").starts_with("2.11.0"), "{checks:?}");
    for name in ["libtorch", "CPU kernels", "Hub token", "Weights & Biases", "clock"] {
        assert_eq!(check(&checks, name)["status"], "pass", "{checks:?}");
    }
    assert!(!format!("{checks:?}").contains("secret"), "{checks:?}");
    let text = run(command.args(["--help"])).stdout;
    assert!(text.contains("Exit code 1"), "{text}");
}

/// The emulated device of the kernels' tests is one that libtorch cannot use.
#[test]
fn a_gpu_that_libtorch_cannot_use_is_a_failure_with_its_fix() {
    let scratch = Scratch::new("doctor-gpu");
    let driver = Path::new(env!("FT_EMULATED_CUDA")).parent().expect("a folder");
    let folders = std::env::join_paths(std::iter::once(driver.to_path_buf()).chain(nvrtc::folders())).expect("a path");
    let mut command = ft(["doctor", "--json"]);
    command.env("LD_LIBRARY_PATH", folders).env("XDG_CACHE_HOME", &*scratch);
    let (code, checks) = doctor(&mut command);
    if Path::new("/proc/driver/nvidia/version").exists() {
        writeln!(std::io::stderr(), "SKIPPED a_gpu_that_libtorch_cannot_use: there is a GPU").expect("standard error is open");
        return;
    }
    assert_eq!(code, Some(1), "{checks:?}");
    assert!(check(&checks, "NVIDIA driver")["found"].as_str().expect("words").contains("CUDA 13.0"), "{checks:?}");
    assert!(check(&checks, "GPU")["found"].as_str().expect("words").starts_with("the host, 1.1 GB, compute capability 9.0"), "{checks:?}");
    assert_eq!(check(&checks, "libtorch for CUDA")["status"], "fail", "{checks:?}");
    for name in ["NVRTC", "GPU kernels", "kernel cache"] {
        assert_eq!(check(&checks, name)["status"], "pass", "{checks:?}");
    }
    assert!(names(&scratch.join("ft/kernels")).iter().any(|name| name.starts_with("mxfp4_pack")));
    let text = run(ft(["doctor"]).env("LD_LIBRARY_PATH", driver).env("XDG_CACHE_HOME", scratch.write("no-folder", ""))).stdout;
    assert!(text.contains("WARN  kernel cache") && text.contains("fix: set XDG_CACHE_HOME"), "{text}");
}
