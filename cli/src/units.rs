//! Numbers for people.

/// `1.2 GB`, in powers of 1000.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(crate) fn bytes(count: u64) -> String {
    if count < 1000 {
        return format!("{count} B");
    }
    scaled(count as f64, &["KB", "MB", "GB", "TB", "PB"])
}

/// `20.9 B` for billions; small counts in full.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(crate) fn parameters(count: u64) -> String {
    if count < 10_000 {
        return whole(count);
    }
    scaled(count as f64, &["K", "M", "B", "T"])
}

fn scaled(value: f64, names: &[&str]) -> String {
    let mut value = value / 1000.0;
    let mut names = names.iter();
    let mut name = names.next().copied().unwrap_or_default();
    // What rounds to 1000 is shown as 1 of the next.
    while value >= 999.5 {
        let Some(next) = names.next() else { break };
        value /= 1000.0;
        name = next;
    }
    if value < 99.95 { format!("{value:.1} {name}") } else { format!("{value:.0} {name}") }
}

/// `1,234,567`.
pub(crate) fn whole(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 sample`, `2 samples`.
pub(crate) fn counted(count: usize, name: &str) -> String {
    format!("{} {name}{}", whole(count as u64), if count == 1 { "" } else { "s" })
}

/// `2 h 05 min`, `3 min 07 s`, `12 s`, `0.4 s`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration is not negative, and far below 2^64")]
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A share in percent: `31.4%`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn share(part: u64, whole: u64) -> String {
    format!("{:.1}%", if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1000), bytes(999_999), bytes(13_761_264_768)],
            ["0 B", "999 B", "1.0 KB", "1.0 MB", "13.8 GB"]
        );
        assert_eq!([parameters(9999), parameters(53_000_000), parameters(116_829_156_672)], ["9,999", "53.0 M", "117 B"]);
        assert_eq!([whole(0), whole(999), whole(1000), whole(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [duration(0.42), duration(12.3), duration(187.0), duration(7500.0), duration(f64::NAN)],
            ["0.4 s", "12 s", "3 min 07 s", "2 h 05 min", "?"]
        );
        assert_eq!([counted(1, "sample"), counted(2000, "sample")], ["1 sample", "2,000 samples"]);
        assert_eq!([share(1, 3), share(0, 0)], ["33.3%", "0.0%"]);
    }
}
