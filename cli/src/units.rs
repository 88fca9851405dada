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

/// A fraction in percent, with as many digits as keep a small one from reading as none: `31.4%`, `0.0012%`.
pub(crate) fn percent(fraction: f64) -> String {
    let percent = fraction * 100.0;
    if percent == 0.0 || percent >= 9.995 {
        format!("{percent:.1}%")
    } else if percent >= 0.01 {
        format!("{percent:.2}%")
    } else {
        format!("{percent:.0e}%")
    }
}

/// `2.3e18` operations as `2,300 PFLOP`: in the unit that leaves one to four digits before the point.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most five digits, not negative")]
pub(crate) fn flops(count: f64) -> String {
    let names = ["FLOP", "KFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"];
    let (mut value, mut name) = (count, names[0]);
    for next in &names[1..] {
        if value < 9999.5 {
            break;
        }
        value /= 1000.0;
        name = next;
    }
    if value < 99.95 { format!("{value:.1} {name}") } else { format!("{} {name}", whole(value.round() as u64)) }
}

/// The bytes that a text like `5GB`, `60KB` or `4096` names, in powers of 1000; `80GiB` is in powers of 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => Some(1),
        "K" | "KB" => Some(1000),
        "M" | "MB" => Some(1_000_000),
        "G" | "GB" => Some(1_000_000_000),
        "T" | "TB" => Some(1_000_000_000_000),
        "KIB" => Some(1 << 10),
        "MIB" => Some(1 << 20),
        "GIB" => Some(1 << 30),
        "TIB" => Some(1 << 40),
        _ => None,
    };
    let count = digits.parse::<u64>().ok().filter(|&count| count > 0);
    let bytes = count.zip(factor).and_then(|(count, factor): (u64, u64)| count.checked_mul(factor));
    bytes.ok_or_else(|| "a size like 5GB, 500MB or 4096".to_owned())
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
        assert_eq!(
            [percent(0.0), percent(0.314), percent(0.0123), percent(1.2e-7), percent(1.0)],
            ["0.0%", "31.4%", "1.23%", "1e-5%", "100.0%"]
        );
    }

    #[test]
    fn operations_keep_up_to_four_digits() {
        assert_eq!([flops(0.0), flops(999.0), flops(12_345.0), flops(2.3e18)], ["0.0 FLOP", "999 FLOP", "12.3 KFLOP", "2,300 PFLOP"]);
    }

    #[test]
    fn sizes_are_read_in_powers_of_1000() {
        assert_eq!(
            [parse_bytes("5GB"), parse_bytes("60kb"), parse_bytes("4096"), parse_bytes("1T"), parse_bytes("80GiB")].map(Result::unwrap),
            [5_000_000_000, 60_000, 4096, 1_000_000_000_000, 80 << 30]
        );
        for text in ["", "GB", "0", "-1", "1.5GB", "5 GB", "5XB", "99999999999T", "5\u{e9}"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
