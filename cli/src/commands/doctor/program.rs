//! libtorch and the processor that it computes on.

use ft_trainer::error::chain;
use ft_trainer::recipe::TrainingDtype;
use ft_trainer::torch::device::has_fast_bf16;
use ft_trainer::torch::probe::{LIBTORCH_VERSION, computes_products, libtorch};

use super::check::Check;

const SETUP: &str = "run `make setup` where ft was built, then `make install` again";

pub(super) fn checks() -> Vec<Check> {
    vec![version(), products(None, "CPU kernels"), processor()]
}

fn version() -> Check {
    const NAME: &str = "libtorch";
    match libtorch() {
        Ok(found) => {
            let path = found.path.map_or_else(|| "an unknown place".to_owned(), |path| path.display().to_string());
            let version = found.version.unwrap_or_else(|| "of an unknown version".to_owned());
            let words = format!("{version}, {} threads, at {path}", found.num_threads);
            // A version may go on with what it was built for: 2.11.0+cu130.
            if version.split('+').next() == Some(LIBTORCH_VERSION) {
                Check::pass(NAME, words)
            } else {
                Check::fail(NAME, format!("{words}; expected {LIBTORCH_VERSION}"), SETUP)
            }
        }
        Err(error) => Check::fail(NAME, chain(&error), SETUP),
    }
}

/// Matrix products in f32 and bf16, on the CPU or on a CUDA device.
pub(super) fn products(ordinal: Option<usize>, name: &'static str) -> Check {
    for (dtype, word) in [(TrainingDtype::F32, "f32"), (TrainingDtype::Bf16, "bf16")] {
        match computes_products(dtype, ordinal) {
            Ok(true) => {}
            Ok(false) => return Check::fail(name, format!("a matrix product in {word} is wrong"), SETUP),
            Err(error) => return Check::fail(name, format!("a matrix product in {word}: {}", chain(&error)), SETUP),
        }
    }
    if ordinal.is_none() && !has_fast_bf16() {
        return Check::pass(name, "matrix products are right; runs compute in f32, since bf16 is very slow without AVX-512");
    }
    Check::pass(name, "matrix products in f32 and bf16 are right")
}

fn processor() -> Check {
    const NAME: &str = "CPU";
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let instructions = ft_quant::instructions();
    let words = format!("{}, {cores} of {} threads, {instructions} instructions", model(&text), threads(&text).max(cores));
    if instructions == "portable" && cfg!(target_arch = "x86_64") {
        Check::warn(NAME, words, "AVX2 makes ft several times faster: choose a machine that has it, or turn it on in the virtual machine")
    } else {
        Check::pass(NAME, words)
    }
}

/// Source: proc(5), `/proc/cpuinfo`.
fn model(text: &str) -> &str {
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or("an unknown processor", |(_, name)| name.trim())
}

fn threads(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("processor")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_read() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nprocessor\t: 1\nmodel name\t: A CPU @ 2 GHz\n";
        assert_eq!((model(text), threads(text)), ("A CPU @ 2 GHz", 2));
        assert_eq!((model(""), threads("")), ("an unknown processor", 0));
    }
}
