//! The machine that a run was made on.

use std::fs;

use serde::{Deserialize, Serialize};

/// What is known of it; a run on another one may differ in speed, and within rounding in its numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Host {
    /// Its name in the network.
    pub(crate) name: Option<String>,
    /// The processor as the system names it.
    pub(crate) cpu: Option<String>,
    /// Processors that this program may use.
    pub(crate) cores: Option<usize>,
    /// All memory.
    pub(crate) memory_bytes: Option<u64>,
    /// Kernel of the operating system.
    pub(crate) system: Option<String>,
    /// Version of the NVIDIA driver, where there is one.
    pub(crate) driver: Option<String>,
}

impl Host {
    /// This one.
    ///
    /// Source: proc(5), and `/sys/module/nvidia/version`, which the driver's kernel module fills.
    pub(crate) fn here() -> Self {
        let line = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let field = |path: &str, name: &str| field(&fs::read_to_string(path).ok()?, name);
        Self {
            name: line("/proc/sys/kernel/hostname"),
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().ok().map(usize::from),
            memory_bytes: field("/proc/meminfo", "MemTotal").and_then(|text| kibibytes(&text)),
            system: line("/proc/sys/kernel/osrelease").map(|release| format!("{} {release}", std::env::consts::OS)),
            driver: line("/sys/module/nvidia/version"),
        }
    }
}

/// What follows `name` and a colon in the first line that begins so.
fn field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_names() {
        let text = "model\t\t: 207\nmodel name\t: Some CPU @ 2.7GHz\nMemTotal:       16384 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2.7GHz"));
        assert_eq!(field(text, "MemTotal").and_then(|text| kibibytes(&text)), Some(16 << 20));
        assert_eq!(field(text, "MemFree"), None);
    }
}
