//! What is written is read back, and what is changed is refused or read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::{SafetensorsFile, SafetensorsWriter, TensorSpec};
use crate::dtype::Dtype;
use crate::error::Error;

fn dtype() -> impl Strategy<Value = Dtype> {
    let whole: Vec<Dtype> = Dtype::all().filter(|dtype| dtype.bits() % 8 == 0).collect();
    proptest::sample::select(whole)
}

/// Tensors of distinct names, with their bytes.
fn tensors() -> impl Strategy<Value = Vec<(TensorSpec, Vec<u8>)>> {
    btree_map("[a-z.\"\\\\\u{e9}]{1,8}", (dtype(), vec(0usize..5, 0..4), any::<u8>()), 0..8).prop_map(|tensors| {
        let fill = |(name, (dtype, shape, seed)): (String, (Dtype, Vec<usize>, u8))| {
            let spec = TensorSpec { name, dtype, shape };
            let bytes = (0..spec.byte_length().unwrap()).map(|index| seed.wrapping_add(index as u8)).collect();
            (spec, bytes)
        };
        tensors.into_iter().map(fill).collect()
    })
}

fn write(path: &Path, tensors: &[(TensorSpec, Vec<u8>)], metadata: &BTreeMap<String, String>, chunk: usize) {
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = SafetensorsWriter::create(path, &specs, metadata).unwrap();
    // Any order will do.
    for (spec, bytes) in tensors.iter().rev() {
        for piece in bytes.chunks(chunk) {
            writer.write_chunk(&spec.name, piece).unwrap();
        }
    }
    writer.finish().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tensors_come_back(tensors in tensors(), metadata in btree_map("[a-z]{1,4}", ".{0,6}", 0..3), chunk in 1usize..9) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.safetensors");
        write(&path, &tensors, &metadata, chunk);
        let file = SafetensorsFile::open(&path).unwrap();
        prop_assert_eq!(file.tensors().len(), tensors.len());
        let start = fs::metadata(&path).unwrap().len() - file.data_bytes();
        prop_assert_eq!(start % 8, 0);
        let mut offset = 0;
        for view in file.tensors() {
            let (spec, bytes) = tensors.iter().find(|(spec, _)| spec.name == view.name).unwrap();
            prop_assert_eq!((view.dtype, view.shape, view.bytes), (spec.dtype, &spec.shape[..], &bytes[..]));
            prop_assert_eq!(offset % view.dtype.size(), 0, "{} is not aligned", view.name);
            offset += view.bytes.len();
        }
        let mut expected = metadata;
        expected.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
        prop_assert_eq!(file.metadata(), &expected);
        prop_assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    /// No change of a byte and no cut makes the reader panic; a cut file is never taken.
    #[test]
    fn changed_files_are_refused_or_read(tensors in tensors(), position in any::<proptest::sample::Index>(), value in any::<u8>()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.safetensors");
        write(&path, &tensors, &BTreeMap::new(), 8);
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        changed[position.index(whole.len())] = value;
        fs::write(&path, &changed).unwrap();
        if let Ok(file) = SafetensorsFile::open(&path) {
            for view in file.tensors() {
                prop_assert_eq!(view.dtype.byte_length(view.shape), Some(view.bytes.len() as u64));
            }
        }
        fs::write(&path, &whole[..position.index(whole.len())]).unwrap();
        let refused = matches!(SafetensorsFile::open(&path), Err(Error::Safetensors { .. }));
        prop_assert!(refused);
    }
}

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

#[test]
fn a_file_appears_only_when_every_tensor_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    let specs = [spec("a", Dtype::U8, &[2]), spec("b", Dtype::F32, &[1])];
    let mut writer = SafetensorsWriter::create(&path, &specs, &BTreeMap::new()).unwrap();
    writer.write("b", &[1, 2, 3, 4]).unwrap();
    writer.write_chunk("a", &[1]).unwrap();
    assert!(!path.exists());
    let error = writer.finish().unwrap_err();
    assert!(matches!(&error, Error::WrittenLength { tensor, expected: 2, found: 1, .. } if tensor == "a"), "{error:?}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_file_keeps_its_old_content_until_the_new_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    fs::write(&path, b"old").unwrap();
    let mut writer = SafetensorsWriter::create(&path, &[spec("a", Dtype::U8, &[1])], &BTreeMap::new()).unwrap();
    writer.write("a", &[7]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    writer.finish().unwrap();
    assert_eq!(SafetensorsFile::open(&path).unwrap().tensor("a").unwrap().bytes, [7]);
}

#[test]
fn writes_of_another_length_or_name_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    let mut writer = SafetensorsWriter::create(&path, &[spec("a", Dtype::U8, &[2])], &BTreeMap::new()).unwrap();
    assert!(matches!(writer.write("b", &[]), Err(Error::UnknownTensor { .. })));
    assert!(matches!(writer.write("a", &[1]), Err(Error::WrittenLength { expected: 2, found: 1, .. })));
    assert!(matches!(writer.write_chunk("a", &[1, 2, 3]), Err(Error::WrittenLength { expected: 2, found: 3, .. })));
}

#[test]
fn specs_without_a_file_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let create = |specs: &[TensorSpec]| SafetensorsWriter::create(&directory.path().join("a"), specs, &BTreeMap::new()).err().unwrap();
    let a = spec("a", Dtype::U8, &[1]);
    assert!(matches!(create(&[a.clone(), a]), Error::DuplicateTensor { .. }));
    assert!(matches!(create(&[spec("__metadata__", Dtype::U8, &[1])]), Error::DuplicateTensor { .. }));
    assert!(matches!(create(&[spec("a", Dtype::U8, &[usize::MAX, 2])]), Error::TensorTooLarge { .. }));
    let large = spec("a", Dtype::U8, &[1 << 62]);
    let [mut second, mut third] = [large.clone(), large.clone()];
    second.name = "b".to_owned();
    third.name = "c".to_owned();
    assert!(matches!(create(&[large, second, third]), Error::TensorTooLarge { .. }));
}
