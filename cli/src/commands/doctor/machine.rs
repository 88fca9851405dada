//! Memory, disk, limits and the clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ft_trainer::run::directory::free_bytes;
use ft_trainer::torch::device::available_memory_bytes;

use super::accounts;
use super::check::Check;
use crate::units::bytes;

/// What `recipes/quickstart.toml` takes.
const LITTLE_MEMORY: u64 = 3_000_000_000;
/// A gpt-oss-20b as it is published, and a little more.
const LITTLE_DISK: u64 = 16_000_000_000;
/// Not even checkpoints of a small model fit.
const NO_DISK: u64 = 500_000_000;
/// Files that a model in many shards and its data may have open.
const FEW_FILES: u64 = 256;
/// 2026-01-01: no build of this program is older.
const BEFORE_THIS_PROGRAM: u64 = 1_767_225_600;
const YEAR_SECONDS: u64 = 31_557_600;

pub(super) fn checks() -> Vec<Check> {
    let memory = memory(available_memory_bytes(), total_memory(), memory_limit(Path::new("/sys/fs/cgroup")));
    let mut checks = vec![memory];
    checks.extend(disks());
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    checks.push(open_files(open_files_limit(&limits)));
    checks.push(clock(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())));
    checks
}

fn memory(available: Option<u64>, total: Option<u64>, limit: Option<u64>) -> Check {
    const NAME: &str = "memory";
    let Some(available) = available else { return Check::skip(NAME, "/proc/meminfo does not say how much is free") };
    let of = total.map_or_else(String::new, |total| format!(" of {}", bytes(total)));
    // A limit above what the machine has limits nothing.
    let limit = limit.filter(|limit| total.is_none_or(|total| *limit < total));
    let limited = limit.map_or_else(String::new, |limit| format!(", limited to {} by the control group", bytes(limit)));
    let words = format!("{} free{of}{limited}", bytes(available));
    if limit.map_or(available, |limit| limit.min(available)) < LITTLE_MEMORY {
        Check::warn(NAME, words, format!("a first run takes {}: close other programs, or raise the limit", bytes(LITTLE_MEMORY)))
    } else {
        Check::pass(NAME, words)
    }
}

/// Source: `MemTotal` of proc(5).
fn total_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group of this process may use. Source: Linux, cgroup-v2.rst, `memory.max`; cgroup-v1/memory.rst, `memory.limit_in_bytes`.
fn memory_limit(root: &Path) -> Option<u64> {
    let files = ["memory.max", "memory/memory.limit_in_bytes"];
    files.iter().find_map(|file| fs::read_to_string(root.join(file)).ok()?.trim().parse().ok())
}

/// The current folder and the caches, each file system once.
fn disks() -> Vec<Check> {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let places = [Some(("disk", here)), accounts::hub_cache().map(|folder| ("disk of the Hub's cache", folder))];
    places.into_iter().flatten().map(|(name, path)| disk(name, &path, free_bytes(&path))).collect()
}

fn disk(name: &'static str, path: &Path, free: Option<u64>) -> Check {
    let Some(free) = free else { return Check::skip(name, format!("{} does not say how much is free", path.display())) };
    let words = format!("{} free at {}", bytes(free), path.display());
    let fix = format!(
        "gpt-oss-20b takes 14 GB, and a merge or an export as much again: free some space, or work elsewhere than {}",
        path.display()
    );
    match free {
        0..NO_DISK => Check::fail(name, words, fix),
        NO_DISK..LITTLE_DISK => Check::warn(name, words, fix),
        _ => Check::pass(name, words),
    }
}

/// Source: proc(5), `/proc/pid/limits`: name, soft limit, hard limit, unit.
fn open_files_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn open_files(limit: Option<u64>) -> Check {
    const NAME: &str = "open files";
    match limit {
        None => Check::skip(NAME, "the limit is not known"),
        Some(u64::MAX) => Check::pass(NAME, "no limit"),
        Some(limit) if limit < FEW_FILES => Check::warn(NAME, format!("a limit of {limit}"), "raise it: `ulimit -n 4096`"),
        Some(limit) => Check::pass(NAME, format!("a limit of {limit}")),
    }
}

fn clock(now: u64) -> Check {
    const NAME: &str = "clock";
    let years = 1970 + now / YEAR_SECONDS;
    if (BEFORE_THIS_PROGRAM..BEFORE_THIS_PROGRAM + 50 * YEAR_SECONDS).contains(&now) {
        Check::pass(NAME, format!("the year {years}"))
    } else {
        Check::fail(
            NAME,
            format!("the year {years}"),
            "set it (`timedatectl set-ntp true`): certificates of the Hub and of trackers are refused until then",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    #[test]
    fn little_memory_warns_and_a_limit_counts() {
        let status = |available, limit| memory(Some(available), Some(64_000_000_000), limit).status;
        assert_eq!(status(60_000_000_000, None), Status::Pass);
        assert_eq!(status(2_000_000_000, None), Status::Warn);
        assert_eq!(status(60_000_000_000, Some(1_000_000_000)), Status::Warn);
        assert_eq!(status(60_000_000_000, Some(u64::MAX)), Status::Pass);
        assert!(!memory(Some(1 << 40), Some(1 << 41), Some(u64::MAX)).found.contains("limited"));
        assert_eq!(memory(None, None, None).status, Status::Skip);
    }

    #[test]
    fn limits_of_either_kind_of_control_group_are_read() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(memory_limit(root.path()), None);
        fs::create_dir(root.path().join("memory")).unwrap();
        fs::write(root.path().join("memory/memory.limit_in_bytes"), "1024\n").unwrap();
        assert_eq!(memory_limit(root.path()), Some(1024));
        fs::write(root.path().join("memory.max"), "2048\n").unwrap();
        assert_eq!(memory_limit(root.path()), Some(2048));
    }

    #[test]
    fn a_full_disk_fails_and_a_small_one_warns() {
        let status = |free| disk("disk", Path::new("/d"), free).status;
        assert_eq!(
            [status(Some(0)), status(Some(5_000_000_000)), status(Some(50_000_000_000)), status(None)],
            [Status::Fail, Status::Warn, Status::Pass, Status::Skip]
        );
    }

    #[test]
    fn the_limit_of_open_files_is_read() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 1048576              files\n";
        assert_eq!(open_files_limit(text), Some(1024));
        assert_eq!(open_files_limit("Max open files  unlimited  unlimited  files\n"), Some(u64::MAX));
        assert_eq!([open_files(Some(64)).status, open_files(Some(1024)).status], [Status::Warn, Status::Pass]);
    }

    #[test]
    fn a_clock_that_was_never_set_fails() {
        assert_eq!(
            [clock(0).status, clock(BEFORE_THIS_PROGRAM + 5).status, clock(u64::MAX / 2).status],
            [Status::Fail, Status::Pass, Status::Fail]
        );
    }
}
