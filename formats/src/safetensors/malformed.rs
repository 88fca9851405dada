//! Files that must be refused: hand-built, each with the rule that it breaks.

use std::fs;
use std::time::{Duration, Instant};

use super::{HeaderProblem, SafetensorsFile};
use crate::error::Error;

/// A file of a header and data, with the length that belongs to them.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    raw(header.len() as u64, header.as_bytes(), data)
}

fn raw(header_bytes: u64, header: &[u8], data: &[u8]) -> Vec<u8> {
    [&header_bytes.to_le_bytes()[..], header, data].concat()
}

/// A header of U8 tensors.
fn header(tensors: &[(&str, &str, [u64; 2])]) -> String {
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, shape, [begin, end])| format!(r#""{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[{begin},{end}]}}"#))
        .collect();
    format!("{{{}}}", entries.join(","))
}

fn open(bytes: &[u8]) -> Result<SafetensorsFile, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    let start = Instant::now();
    let result = SafetensorsFile::open(&path);
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    result
}

macro_rules! assert_rejects {
    ($bytes:expr, $problem:pat $(if $guard:expr)?) => {
        match open(&$bytes) {
            Err(Error::Safetensors { problem, .. }) => {
                assert!(matches!(&problem, $problem $(if $guard)?), "refused as {problem:?}");
                assert!(!problem.to_string().ends_with('.'));
            }
            other => panic!("expected a refusal, found {other:?}"),
        }
    };
}

#[test]
fn files_that_are_too_short() {
    for length in 0..8 {
        assert_rejects!(vec![0; length], HeaderProblem::TooShort { found } if *found == length as u64);
    }
    assert_rejects!(raw(0, b"", b""), HeaderProblem::FirstByte { .. });
}

#[test]
fn header_lengths_that_cannot_be() {
    for length in [3, 100_000_000] {
        assert_rejects!(raw(length, b"{}", b""), HeaderProblem::HeaderBeyondEnd { available: 2, .. });
    }
    for length in [100_000_001, u64::MAX, u64::MAX - 7, 1 << 63] {
        assert_rejects!(raw(length, b"{}", b""), HeaderProblem::HeaderTooLarge { found } if *found == length);
    }
}

#[test]
fn headers_that_are_no_text() {
    assert_rejects!(raw(3, b"{\xff}", b""), HeaderProblem::NotUtf8 { offset: 1 });
    // An overlong encoding, and a surrogate.
    assert_rejects!(raw(5, b"{\"\xc0\x80\"", b""), HeaderProblem::NotUtf8 { .. });
    assert_rejects!(raw(6, b"{\"\xed\xa0\x80\"", b""), HeaderProblem::NotUtf8 { .. });
}

#[test]
fn headers_that_are_no_json() {
    for text in ["{", "{}x", "{} {}", r#"{"a":}"#, "{]", r#"{"a":[1,2]}"#, r#"{"a":null}"#] {
        assert_rejects!(file(text, b""), HeaderProblem::Syntax { .. });
    }
}

#[test]
fn nesting_is_bounded() {
    let bomb = format!(r#"{{"__metadata__":{}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_rejects!(file(&bomb, b""), HeaderProblem::Syntax { .. });
    let bomb = format!(r#"{{"a":{{"dtype":"U8","shape":{}{},"data_offsets":[0,0]}}}}"#, "[".repeat(500_000), "]".repeat(500_000));
    assert_rejects!(file(&bomb, b""), HeaderProblem::Syntax { .. });
}

#[test]
fn files_that_begin_with_something_else() {
    for text in [" {}", "\n{}", "\u{feff}{}", "[]", "#!/bin/sh", "PK"] {
        assert_rejects!(file(text, b""), HeaderProblem::FirstByte { .. });
    }
}

#[test]
fn names_that_stand_twice() {
    let twice = header(&[("a", "[2]", [0, 2]), ("a", "[2]", [2, 4])]);
    assert_rejects!(file(&twice, &[0; 4]), HeaderProblem::DuplicateName { name } if name == "a");
    // The reference implementation takes this one, and the last shape wins.
    let same_bytes = header(&[("a", "[2,1]", [0, 2]), ("a", "[1,2]", [0, 2])]);
    assert_rejects!(file(&same_bytes, &[0; 2]), HeaderProblem::DuplicateName { .. });
    let escaped = header(&[("a", "[2]", [0, 2]), ("\\u0061", "[2]", [0, 2])]);
    assert_rejects!(file(&escaped, &[0; 2]), HeaderProblem::DuplicateName { .. });
    let metadata = r#"{"__metadata__":{"a":"1","a":"2"}}"#;
    assert_rejects!(file(metadata, b""), HeaderProblem::DuplicateName { name } if name == "a");
    assert_rejects!(file(r#"{"__metadata__":{},"__metadata__":{}}"#, b""), HeaderProblem::Syntax { .. });
}

#[test]
fn names_that_are_none() {
    assert_rejects!(file(&header(&[("", "[1]", [0, 1])]), &[0]), HeaderProblem::BadName { .. });
    assert_rejects!(file(&header(&[("a\\u0000", "[1]", [0, 1])]), &[0]), HeaderProblem::BadName { .. });
    assert_rejects!(file(&header(&[("a\\nb", "[1]", [0, 1])]), &[0]), HeaderProblem::BadName { .. });
}

#[test]
fn tensors_that_share_bytes() {
    let overlap = header(&[("a", "[4]", [0, 4]), ("b", "[4]", [2, 6])]);
    assert_rejects!(file(&overlap, &[0; 6]), HeaderProblem::Overlap { tensor, begin: 2, previous_end: 4 } if tensor == "b");
    let same = header(&[("a", "[4]", [0, 4]), ("b", "[4]", [0, 4])]);
    assert_rejects!(file(&same, &[0; 4]), HeaderProblem::Overlap { .. });
}

#[test]
fn bytes_that_belong_to_nobody() {
    let hole = header(&[("a", "[4]", [0, 4]), ("b", "[4]", [5, 9])]);
    assert_rejects!(file(&hole, &[0; 9]), HeaderProblem::Hole { gap: 1, begin: 5, .. });
    let late = header(&[("a", "[4]", [4, 8])]);
    assert_rejects!(file(&late, &[0; 8]), HeaderProblem::Hole { gap: 4, .. });
    let whole = header(&[("a", "[4]", [0, 4])]);
    assert_rejects!(file(&whole, &[0; 5]), HeaderProblem::Trailing { expected: 4, found: 5 });
    assert_rejects!(file("{}", &[0]), HeaderProblem::Trailing { expected: 0, found: 1 });
    assert_rejects!(file(&whole, &[0; 3]), HeaderProblem::Truncated { expected: 4, found: 3 });
    let empty_far_out = header(&[("a", "[0]", [7, 7])]);
    assert_rejects!(file(&empty_far_out, b""), HeaderProblem::Hole { .. });
}

#[test]
fn offsets_that_are_none() {
    assert_rejects!(file(&header(&[("a", "[4]", [4, 0])]), &[0; 4]), HeaderProblem::Reversed { begin: 4, end: 0, .. });
    for offsets in ["[-1,3]", "[0,4.0]", "[0,18446744073709551616]", "[0]", "[0,4,4]", r#"["0","4"]"#, "[0,1e2]"] {
        let text = format!(r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}}}"#);
        assert_rejects!(file(&text, &[0; 4]), HeaderProblem::Syntax { .. });
    }
    let far = header(&[("a", "[18446744073709551615]", [0, u64::MAX])]);
    assert_rejects!(file(&far, &[0; 4]), HeaderProblem::ShapeOverflow { .. });
    let far = header(&[("a", "[9223372036854775800]", [0, 9_223_372_036_854_775_800])]);
    assert_rejects!(file(&far, &[0; 4]), HeaderProblem::ShapeOverflow { .. } | HeaderProblem::Truncated { .. });
}

#[test]
fn shapes_whose_product_wraps() {
    for shape in [
        "[4294967296,4294967296]",
        "[18446744073709551615,2]",
        "[9223372036854775808,2]",
        "[0,18446744073709551615]",
        "[18446744073709551615,18446744073709551615,0]",
    ] {
        assert_rejects!(file(&header(&[("a", shape, [0, 0])]), b""), HeaderProblem::ShapeOverflow { .. });
    }
    for shape in ["[-1]", "[1.5]", "[18446744073709551616]", "4", "null", "[[1]]"] {
        assert_rejects!(file(&header(&[("a", shape, [0, 0])]), b""), HeaderProblem::Syntax { .. });
    }
    let many = format!("[{}1]", "1,".repeat(64));
    assert_rejects!(file(&header(&[("a", &many, [0, 1])]), &[0]), HeaderProblem::TooManyDimensions { found: 65, .. });
}

#[test]
fn bytes_that_are_not_those_of_the_shape() {
    assert_rejects!(file(&header(&[("a", "[5]", [0, 4])]), &[0; 4]), HeaderProblem::SizeMismatch { expected: 5, found: 4, .. });
    let scalar = r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,2]}}"#;
    assert_rejects!(file(scalar, &[0; 2]), HeaderProblem::SizeMismatch { expected: 4, found: 2, .. });
}

#[test]
fn types_that_are_none() {
    for dtype in ["F31", "f32", "", "bfloat16", "BF16 "] {
        let text = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,4]}}}}"#);
        assert_rejects!(file(&text, &[0; 4]), HeaderProblem::UnknownDtype { found, .. } if found == dtype);
    }
    // Three elements of four bits end within a byte.
    let text = r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#;
    assert_rejects!(file(text, &[0; 2]), HeaderProblem::ShapeOverflow { .. });
}

#[test]
fn entries_of_another_form() {
    for entry in [
        r#"{"dtype":"U8","shape":[1]}"#,
        r#"{"dtype":"U8","data_offsets":[0,1]}"#,
        r#"{"shape":[1],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1}"#,
        r#"{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}"#,
        r#"{"dtype":8,"shape":[1],"data_offsets":[0,1]}"#,
        "[]",
    ] {
        assert_rejects!(file(&format!(r#"{{"a":{entry}}}"#), &[0]), HeaderProblem::Syntax { .. });
    }
    for metadata in [r#"{"a":1}"#, r#"{"a":{"b":"c"}}"#, "[]", "\"x\""] {
        assert_rejects!(file(&format!(r#"{{"__metadata__":{metadata}}}"#), b""), HeaderProblem::Syntax { .. });
    }
}

#[test]
fn a_large_header_of_many_tensors_is_judged_in_bounded_time() {
    let tensors: Vec<String> =
        (0..200_000).map(|index| format!(r#""{index}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    let text = format!("{{{}}}", tensors.join(","));
    assert_eq!(open(&file(&text, b"")).unwrap().tensors().len(), 200_000);
}

#[test]
fn what_is_no_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(SafetensorsFile::open(directory.path()), Err(Error::NotAFile { .. } | Error::Io { .. })));
    assert!(matches!(SafetensorsFile::open(&directory.path().join("none")), Err(Error::Io { action: "read", .. })));
}

#[test]
fn what_the_format_allows_is_taken() {
    let text = format!("{}   ", header(&[("z", "[2]", [0, 2]), ("empty", "[0,3]", [2, 2]), ("../../a", "[]", [2, 3])]));
    let opened = open(&file(&text, &[1, 2, 3])).unwrap();
    assert_eq!(opened.tensor("z").unwrap().bytes, [1, 2]);
    assert_eq!(opened.tensor("../../a").unwrap().bytes, [3]);
    assert_eq!(opened.tensor("empty").unwrap().shape, [0, 3]);
    assert_eq!(opened.data_bytes(), 3);
    assert!(matches!(opened.tensor("y"), Err(Error::MissingTensor { .. })));
    assert_eq!(open(&file("{}", b"")).unwrap().tensors().len(), 0);
}
