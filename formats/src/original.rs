//! A model in OpenAI's own layout, the one that their reference code reads.

use std::path::Path;

use crate::checkpoint::{Checkpoint, CheckpointWriter, SealedCheckpoint};
use crate::error::Result;
use crate::stream::{Matrices, Part, carry_over, in_background, parts};

/// Writes `source`, whose experts are in MXFP4, to the directory `target`: its bytes under other names, queries, keys and values in one
/// tensor. `progress` sees the bytes that are done, and all.
///
/// # Errors
/// Those of [`CheckpointWriter::original`]; [`crate::Error::Packed`] or [`crate::Error::NotFinite`] for weights that are no numbers.
pub fn write_original(
    source: &Checkpoint,
    target: &Path,
    max_shard_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SealedCheckpoint> {
    let writer = CheckpointWriter::original(target, source, max_shard_bytes)?;
    let (total, mut done) = (source.total_bytes(), 0);
    let mut advance = |bytes: usize| {
        done += bytes as u64;
        progress(done, total);
    };
    let (writer, ()) = in_background(writer, source, |output| {
        for part in parts(source) {
            match part {
                Part::Experts { layer, projection } => Matrices::of(source, None, layer, projection).carry_over(output, &mut advance)?,
                Part::Tensor { name } => carry_over(source, source.tensor(name)?, output, &mut advance)?,
            }
        }
        Ok(())
    })?;
    writer.seal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Config, ExpertStorage, write_random_model};
    use crate::comparison::compare;
    use crate::dtype::Dtype;
    use crate::error::Error;

    fn model(path: &Path, storage: ExpertStorage) -> Checkpoint {
        let config = Config { hidden_size: 96, num_local_experts: 5, vocab_size: 517, ..Config::nano() };
        write_random_model(path, &config, storage, 7, &mut |_, _| {}).unwrap();
        Checkpoint::open(path).unwrap()
    }

    #[test]
    fn the_model_is_the_same_and_its_tensors_are_where_openai_has_them() {
        let root = tempfile::tempdir().unwrap();
        let source = model(&root.path().join("source"), ExpertStorage::Mxfp4);
        for (name, shard) in [("whole", u64::MAX), ("shards", 100_000)] {
            let path = root.path().join(name);
            let mut last = (0, 0);
            let sealed = write_original(&source, &path, shard, &mut |done, total| last = (done, total)).unwrap();
            assert!(!path.exists());
            assert_eq!(last.0, last.1);
            sealed.publish().unwrap();
            let found = Checkpoint::open(&path).unwrap();
            assert!(compare(&found, &source, &mut |_, _| {}).unwrap().iter().all(|tensor| tensor.deviation.is_none()));
            for spec in source.specs() {
                assert_eq!(found.tensor(&spec.name).unwrap(), source.tensor(&spec.name).unwrap());
            }
            assert!(!path.join("generation_config.json").exists());
        }
        let file = crate::safetensors::SafetensorsFile::open(&root.path().join("whole/model.safetensors")).unwrap();
        let config = source.config();
        let rows = config.query_size() + 2 * config.key_value_size();
        assert_eq!(file.tensor("block.1.attn.qkv.weight").unwrap().shape, [rows, 96]);
        let values = source.tensor("model.layers.1.self_attn.v_proj.bias").unwrap();
        assert!(file.tensor("block.1.attn.qkv.bias").unwrap().bytes.ends_with(&values.bytes));
    }

    #[test]
    fn what_openai_has_no_words_for_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let plain = model(&root.path().join("plain"), ExpertStorage::Float(Dtype::Bf16));
        let target = root.path().join("target");
        let error = write_original(&plain, &target, u64::MAX, &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, Error::NotPacked { .. }), "{error}");
        assert!(!target.exists());
    }
}
