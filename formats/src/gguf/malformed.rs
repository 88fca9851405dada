//! Files that must be refused: hand-built, each with the rule that it breaks. And what the format allows, which is taken.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::testing::{File, Listed, string};
use super::{Array, GgufFile, GgufProblem, TensorType, Value};
use crate::error::{Error, Hint};

fn open(bytes: &[u8]) -> Result<GgufFile, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let start = Instant::now();
    let result = GgufFile::open(&path);
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    result
}

macro_rules! assert_rejects {
    ($bytes:expr, $problem:pat $(if $guard:expr)?) => {
        match open(&$bytes) {
            Err(Error::Gguf { problem, .. }) => {
                assert!(matches!(&problem, $problem $(if $guard)?), "refused as {problem:?}");
                assert!(!problem.to_string().ends_with('.'));
                assert!(problem.hint().is_some());
            }
            other => panic!("expected a refusal, found {other:?}"),
        }
    };
}

/// A file with a value of every type, arrays, and tensors of three types.
fn whole() -> File {
    File::default()
        .with("u8", &Value::U8(250))
        .with("i8", &Value::I8(-5))
        .with("u16", &Value::U16(60_000))
        .with("i16", &Value::I16(-500))
        .with("u32", &Value::U32(4_000_000_000))
        .with("i32", &Value::I32(-70_000))
        .with("f32", &Value::F32(0.1))
        .with("bool", &Value::Bool(true))
        .with("string", &Value::String("gr\u{fc}n\u{1f33f}".to_owned()))
        .with("u64", &Value::U64(1 << 60))
        .with("i64", &Value::I64(-(1 << 60)))
        .with("f64", &Value::F64(1e-300))
        .with("strings", &Value::Array(Array::String(vec![String::new(), "b".to_owned()])))
        .with("bools", &Value::Array(Array::Bool(vec![true, false])))
        .with("i32s", &Value::Array(Array::I32(vec![1, -2, 3])))
        .with("none", &Value::Array(Array::F64(vec![])))
        .with_tensor("a", TensorType::F32, &[2, 3], &[1; 24])
        .with_tensor("b", TensorType::Mxfp4, &[2, 1, 64], &[2; 68])
        .with_tensor("c", TensorType::F16, &[1], &[3; 2])
}

fn one(dims: &[u64], number: u32, offset: Option<u64>, bytes: usize) -> Listed {
    Listed { name: "one".to_owned(), dims: dims.to_vec(), number, offset, bytes: vec![7; bytes] }
}

#[test]
fn what_the_format_allows_is_taken() {
    for version in [2, 3] {
        let file = open(&File { version, ..whole() }.bytes()).unwrap();
        assert_eq!((file.version(), file.metadata().len(), file.num_tensors()), (version, 16, 3));
        let keys: Vec<&str> = file.metadata().map(|(key, _)| key).collect();
        assert_eq!(keys[..3], ["u8", "i8", "u16"]);
        assert_eq!(file.get("f64"), Some(&Value::F64(1e-300)));
        assert_eq!(file.get("string").and_then(Value::as_str), Some("gr\u{fc}n\u{1f33f}"));
        assert_eq!(file.get("strings"), Some(&Value::Array(Array::String(vec![String::new(), "b".to_owned()]))));
        assert_eq!(file.get("bools"), Some(&Value::Array(Array::Bool(vec![true, false]))));
        assert_eq!((file.get("i64").and_then(Value::as_u64), file.get("absent")), (None, None));
        let [a, b, c] = ["a", "b", "c"].map(|name| file.tensor(name).unwrap());
        assert_eq!((a.shape, a.tensor_type, a.bytes), (&[2, 3][..], TensorType::F32, &[1; 24][..]));
        assert_eq!((b.shape, b.tensor_type, b.bytes), (&[2, 1, 64][..], TensorType::Mxfp4, &[2; 68][..]));
        assert_eq!((c.shape, c.bytes), (&[1][..], &[3; 2][..]));
        assert!(matches!(file.tensor("d"), Err(Error::MissingTensor { .. })));
    }
}

#[test]
fn alignment_is_that_of_the_file() {
    let of = |alignment: u32| {
        let file = File { alignment: alignment as usize, ..File::default() }.with("general.alignment", &Value::U32(alignment));
        file.with_tensor("a", TensorType::F16, &[3], &[1; 6]).with_tensor("b", TensorType::F16, &[3], &[2; 6])
    };
    for alignment in [1, 2, 64, 4096] {
        let bytes = of(alignment).bytes();
        let file = open(&bytes).unwrap();
        assert_eq!(file.tensor("b").unwrap().bytes, [2; 6], "{alignment}");
        // The padding after the last tensor may be left out.
        let unpadded = bytes.iter().rposition(|&byte| byte == 2).unwrap() + 1;
        assert_eq!(open(&bytes[..unpadded]).unwrap().tensor("b").unwrap().bytes, [2; 6]);
    }
    let head_only = File { alignment: 1, ..File::default() }.with("general.alignment", &Value::U32(1 << 31));
    assert_eq!(open(&head_only.bytes()).unwrap().num_tensors(), 0);
}

#[test]
fn every_cut_is_noticed() {
    let bytes = whole().bytes();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    // The last tensor's two bytes begin the last line of 32.
    for length in 0..bytes.len() - 30 {
        fs::write(&path, &bytes[..length]).unwrap();
        let found = GgufFile::open(&path);
        let Err(Error::Gguf { problem, .. }) = found else { panic!("{length} bytes were taken: {found:?}") };
        let is_about_length = matches!(
            problem,
            GgufProblem::Magic { .. }
                | GgufProblem::Truncated { .. }
                | GgufProblem::Count { .. }
                | GgufProblem::StringBeyondEnd { .. }
                | GgufProblem::TensorBeyondEnd { .. }
        );
        assert!(is_about_length, "{length} bytes: {problem}");
    }
}

#[test]
fn other_files_and_versions() {
    for bytes in [&b""[..], b"G", b"GGML\0\0\0\0", b"ggjt", b"PK\x03\x04", &[0; 64]] {
        assert_rejects!(bytes, GgufProblem::Magic { .. });
    }
    for version in [0, 1, 4, u32::MAX] {
        assert_rejects!(File { version, ..whole() }.bytes(), GgufProblem::Version { found } if *found == version);
    }
    assert_rejects!(File { version: 3 << 24, ..whole() }.bytes(), GgufProblem::BigEndian);
}

#[test]
fn counts_that_no_file_can_hold() {
    for huge in [u64::MAX, 1 << 63, 1 << 40, 10_000] {
        let file = File { counts: Some([0, huge]), ..whole() };
        assert_rejects!(file.bytes(), GgufProblem::Count { what: "keys", offset: 16, .. });
        let file = File { counts: Some([huge, 16]), ..whole() };
        assert_rejects!(file.bytes(), GgufProblem::Count { what: "tensors", offset: 8, .. });
    }
    // Few enough for the file, but not for what follows the metadata.
    let file = File { counts: Some([9, 1]), ..File::default() }.with("long", &Value::String("x".repeat(400)));
    assert_rejects!(file.bytes(), GgufProblem::Count { what: "tensors", found: 9, .. });
}

#[test]
fn strings_that_go_on_beyond_the_end() {
    for length in [100u64, 1 << 40, u64::MAX, u64::MAX - 7] {
        let claimed = [&length.to_le_bytes()[..], b"text"].concat();
        assert_rejects!(File::default().with_raw("a", 8, &claimed).bytes(), GgufProblem::StringBeyondEnd { found, .. } if *found == length);
        let mut bytes = File::default().with("a", &Value::U8(1)).bytes();
        bytes[24..32].copy_from_slice(&length.to_le_bytes());
        assert_rejects!(bytes, GgufProblem::StringBeyondEnd { what: "key", offset: 24, .. });
    }
}

#[test]
fn strings_that_are_no_text() {
    let bad = [&2u64.to_le_bytes()[..], b"a\xff"].concat();
    assert_rejects!(File::default().with_raw("k", 8, &bad).bytes(), GgufProblem::NotUtf8 { what: "a value", offset: 46 });
    let mut bytes = File::default().with("k", &Value::U8(1)).bytes();
    bytes[32] = 0xc0;
    assert_rejects!(bytes, GgufProblem::NotUtf8 { what: "key", offset: 32 });
}

#[test]
fn names_that_are_none_or_stand_twice() {
    for key in ["", "a\nb", "nul\0", &"k".repeat(65_536)] {
        assert_rejects!(File::default().with(key, &Value::U8(1)).bytes(), GgufProblem::BadName { what: "key", offset: 24, .. });
    }
    for name in ["", "a\tb", &"t".repeat(65)] {
        let file = File::default().with_tensor(name, TensorType::F16, &[1], &[0; 2]);
        assert_rejects!(file.bytes(), GgufProblem::BadName { what: "tensor name", .. });
    }
    let file = File::default().with("a", &Value::U8(1)).with("a", &Value::U16(1));
    assert_rejects!(file.bytes(), GgufProblem::DuplicateKey { key, offset: 38 } if key == "a");
    let file = whole().with_tensor("b", TensorType::F16, &[1], &[0; 2]);
    assert_rejects!(file.bytes(), GgufProblem::DuplicateTensor { tensor, .. } if tensor == "b");
}

#[test]
fn values_of_no_type() {
    for number in [13, 255, u32::MAX] {
        assert_rejects!(File::default().with_raw("a", number, &[0; 16]).bytes(), GgufProblem::UnknownValueType { found, .. } if *found == number);
        let array = [&number.to_le_bytes()[..], &[0; 8]].concat();
        assert_rejects!(File::default().with_raw("a", 9, &array).bytes(), GgufProblem::UnknownValueType { found, .. } if *found == number);
    }
    for byte in [2, 255] {
        assert_rejects!(File::default().with_raw("a", 7, &[byte]).bytes(), GgufProblem::BadBool { found, .. } if *found == byte);
    }
    let array = [&7u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[1, 2]].concat();
    assert_rejects!(File::default().with_raw("a", 9, &array).bytes(), GgufProblem::BadBool { found: 2, .. });
}

#[test]
fn arrays_that_wrap_or_nest() {
    let array = |number: u32, count: u64, rest: usize| [&number.to_le_bytes()[..], &count.to_le_bytes(), &vec![0; rest]].concat();
    for (number, count) in [(0, u64::MAX), (10, 1 << 61), (10, (1 << 61) + 1), (12, u64::MAX / 8 + 1), (8, 1 << 60), (4, 1 << 62), (8, 100)]
    {
        let file = File::default().with_raw("a", 9, &array(number, count, 64));
        assert_rejects!(file.bytes(), GgufProblem::Count { what: "elements of an array", found, .. } if *found == count);
    }
    for inner in [array(9, 1, 12), array(9, 0, 0), array(9, u64::MAX, 0)] {
        assert_rejects!(File::default().with_raw("a", 9, &inner).bytes(), GgufProblem::NestedArray { .. });
    }
}

#[test]
fn alignments_that_are_none() {
    for alignment in [0, 3, 48, u32::MAX] {
        let file = whole().with("general.alignment", &Value::U32(alignment));
        assert_rejects!(file.bytes(), GgufProblem::Alignment { found } if *found == alignment.to_string());
    }
    for value in [Value::U64(32), Value::I32(32), Value::String("32".to_owned())] {
        assert_rejects!(whole().with("general.alignment", &value).bytes(), GgufProblem::Alignment { .. });
    }
    assert_rejects!(whole().with("general.alignment", &Value::U32(1 << 31)).bytes(), GgufProblem::TensorBeyondEnd { .. });
}

#[test]
fn shapes_that_are_none() {
    let file = |dims: &[u64], number| File::default().with_listed(one(dims, number, None, 64)).bytes();
    assert_rejects!(file(&[], 0), GgufProblem::Dimensions { found: 0, .. });
    assert_rejects!(file(&[1; 5], 0), GgufProblem::Dimensions { found: 5, .. });
    for dims in [&[0][..], &[2, 0], &[0, 0, 0, 0]] {
        assert_rejects!(file(dims, 0), GgufProblem::Size { .. });
    }
    for dims in [&[1 << 62, 4][..], &[1 << 32, 1 << 32], &[u64::MAX], &[1 << 63, 2, 1], &[1 << 16, 1 << 16, 1 << 16, 1 << 16]] {
        assert_rejects!(file(dims, 0), GgufProblem::Size { .. });
    }
    assert_rejects!(file(&[48, 2], 39), GgufProblem::PartialBlock { block: 32, found: 48, .. });
    assert_rejects!(file(&[2880, 2], 12), GgufProblem::PartialBlock { block: 256, found: 2880, .. });
    let mut many = File::default().with_listed(one(&[1], 0, None, 64)).bytes();
    many[35..39].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_rejects!(many, GgufProblem::Dimensions { found: u32::MAX, .. });
}

#[test]
fn tensors_of_no_type() {
    // The old number of MXFP4 in Ollama, removed types, types of other models, and none at all.
    for number in [4, 5, 31, 40, 41, 1 << 31, u32::MAX] {
        let file = File::default().with_listed(one(&[32], number, None, 64));
        assert_rejects!(file.bytes(), GgufProblem::UnknownTensorType { tensor, found } if tensor == "one" && *found == number);
    }
}

#[test]
fn tensors_in_the_wrong_place() {
    let file = |offset| File::default().with_tensor("a", TensorType::F16, &[32], &[1; 64]).with_listed(one(&[16], 0, Some(offset), 64));
    assert_eq!(open(&file(64).bytes()).unwrap().num_tensors(), 2);
    for offset in [1, 65, u64::MAX] {
        assert_rejects!(file(offset).bytes(), GgufProblem::Unaligned { alignment: 32, .. });
    }
    for offset in [96, 1 << 40, 1 << 63, u64::MAX - 31] {
        assert_rejects!(file(offset).bytes(), GgufProblem::TensorBeyondEnd { .. });
    }
    for offset in [0, 32] {
        assert_rejects!(file(offset).bytes(), GgufProblem::Overlap { .. });
    }
    // The list may be in another order than the bytes.
    let mut swapped = File::default().with_listed(one(&[16], 0, Some(64), 64)).with_tensor("a", TensorType::F16, &[32], &[1; 64]);
    swapped.tensors[1].offset = Some(0);
    assert_eq!(open(&swapped.bytes()).unwrap().num_tensors(), 2);
}

#[test]
fn bytes_that_belong_to_no_tensor() {
    for tail in [32, 100] {
        assert_rejects!(File { tail: vec![0; tail], ..whole() }.bytes(), GgufProblem::Hole { .. });
        assert_rejects!(File { tail: vec![0; tail], ..File::default() }.bytes(), GgufProblem::Hole { .. });
    }
    let mut hole = File::default().with_listed(one(&[8], 0, Some(0), 96)).with_listed(one(&[8], 0, Some(96), 32));
    hole.tensors[1].name = "two".to_owned();
    assert_rejects!(hole.bytes(), GgufProblem::Hole { gap: 64, .. });
}

#[test]
fn many_small_things_are_judged_in_bounded_time() {
    let mut file = File::default();
    for index in 0..50_000 {
        file = file.with(&format!("key.{index}"), &Value::U8(1)).with_tensor(&format!("{index}"), TensorType::F16, &[1], &[0; 2]);
    }
    assert_eq!(open(&file.bytes()).unwrap().num_tensors(), 50_000);
}

#[test]
fn what_is_no_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(GgufFile::open(&directory.path().join("none.gguf")), Err(Error::Io { action: "read", .. })));
    assert!(matches!(GgufFile::open(directory.path()), Err(Error::NoGguf { .. })));
    whole().write(&directory.path().join("a.gguf"));
    fs::create_dir(directory.path().join("c.gguf")).unwrap();
    assert_eq!(GgufFile::open(directory.path()).unwrap().num_tensors(), 3);
    whole().write(&directory.path().join("b.gguf"));
    assert!(matches!(GgufFile::open(directory.path()), Err(Error::SeveralGguf { .. })));
}

/// Writes the parts of a model with one tensor each.
fn write_parts(directory: &Path, count: u16, tensors: i32) {
    for number in 0..count {
        let file = File::default()
            .with("split.no", &Value::U16(number))
            .with("split.count", &Value::U16(count))
            .with("split.tensors.count", &Value::I32(tensors))
            .with_tensor(&format!("tensor.{number}"), TensorType::F16, &[3], &[u8::try_from(number).unwrap(); 6]);
        file.write(&directory.join(format!("m-{:05}-of-{count:05}.gguf", number + 1)));
    }
}

#[test]
fn any_part_opens_all() {
    let directory = tempfile::tempdir().unwrap();
    write_parts(directory.path(), 3, 3);
    let paths = ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf", ""].map(|name| directory.path().join(name));
    for path in paths {
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(
            (file.num_tensors(), file.files().len(), file.main_file().file_name().unwrap().to_str()),
            (3, 3, Some("m-00001-of-00003.gguf"))
        );
        assert_eq!(file.tensor("tensor.2").unwrap().bytes, [2; 6]);
        assert!(file.file_of("tensor.1").ends_with("m-00002-of-00003.gguf"));
        assert_eq!(file.tensors().count(), 3);
    }
}

#[test]
fn parts_that_do_not_make_a_model() {
    let directory = tempfile::tempdir().unwrap();
    let part = |number: u16| directory.path().join(format!("m-{number:05}-of-00003.gguf"));
    let problem = || match GgufFile::open(&part(1)) {
        Err(Error::Gguf { problem, .. }) => problem,
        other => panic!("expected a refusal, found {other:?}"),
    };
    write_parts(directory.path(), 3, 4);
    assert_eq!(problem(), GgufProblem::TensorCount { expected: 4, found: 3 });
    write_parts(directory.path(), 3, 3);
    fs::copy(part(2), part(3)).unwrap();
    assert_eq!(problem(), GgufProblem::OtherPart { expected: 3, count: 3, found: 2, found_count: 3 });
    whole().write(&part(3));
    assert_eq!(problem(), GgufProblem::OtherPart { expected: 3, count: 3, found: 1, found_count: 1 });
    fs::remove_file(part(3)).unwrap();
    assert_eq!(problem(), GgufProblem::MissingPart { file: "m-00003-of-00003.gguf".to_owned(), count: 3 });
    let renamed = directory.path().join("renamed.gguf");
    fs::rename(part(2), &renamed).unwrap();
    assert!(matches!(GgufFile::open(&renamed), Err(Error::Gguf { problem: GgufProblem::PartName { number: 2, count: 3 }, .. })));
    // A tensor in two parts.
    let twice = |number: u16| {
        let file = File::default().with("split.no", &Value::U16(number)).with("split.count", &Value::U16(2));
        file.with_tensor("a", TensorType::F16, &[1], &[0; 2]).write(&directory.path().join(format!("t-0000{}-of-00002.gguf", number + 1)))
    };
    twice(0);
    assert!(matches!(GgufFile::open(&twice(1)), Err(Error::DuplicateTensor { tensor, .. }) if tensor == "a"));
    // Numbers that lead nowhere.
    let huge = File::default().with("split.no", &Value::U64(u64::MAX)).with("split.count", &Value::U64(u64::MAX)).write(&renamed);
    assert!(matches!(GgufFile::open(&huge), Err(Error::Gguf { problem: GgufProblem::PartName { .. }, .. })));
    let wrong = File::default().with("split.count", &Value::String("3".to_owned())).write(&renamed);
    assert!(matches!(GgufFile::open(&wrong), Err(Error::Gguf { problem: GgufProblem::WrongType { .. }, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// No change of bytes makes the reader panic: the file is refused, or read with tensors of the right length.
    #[test]
    fn changed_files_are_refused_or_read(changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = whole().bytes();
        for (position, value) in changes {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        match open(&bytes) {
            Ok(file) => for view in file.tensors() {
                prop_assert_eq!(view.tensor_type.byte_length(view.shape), Some(view.bytes.len() as u64));
            },
            Err(error) => prop_assert!(matches!(error, Error::Gguf { .. }), "{error:?}"),
        }
    }

    /// What follows a sound beginning can be anything.
    #[test]
    fn noise_is_refused_or_read(noise in proptest::collection::vec(any::<u8>(), 0..300), pairs in 0u64..4, tensors in 0u64..4) {
        let head = [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &pairs.to_le_bytes(), &string("key"), &noise].concat();
        let is_sound = matches!(open(&head), Ok(_) | Err(Error::Gguf { .. }));
        prop_assert!(is_sound);
    }
}
