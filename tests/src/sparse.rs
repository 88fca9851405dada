//! Models of full size that take no room: a header that is right, and a hole in the place of the weights.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use ft_formats::checkpoint::{Config, ExpertStorage, tensor_specs};
use serde_json::{Map, Value, json};

/// Writes a checkpoint of `config` into `directory`, with experts as `storage`, whose weights are a hole in the file and read as 0.
///
/// # Panics
/// When it cannot be written.
pub fn sparse_model(directory: &Path, config: &Config, storage: ExpertStorage) -> PathBuf {
    fs::create_dir_all(directory).expect("a folder can be made");
    let config = Config { has_mxfp4_experts: storage == ExpertStorage::Mxfp4, ..config.clone() };
    fs::write(directory.join("config.json"), config.to_json().to_string()).expect("a file can be written");
    let (mut header, mut end) = (Map::new(), 0);
    for spec in tensor_specs(&config, storage) {
        let begin = end;
        end += spec.byte_length().expect("a size");
        header.insert(spec.name, json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [begin, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(directory.join("model.safetensors")).expect("a file can be made");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("a file can be written");
    file.write_all(header.as_bytes()).expect("a file can be written");
    file.set_len(8 + header.len() as u64 + end).expect("a file can have a hole");
    directory.to_owned()
}
