use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Array, ArrayRef, Int64Array, ListArray, RecordBatch, StringArray, StringDictionaryBuilder, StructArray};
use arrow::datatypes::{DataType, Field, Int32Type};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

use super::*;

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn rows_of(path: &Path, columns: &Columns) -> Result<Vec<(usize, Value)>, DataError> {
    let mut rows = Vec::new();
    for_each_row(path, columns, |row| {
        let (place, value) = row.parse()?;
        rows.push((place.line, value));
        Ok(())
    })?;
    Ok(rows)
}

fn rows(name: &str, content: &[u8]) -> Result<Vec<(usize, Value)>, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    rows_of(&path, &Columns::default())
}

fn lines(content: &[u8]) -> Result<Vec<usize>, DataError> {
    Ok(rows("d.jsonl", content)?.into_iter().map(|(line, _)| line).collect())
}

/// Two rows: nested messages with a key that is null in some, a text that repeats, and a column that nobody asks for.
fn table() -> RecordBatch {
    let roles: ArrayRef = Arc::new(StringArray::from(vec!["user", "assistant", "user"]));
    let contents: ArrayRef = Arc::new(StringArray::from(vec![Some("Q"), Some("A"), None]));
    let names: ArrayRef = Arc::new(StringArray::from(vec![None, None, Some("n")]));
    let text = |name| Arc::new(Field::new(name, DataType::Utf8, true));
    let messages = StructArray::from(vec![(text("role"), roles), (text("content"), contents), (text("name"), names)]);
    let item = Arc::new(Field::new("item", messages.data_type().clone(), true));
    let offsets = arrow::buffer::OffsetBuffer::new(vec![0, 2, 3].into());
    let messages: ArrayRef = Arc::new(ListArray::new(item, offsets, Arc::new(messages), None));
    let mut reasoning = StringDictionaryBuilder::<Int32Type>::new();
    reasoning.append_value("high");
    reasoning.append_value("high");
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
    RecordBatch::try_from_iter([("messages", messages), ("reasoning", Arc::new(reasoning.finish()) as ArrayRef), ("id", ids)]).unwrap()
}

fn parquet_of(batch: &RecordBatch, compression: Compression) -> Vec<u8> {
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn arrow_file_of(batch: &RecordBatch, compression: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
    let mut writer = FileWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn arrow_stream_of(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd_of(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 3).unwrap()
}

#[test]
fn folders_and_patterns_give_files_in_order() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("deep")).unwrap();
    let all =
        ["b.jsonl", "a.jsonl", "notes.md", "deep/c.ndjson", "d.jsonl.gz", "e.parquet", "state.json", "cache-1.arrow", ".f.jsonl", "g.gz"];
    for name in all {
        fs::write(folder.path().join(name), "{}").unwrap();
    }
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    assert_eq!(names(&files(&at("")).unwrap()), ["a.jsonl", "b.jsonl", "d.jsonl.gz", "c.ndjson", "e.parquet"]);
    assert_eq!(names(&files(&at("*.jsonl")).unwrap()), ["a.jsonl", "b.jsonl"]);
    assert_eq!(names(&files(&at("b.jsonl")).unwrap()), ["b.jsonl"]);
    assert!(matches!(files(&at("none.jsonl")), Err(DataError::MissingSource { .. })));
    assert!(matches!(files(&at("*.txt")), Err(DataError::EmptySource { .. })));
    assert!(matches!(files(&at("[")), Err(DataError::Pattern { .. })));
}

#[test]
fn blank_lines_and_a_byte_order_mark_are_passed_over() {
    assert_eq!(lines(b"\xef\xbb\xbf{}\r\n\n  \n{}").unwrap(), [1, 4]);
}

#[test]
fn a_broken_line_is_named_with_its_column() {
    let error = lines(b"{}\n{\"a\": tru}\n").unwrap_err();
    assert!(error.to_string().ends_with("d.jsonl:2:10: broken JSON: expected ident"), "{error}");
    for broken in [&b"{"[..], b"{}{}", b"\xff", b"{\"a\": \"\\ud800\"}", b"{\"a\": \"\xc3\x28\"}"] {
        assert!(matches!(lines(broken), Err(DataError::Json { .. })), "{broken:?}");
    }
}

#[test]
fn an_array_gives_its_elements() {
    assert_eq!(rows("d.json", b" [{\"a\": 1},\n {\"a\": 2}]\n").unwrap(), [(1, json!({"a": 1})), (2, json!({"a": 2}))]);
    let error = rows("d.json", b"[{\"a\": 1},\n {\"a\": 2]").unwrap_err();
    assert!(error.to_string().contains("d.json:2:"), "{error}");
    assert!(matches!(rows("d.json", b"[{}] {}"), Err(DataError::Json { .. })));
    let path = Path::new("refused.json");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(path), "[{}, {}]").unwrap();
    let stop = for_each_row(&folder.path().join(path), &Columns::default(), |_| Err(DataError::MissingSource { origin: "x".to_owned() }));
    assert!(matches!(stop, Err(DataError::MissingSource { .. })));
}

#[test]
fn packed_lines_are_lines() {
    let expected = [(1, json!({"a": 1})), (2, json!({"a": 2}))];
    let (first, second) = (b"{\"a\": 1}\n", b"{\"a\": 2}\n");
    assert_eq!(rows("d.jsonl.gz", &gzip(b"{\"a\": 1}\n{\"a\": 2}\n")).unwrap(), expected);
    assert_eq!(rows("d.jsonl.gz", &[gzip(first), gzip(second)].concat()).unwrap(), expected);
    assert_eq!(rows("d.jsonl.zst", &[zstd_of(first), zstd_of(second)].concat()).unwrap(), expected);
    assert_eq!(rows("d.json.gz", &gzip(b"[{\"a\": 1}, {\"a\": 2}]")).unwrap(), expected);
}

#[test]
fn cut_and_broken_packing_is_named() {
    let text = (0..4000).map(|line| format!("{{\"a\": {}}}\n", line * 7919 % 10007)).collect::<String>();
    for (name, packed, format) in [("d.jsonl.gz", gzip(text.as_bytes()), "gzip"), ("d.jsonl.zst", zstd_of(text.as_bytes()), "zstd")] {
        let mut flipped = packed.clone();
        flipped[packed.len() / 2] ^= 0xff;
        for broken in [&packed[..packed.len() - 3], &packed[..packed.len() / 2], &flipped[..]] {
            match rows(name, broken) {
                Err(DataError::Compressed { format: named, .. }) => assert_eq!(named, format),
                // A flipped byte may still unpack, to something that is no JSON.
                Err(DataError::Json { .. }) => assert_eq!(broken.len(), packed.len()),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

#[test]
fn every_table_gives_the_same_rows() {
    let expected = [
        (1, json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "reasoning": "high"})),
        (2, json!({"messages": [{"role": "user", "name": "n"}], "reasoning": "high"})),
    ];
    let batch = table();
    let zstd_level = Compression::ZSTD(ZstdLevel::try_new(3).unwrap());
    let parquet = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::LZ4_RAW, zstd_level, Compression::GZIP(Default::default())];
    for compression in parquet {
        assert_eq!(rows("d.parquet", &parquet_of(&batch, compression)).unwrap(), expected, "{compression}");
    }
    for compression in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
        assert_eq!(rows("d.arrow", &arrow_file_of(&batch, compression)).unwrap(), expected, "{compression:?}");
    }
    assert_eq!(rows("d.arrow", &arrow_stream_of(&batch)).unwrap(), expected);
}

#[test]
fn columns_of_a_table_are_named_in_the_recipe() {
    let text = |texts: [&str; 1]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("question", text(["Q"])), ("answer", text(["A"])), ("other", text(["O"]))]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.parquet");
    fs::write(&path, parquet_of(&batch, Compression::SNAPPY)).unwrap();
    let error = rows_of(&path, &Columns::default()).unwrap_err().to_string();
    assert!(error.ends_with("no known conversation shape has the keys `question`, `answer`, `other`"), "{error}");
    let mut columns = Columns { prompt: Some("question".to_owned()), completion: Some("answer".to_owned()), ..Columns::default() };
    assert_eq!(rows_of(&path, &columns).unwrap(), [(1, json!({"question": "Q", "answer": "A"}))]);
    columns.system = Some("sytem".to_owned());
    let error = rows_of(&path, &columns).unwrap_err().to_string();
    assert!(error.ends_with("no column `sytem`, which `dataset.columns.system` names"), "{error}");
}

#[test]
fn cells_without_a_json_value_are_refused_by_name() {
    let numbers: ArrayRef = Arc::new(arrow::array::Float64Array::from(vec![f64::NAN]));
    let bytes: ArrayRef = Arc::new(arrow::array::BinaryArray::from(vec![&b"x"[..]]));
    for (column, expected) in [(numbers, "column `text` holds a number that is not finite"), (bytes, "column `text` has type Binary")] {
        let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
        let error = rows("d.parquet", &parquet_of(&batch, Compression::SNAPPY)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_is_not_what_its_name_says_is_refused() {
    for (name, expected) in [("d.parquet", "no Parquet file"), ("d.feather", "no Arrow IPC file"), ("d.jsonl.gz", "no gzip file")] {
        let error = rows(name, b"{}\n").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(matches!(rows("d.csv", b"a,b\n"), Err(DataError::UnsupportedFormat { .. })));
    assert!(matches!(rows("d.parquet", b"version https://git-lfs.github.com/spec/v1\n"), Err(DataError::LfsPointer { .. })));
    // What it holds counts where the name promises nothing.
    assert_eq!(rows("d.jsonl", &parquet_of(&table(), Compression::SNAPPY)).unwrap().len(), 2);
}

/// Cuts and flips of every kind of file end in an error or in rows, soon, and never in a panic.
#[test]
fn damaged_tables_are_errors() {
    let batch = table();
    let zstd_level = Compression::ZSTD(ZstdLevel::try_new(3).unwrap());
    let files = [
        ("d.parquet", parquet_of(&batch, Compression::SNAPPY)),
        ("d.parquet", parquet_of(&batch, zstd_level)),
        ("d.arrow", arrow_file_of(&batch, None)),
        ("d.arrow", arrow_file_of(&batch, Some(CompressionType::ZSTD))),
        ("d.arrow", arrow_file_of(&batch, Some(CompressionType::LZ4_FRAME))),
        ("d.arrow", arrow_stream_of(&batch)),
    ];
    for (name, whole) in files {
        assert_eq!(rows(name, &whole).unwrap().len(), 2);
        let cuts = (0..whole.len()).step_by(61).map(|length| whole[..length].to_vec());
        let flipped = (0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= [0xff, 0x80, 0x01][at % 3];
            bytes
        });
        for damaged in cuts.chain(flipped) {
            let started = Instant::now();
            let read = rows(name, &damaged);
            assert!(started.elapsed().as_secs() < 2, "{name}: {read:?}");
        }
    }
}
