//! What the run was made of: its data in numbers, its memory by class, where it ran, and what happened when.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::Value;

use crate::page::escape::escape_lines;
use crate::run_record::{Record, Session, State};
use crate::units::{bytes, duration, whole};

/// Rows of a table that come from a file, at most.
const MOST_ROWS: usize = 80;

/// Letters of a name or value that come from a file.
const MOST_LETTERS: usize = 200;

/// Bytes at the end of `run.log` that are shown.
const MOST_LOG_BYTES: u64 = 24 << 10;

/// Numbers of the dataset. Fields that this version does not know are shown by their names.
pub(super) fn dataset(plan: &Value) -> Option<String> {
    let dataset = plan.get("dataset")?.as_object()?;
    let mut rows = String::new();
    let mut count = |key: &str, value: &Value| {
        if let Some(text) = words(value) {
            rows += &row(&name(key), &text);
        }
    };
    for key in ["train_samples", "validation_samples", "sequences", "packing_efficiency", "steps_per_epoch"] {
        if let Some(value) = plan.get(key) {
            count(key, value);
        }
    }
    dataset.iter().filter(|(key, _)| *key != "lengths").take(MOST_ROWS).for_each(|(key, value)| count(key, value));
    let lengths = dataset.get("lengths");
    let length = |key: &str| lengths.and_then(|lengths| lengths.get(key)).and_then(Value::as_u64);
    if let (Some(shortest), Some(median), Some(longest)) = (length("shortest"), length("median"), length("longest")) {
        rows += &row("sample length", &format!("{} to {} tokens, median {}", whole(shortest), whole(longest), whole(median)));
    }
    let histogram = lengths.and_then(|lengths| lengths.get("buckets")).and_then(histogram).unwrap_or_default();
    Some(format!("<div class=\"pair\"><div><table class=\"facts-table\">{rows}</table></div><div>{histogram}</div></div>\n"))
}

/// A number, or several by their names; nothing for what is no number.
fn words(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(match (number.as_u64(), number.as_f64()) {
            (Some(count), _) => whole(count),
            (None, Some(number)) => format!("{number:.3}"),
            _ => return None,
        }),
        Value::Bool(truth) => Some(if *truth { "yes" } else { "no" }.to_owned()),
        Value::Object(fields) => {
            let part = |(key, value): (&String, &Value)| {
                let text = words(value).filter(|_| !value.is_object())?;
                Some(format!("{} {}", escape_lines(&cut(key)), text))
            };
            let parts: Vec<String> = fields.iter().filter_map(part).take(MOST_ROWS).collect();
            if parts.is_empty() { None } else { Some(parts.join("<br/>")) }
        }
        _ => None,
    }
}

/// Bars of the numbers of samples up to each length.
fn histogram(buckets: &Value) -> Option<String> {
    let buckets: Vec<(u64, u64)> = buckets
        .as_array()?
        .iter()
        .take(MOST_ROWS)
        .filter_map(|bucket| Some((bucket.get(0)?.as_u64()?, bucket.get(1)?.as_u64()?)))
        .collect();
    let most = buckets.iter().map(|(_, count)| *count).max().filter(|most| *most > 0)?;
    let bar = |(bound, count): &(u64, u64)| {
        format!(
            "<tr><th scope=\"row\">up to {}</th><td class=\"bars\"><span class=\"bar-fill\" style=\"--share: {:.4}\"></span>{}</td></tr>",
            whole(*bound),
            share(*count, most),
            whole(*count)
        )
    };
    let bars: String = buckets.iter().map(bar).collect();
    Some(format!("<h3>Samples by length in tokens</h3><table class=\"histogram\">{bars}</table>"))
}

/// What the plan expected of memory, class by class.
pub(super) fn memory(plan: &Value) -> Option<String> {
    let classes = plan.get("memory")?.get("classes")?.as_array()?;
    let classes: Vec<(String, u64)> = classes
        .iter()
        .take(MOST_ROWS)
        .filter_map(|class| {
            let place = class.get("place").and_then(Value::as_str).unwrap_or_default();
            let place = if place == "device" { " (device)" } else { "" };
            Some((cut(class.get("name")?.as_str()?) + place, class.get("bytes")?.as_u64().filter(|bytes| *bytes > 0)?))
        })
        .collect();
    let most = classes.iter().map(|(_, bytes)| *bytes).max()?;
    let bar = |(name, count): &(String, u64)| {
        format!(
            "<tr><th scope=\"row\">{}</th><td class=\"bars\"><span class=\"bar-fill\" style=\"--share: {:.4}\"></span>{}</td></tr>",
            escape_lines(name),
            share(*count, most),
            bytes(*count)
        )
    };
    let bars: String = classes.iter().map(bar).collect();
    Some(format!("<h3>Planned memory by class</h3><table class=\"histogram\">{bars}</table>"))
}

#[expect(clippy::cast_precision_loss, reason = "a share of a width")]
fn share(count: u64, most: u64) -> f64 {
    count as f64 / most.max(1) as f64
}

/// Where the latest process runs or ran.
pub(super) fn environment(record: &Record) -> String {
    let mut rows = String::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            rows += &row(name, &escape_lines(&cut(&value)));
        }
    };
    let plan = |key: &str| record.plan.as_ref().and_then(|plan| plan.get(key)).and_then(Value::as_str).map(str::to_owned);
    let host = record.host.clone().unwrap_or_default();
    add("ft", Some(record.ft_version.clone()));
    add("libtorch", record.libtorch_version.clone());
    add("device", plan("device").map(|device| plan("device_name").map_or(device.clone(), |name| format!("{device}, {name}"))));
    add("NVIDIA driver", host.driver);
    add("activations", plan("dtype"));
    add("host", host.name);
    add("processor", host.cpu);
    add("cores", host.cores.map(|cores| cores.to_string()));
    add("memory", host.memory_bytes.map(bytes));
    add("system", host.system);
    if let Some(session) = record.sessions.last() {
        rows += &row("command", &format!("<code>{}</code>", escape_lines(&cut(&session.command.join(" ")))));
    }
    format!("<table class=\"facts-table\">{rows}</table>")
}

/// Each process of the run, when there was more than one.
pub(super) fn sessions(record: &Record) -> String {
    let line = |session: &Session| {
        format!(
            "<tr><td>{}</td><td>{} to {}</td><td>{}</td><td>{}</td></tr>",
            escape_lines(&cut(&session.started)),
            whole(session.first_step as u64),
            whole(session.last_step as u64),
            session.seconds.map_or("-".to_owned(), duration),
            state_name(session.state)
        )
    };
    let lines: String = record.sessions.iter().rev().take(MOST_ROWS).map(line).collect();
    format!(
        "<h3>Processes</h3><div class=\"scroll\" tabindex=\"0\"><table class=\"sessions\"><thead><tr><th>started</th><th>steps</th><th>time</th>\
         <th>state</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )
}

pub(super) fn state_name(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Finished => "finished",
        State::Interrupted => "interrupted",
        State::Failed => "failed",
        State::Killed => "killed",
    }
}

/// The end of `run.log`; nothing where it cannot be read.
pub(super) fn log(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let start = length.saturating_sub(MOST_LOG_BYTES);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut read = Vec::new();
    file.take(MOST_LOG_BYTES).read_to_end(&mut read).ok()?;
    let text = String::from_utf8_lossy(&read);
    let text = if start > 0 { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    (!text.trim().is_empty()).then(|| format!("<pre class=\"log\" tabindex=\"0\">{}</pre>", escape_lines(text.trim_end())))
}

/// `name` is safe or a key; `value` is markup.
fn row(name: &str, value: &str) -> String {
    format!("<tr><th scope=\"row\">{}</th><td>{value}</td></tr>", escape_lines(name))
}

fn name(key: &str) -> String {
    cut(&key.replace('_', " "))
}

fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(MOST_LETTERS).collect();
    if cut.len() < text.len() {
        cut.push_str(" ...");
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_of_later_versions_are_shown_by_their_names() {
        let plan = json!({"train_samples": 12, "dataset": {
            "conversations": 1234, "leaked": 5, "duplicate_fraction": 0.125, "shapes": {"messages": 7, "<b>": 1}, "nothing": null,
            "lengths": {"shortest": 3, "median": 9, "longest": 2000, "buckets": [[4, 1], [8, 0], [2048, 4]]},
        }});
        let drawn = dataset(&plan).unwrap();
        for words in [
            "<th scope=\"row\">conversations</th><td>1,234</td>",
            ">leaked</th><td>5<",
            "0.125",
            "messages 7<br/>&lt;b&gt; 1",
            "3 to 2,000 tokens, median 9",
            "--share: 0.2500",
            "up to 2,048",
        ] {
            assert!(drawn.contains(words), "no {words} in {drawn}");
        }
        assert!(!drawn.contains("nothing"));
        assert!(dataset(&json!({})).is_none());
    }

    #[test]
    fn memory_has_a_bar_for_each_class_that_takes_any() {
        let plan = json!({"memory": {"classes": [
            {"name": "weights", "place": "device", "bytes": 4000}, {"name": "moments", "place": "host", "bytes": 1000}, {"name": "none", "place": "host", "bytes": 0},
        ]}});
        let drawn = memory(&plan).unwrap();
        assert!(drawn.contains("weights (device)") && drawn.contains("--share: 0.2500") && !drawn.contains("none"), "{drawn}");
    }

    #[test]
    fn the_end_of_a_long_log_is_shown_from_a_whole_line_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.log");
        std::fs::write(&path, (0..5000).map(|line| format!("line {line} <x>\n")).collect::<String>()).unwrap();
        let drawn = log(&path).unwrap();
        assert!(
            drawn.starts_with("<pre class=\"log\" tabindex=\"0\">line ") && drawn.ends_with("line 4999 &lt;x&gt;</pre>"),
            "{}",
            &drawn[..60]
        );
        assert!(log(&folder.path().join("absent")).is_none());
    }
}
