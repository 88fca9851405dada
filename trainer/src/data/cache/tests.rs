use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::data::columns::Columns;
use crate::data::options::{Overlong, SampleOptions};
use crate::data::{Dataset, Reading, load_dataset};

struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    fn new(conversations: usize) -> Folder {
        let folder = Folder { root: tempfile::tempdir().unwrap() };
        fs::write(folder.data(), (0..conversations).map(line).collect::<String>()).unwrap();
        folder
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("d.jsonl")
    }

    fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    fn options(&self) -> DatasetOptions {
        let (columns, samples) = (Columns::default(), SampleOptions::default());
        DatasetOptions { cache: Some(self.cache()), columns, samples, max_tokens: 4096, overlong: Overlong::Error }
    }

    fn load(&self, path: &Path, options: &DatasetOptions) -> (Dataset, Vec<Reading>) {
        let mut events = Vec::new();
        let sources = [path.to_string_lossy().into_owned()];
        let dataset = load_dataset(&sources, options, &mut |event| events.push(event)).unwrap();
        (dataset, events)
    }

    /// The files of the cache with this extension.
    fn entries(&self, extension: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(self.cache().join("tokens")).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    }
}

fn line(index: usize) -> String {
    let thinking = index.is_multiple_of(3).then(|| "Hm.".repeat(index % 7 + 1));
    let answer = json!({"role": "assistant", "thinking": thinking, "content": format!("A{index}")});
    let messages =
        [json!({"role": "user", "content": format!("Q{index}")}), answer.clone(), json!({"role": "user", "content": "R"}), answer];
    format!("{}\n", json!({"messages": messages, "id": index}))
}

fn is_cached(events: &[Reading]) -> bool {
    matches!(events, [Reading::Cached { .. }])
}

#[test]
fn a_second_start_gives_the_same_samples() {
    let folder = Folder::new(2500);
    let memory = DatasetOptions { cache: None, ..folder.options() };
    let (expected, _) = folder.load(&folder.data(), &memory);
    let (built, events) = folder.load(&folder.data(), &folder.options());
    assert!(events.iter().all(|event| matches!(event, Reading::Progress { .. })), "{events:?}");
    assert!(events.len() >= 3 && matches!(events.last(), Some(Reading::Progress { read_bytes, total_bytes }) if read_bytes == total_bytes));
    let (cached, events) = folder.load(&folder.data(), &folder.options());
    assert!(is_cached(&events), "{events:?}");
    for dataset in [&built, &cached] {
        assert!(dataset.iter().eq(expected.iter()));
        assert_eq!(dataset.statistics, expected.statistics);
        assert_eq!(dataset.fingerprint(), expected.fingerprint());
    }
}

#[test]
fn what_decides_the_samples_decides_the_entry() {
    let folder = Folder::new(5);
    let options = folder.options();
    folder.load(&folder.data(), &options);
    let mut others = vec![options.clone(); 4];
    others[0].max_tokens = 8192;
    others[1].overlong = Overlong::Drop;
    others[2].samples.weights.analysis = 0.5;
    others[3].columns.system = Some("instructions".to_owned());
    for other in others {
        assert!(!is_cached(&folder.load(&folder.data(), &other).1), "{other:?}");
    }
    // The same bytes elsewhere are the same samples, under the name of the file that was asked for.
    let copy = folder.root.path().join("copy.jsonl");
    fs::copy(folder.data(), &copy).unwrap();
    let (dataset, events) = folder.load(&copy, &options);
    assert!(is_cached(&events));
    assert_eq!(dataset.origin(0).file, copy);
    fs::write(folder.data(), (0..5).map(|index| line(index + 1)).collect::<String>()).unwrap();
    assert!(!is_cached(&folder.load(&folder.data(), &options).1));
}

#[test]
fn a_damaged_entry_is_made_again() {
    let folder = Folder::new(50);
    let (expected, _) = folder.load(&folder.data(), &folder.options());
    let [samples] = &folder.entries("arrow")[..] else { panic!("one entry") };
    let whole = fs::read(samples).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let cuts = [0, 7, whole.len() / 2, whole.len() - 1].map(|length| whole[..length].to_vec());
    let flips = [0, 100, whole.len() / 3, whole.len() / 2, whole.len() - 40, whole.len() - 1].map(flipped);
    for damaged in cuts.into_iter().chain(flips) {
        // Under the dataset that maps it, the old file stays what it was.
        fs::remove_file(samples).unwrap();
        fs::write(samples, damaged).unwrap();
        let (dataset, events) = folder.load(&folder.data(), &folder.options());
        assert!(matches!(&events[0], Reading::Warning(words) if words.contains("made again")), "{events:?}");
        assert!(dataset.iter().eq(expected.iter()));
        assert_eq!(fs::read(samples).unwrap(), whole);
    }
    let [seal] = &folder.entries("json")[..] else { panic!("one seal") };
    fs::write(seal, "{").unwrap();
    assert!(matches!(&folder.load(&folder.data(), &folder.options()).1[0], Reading::Warning(_)));
    // Samples without a seal were not finished.
    fs::remove_file(seal).unwrap();
    assert!(!is_cached(&folder.load(&folder.data(), &folder.options()).1));
    assert!(is_cached(&folder.load(&folder.data(), &folder.options()).1));
}

#[test]
fn an_error_leaves_no_entry() {
    let folder = Folder::new(3000);
    let mut text = fs::read_to_string(folder.data()).unwrap();
    text.push_str("{\"messages\": 1}\n");
    fs::write(folder.data(), text).unwrap();
    let sources = [folder.data().to_string_lossy().into_owned()];
    let error = load_dataset(&sources, &folder.options(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("d.jsonl:3001: messages should be a list"), "{error}");
    assert_eq!(fs::read_dir(folder.cache().join("tokens")).unwrap().count(), 0);
}

#[test]
fn a_folder_that_cannot_be_written_is_a_warning() {
    let folder = Folder::new(5);
    fs::write(folder.cache(), "a file where the folder should be").unwrap();
    let (dataset, events) = folder.load(&folder.data(), &folder.options());
    assert!(matches!(&events[0], Reading::Warning(words) if words.contains("not kept for the next start")), "{events:?}");
    assert_eq!(dataset.len(), folder.load(&folder.data(), &DatasetOptions { cache: None, ..folder.options() }).0.len());
}

#[test]
fn stale_leftovers_are_removed() {
    let folder = Folder::new(5);
    folder.load(&folder.data(), &folder.options());
    let leftover = folder.cache().join("tokens/.partial-dead");
    let fresh = folder.cache().join("tokens/.partial-alive");
    for path in [&leftover, &fresh] {
        fs::write(path, "x").unwrap();
    }
    let yesterday = SystemTime::now() - STALE - Duration::from_secs(60);
    File::options().write(true).open(&leftover).unwrap().set_modified(yesterday).unwrap();
    folder.load(&folder.data(), &DatasetOptions { max_tokens: 5000, ..folder.options() });
    assert!(!leftover.exists());
    assert!(fresh.exists());
}

#[test]
fn data_that_changes_while_it_is_read_is_no_entry() {
    let folder = Folder::new(2500);
    let sources = [folder.data().to_string_lossy().into_owned()];
    let mut warnings = Vec::new();
    let dataset = load_dataset(&sources, &folder.options(), &mut |event| match event {
        Reading::Progress { .. } => fs::write(folder.data(), line(1) + &line(2)).unwrap(),
        other => warnings.push(other),
    })
    .unwrap();
    assert!(matches!(&warnings[..], [Reading::Warning(words)] if words.contains("changed while it was read")), "{warnings:?}");
    assert!(dataset.len() > 4, "{}", dataset.len());
    assert_eq!(fs::read_dir(folder.cache().join("tokens")).unwrap().count(), 0);
    let (dataset, events) = folder.load(&folder.data(), &folder.options());
    assert!(!is_cached(&events));
    assert_eq!(dataset.statistics.conversations, 2);
}

#[test]
fn what_can_be_read_only_once_is_no_entry() {
    let folder = Folder::new(1);
    let pipe = SourceFile { path: "/dev/null".into(), source: 0 };
    assert!(Entry::of(&folder.cache(), &[pipe], &folder.options()).unwrap().is_none());
}
