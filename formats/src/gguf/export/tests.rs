//! Small models in every type, and those that must be refused.

use std::collections::BTreeMap;
use std::fs;

use ft_quant::mxfp4::{ScaleRule, pack_transposed, unpack};
use half::{bf16, f16};
use tempfile::TempDir;

use super::*;
use crate::checkpoint::{Config, ExpertStorage, Projection, write_random_model};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::gguf::{ExpertRows, GgufTarget, Held, Mix};
use crate::safetensors::{SafetensorsFile, SafetensorsWriter, TensorSpec};

/// A folder for models and files.
struct Folder {
    root: TempDir,
}

/// The tensors of a file by name: type, dimensions as the file has them, bytes.
type Tensors = BTreeMap<String, (u32, Vec<u64>, Vec<u8>)>;

impl Folder {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A model whose sizes have nothing but a factor of 32 in common, and columns that make no whole tiles.
    fn model(&self, name: &str, storage: ExpertStorage, settings: &[(&str, &str)]) -> Checkpoint {
        let mut config = Config::nano();
        for (key, value) in [
            ("hidden_size", "96"),
            ("intermediate_size", "160"),
            ("vocab_size", "1003"),
            ("num_hidden_layers", "2"),
            ("num_local_experts", "5"),
            ("num_attention_heads", "4"),
            ("head_dim", "32"),
        ]
        .into_iter()
        .chain(settings.iter().copied())
        {
            config.set(key, value).unwrap();
        }
        config.has_mxfp4_experts = storage == ExpertStorage::Mxfp4;
        let path = write_random_model(&self.path(name), &config, storage, 3, &mut |_, _| ()).unwrap();
        // Nothing here asks for text, and the tokenizer takes longer to read than all else.
        fs::remove_file(path.join("tokenizer.json")).unwrap();
        Checkpoint::open(&path).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(self.root.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn run(&self, source: &Checkpoint, to: GgufTarget, split_bytes: Option<u64>) -> Result<ExportedGguf> {
        let types = |tensor: &GgufTensor| to.tensor_type(source, tensor);
        export(source, &self.path("out.gguf"), &types, split_bytes).run(&mut |_, _| ())
    }

    /// The tensors of `source` exported to `to`, in one file.
    fn exported(&self, source: &Checkpoint, to: GgufTarget) -> Tensors {
        let files = self.run(source, to, None).unwrap().publish().unwrap();
        let tensors = read(&files[0]);
        fs::remove_file(&files[0]).unwrap();
        tensors
    }
}

fn export<'a>(source: &'a Checkpoint, target: &'a Path, types: ChooseType<'a>, split_bytes: Option<u64>) -> GgufExport<'a> {
    let packing = ScaleRule::Even.into();
    GgufExport { source, target, types, file_type: FileType::F16, packing, split_bytes, name: None, template: None }
}

/// Reads a file by the specification, with no check at all.
fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let mut at = 8;
    let count = take(&bytes, &mut at, 8);
    for _ in 0..take(&bytes, &mut at, 8) {
        text(&bytes, &mut at);
        let value_type = take(&bytes, &mut at, 4);
        skip(&bytes, &mut at, value_type);
    }
    let mut found = Vec::new();
    for _ in 0..count {
        let name = text(&bytes, &mut at);
        let dims = take(&bytes, &mut at, 4);
        let dims: Vec<u64> = (0..dims).map(|_| take(&bytes, &mut at, 8)).collect();
        let tensor_type = take(&bytes, &mut at, 4) as u32;
        found.push((name, tensor_type, dims, take(&bytes, &mut at, 8) as usize));
    }
    let start = at.next_multiple_of(32);
    let tensor = |(name, number, dims, offset): (String, u32, Vec<u64>, usize)| {
        let tensor_type = TensorType::from_number(number).unwrap();
        let shape: Vec<usize> = dims.iter().rev().map(|&size| size as usize).collect();
        let length = tensor_type.byte_length(&shape).unwrap() as usize;
        (name, (number, dims, bytes[start + offset..][..length].to_vec()))
    };
    found.into_iter().map(tensor).collect()
}

fn take(bytes: &[u8], at: &mut usize, count: usize) -> u64 {
    let mut word = [0; 8];
    word[..count].copy_from_slice(&bytes[*at..*at + count]);
    *at += count;
    u64::from_le_bytes(word)
}

fn text(bytes: &[u8], at: &mut usize) -> String {
    let length = take(bytes, at, 8) as usize;
    *at += length;
    String::from_utf8(bytes[*at - length..*at].to_vec()).unwrap()
}

fn skip(bytes: &[u8], at: &mut usize, value_type: u64) {
    match value_type {
        8 => drop(text(bytes, at)),
        9 => {
            let value_type = take(bytes, at, 4);
            (0..take(bytes, at, 8)).for_each(|_| skip(bytes, at, value_type));
        }
        0 | 1 | 7 => *at += 1,
        2 | 3 => *at += 2,
        4..=6 => *at += 4,
        _ => *at += 8,
    }
}

fn widened(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|half| f16::from_le_bytes(*half).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|half| bf16::from_le_bytes(*half).to_f32()).collect(),
    }
}

/// What a tensor of GGUF holds, element by element from the definition of both layouts.
fn obvious(source: &Checkpoint, tensor: &GgufTensor) -> Vec<f32> {
    let of_part = |rows: ExpertRows, output: usize| match rows {
        ExpertRows::All => output,
        ExpertRows::Gate => 2 * output,
        ExpertRows::Up => 2 * output + 1,
    };
    match &tensor.held {
        Held::Whole(name) => {
            let view = source.tensor(name).unwrap();
            widened(view.dtype, &view.bytes)
        }
        Held::ExpertBiases { layer, projection, rows } => {
            let view = source.tensor(&format!("{}_bias", projection.tensor_name(*layer))).unwrap();
            let (values, width) = (widened(view.dtype, &view.bytes), view.shape[1]);
            let [experts, outputs] = tensor.shape[..] else { panic!() };
            (0..experts * outputs).map(|index| values[index / outputs * width + of_part(*rows, index % outputs)]).collect()
        }
        Held::Experts { layer, projection, rows } => {
            let [experts, outputs, inputs] = tensor.shape[..] else { panic!() };
            let width = projection.dims(source.config())[1];
            let values: Vec<f32> = match source.expert_storage() {
                ExpertStorage::Mxfp4 => (0..experts)
                    .flat_map(|expert| source.unpack_expert(*layer, *projection, expert).unwrap())
                    .map(|value| value.to_f32())
                    .collect(),
                ExpertStorage::Float(dtype) => widened(dtype, &source.tensor(&projection.tensor_name(*layer)).unwrap().bytes),
            };
            let mut found = Vec::new();
            for expert in 0..experts {
                for output in 0..outputs {
                    found.extend((0..inputs).map(|input| values[(expert * inputs + input) * width + of_part(*rows, output)]));
                }
            }
            found
        }
    }
}

/// `values` in a type, one element or block at a time.
fn stored(values: &[f32], tensor_type: TensorType) -> Vec<u8> {
    match tensor_type {
        TensorType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        TensorType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        TensorType::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        _ => {
            let codec = tensor_type.block_type().unwrap();
            let mut blocks = vec![0; values.len() / codec.block_elements() * codec.block_bytes()];
            codec.quantize(values, &mut blocks).unwrap();
            blocks
        }
    }
}

const STORAGES: [ExpertStorage; 4] =
    [ExpertStorage::Mxfp4, ExpertStorage::Float(Dtype::Bf16), ExpertStorage::Float(Dtype::F16), ExpertStorage::Float(Dtype::F32)];

#[test]
fn every_value_is_where_it_belongs_in_every_type() {
    let folder = Folder::new();
    for storage in STORAGES {
        let source = folder.model(&format!("{storage:?}"), storage, &[]);
        for to in GgufTarget::all() {
            let tensors = folder.exported(&source, to);
            assert_eq!(tensors.len(), gguf_tensors(source.config()).len());
            for tensor in gguf_tensors(source.config()) {
                let expected = if tensor.is_always_f32() { TensorType::F32 } else { to.tensor_type(&source, &tensor).unwrap() };
                let (found, dims, bytes) = &tensors[&tensor.name];
                let shape: Vec<u64> = tensor.shape.iter().rev().map(|&size| size as u64).collect();
                assert_eq!((*found, dims), (expected.number(), &shape), "{}", tensor.name);
                let values = obvious(&source, &tensor);
                if expected == TensorType::Mxfp4 {
                    // Packing is compared below; what was packed before is exact.
                    let mut back = vec![0.0; values.len()];
                    ft_quant::ggml::Type::Mxfp4.dequantize(bytes, &mut back).unwrap();
                    let is_exact = storage == ExpertStorage::Mxfp4;
                    let largest = |values: &[f32]| values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                    let differences: Vec<f32> = values.iter().zip(&back).map(|(value, back)| value - back).collect();
                    assert!(largest(&differences) <= if is_exact { 0.0 } else { largest(&values) / 4.0 }, "{}", tensor.name);
                } else {
                    assert!(*bytes == stored(&values, expected), "{} of {storage:?} as {}", tensor.name, to.name());
                }
            }
        }
    }
    assert_eq!(folder.names().len(), STORAGES.len());
}

/// Byte for byte, under scales that unpacking would not bring back: small codes, zeros, negative zeros.
#[test]
fn packed_experts_keep_their_bytes() {
    let folder = Folder::new();
    let source = folder.model("packed", ExpertStorage::Mxfp4, &[]);
    let path = source.path().to_owned();
    drop(source);
    change_tensors(&path, |tensors| {
        for (spec, bytes) in tensors {
            if spec.name.ends_with("_blocks") {
                bytes.chunks_exact_mut(48).for_each(|bytes| bytes[..16].iter_mut().for_each(|byte| *byte &= 0x9b));
            } else if spec.name.ends_with("_scales") {
                bytes.chunks_exact_mut(101).for_each(|bytes| (bytes[7], bytes[9], bytes[50]) = (0, 1, 254));
            }
        }
    });
    let source = Checkpoint::open(&path).unwrap();
    let tensors = folder.exported(&source, GgufTarget::Native);
    let name = Projection::GateUp.tensor_name(1);
    let (blocks, scales) = (source.tensor(&format!("{name}_blocks")).unwrap(), source.tensor(&format!("{name}_scales")).unwrap());
    let (row_blocks, outputs) = (96 / 32, 2 * 160);
    for (index, name) in ["blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"].into_iter().enumerate() {
        let mut expected = Vec::new();
        for row in (0..5 * outputs).skip(index).step_by(2) {
            for block in row * row_blocks..(row + 1) * row_blocks {
                let element = |index: usize| blocks.bytes[16 * block + index / 2] >> (4 * (index % 2)) & 0xf;
                expected.push(scales.bytes[block]);
                expected.extend((0..16).map(|byte| element(byte) | element(byte + 16) << 4));
            }
        }
        assert!(tensors[name].2 == expected, "{name}");
    }
    // Such a scale exceeds every float here.
    let error = folder.run(&source, GgufTarget::Mix(Mix::Bf16), None).unwrap_err();
    assert!(matches!(error, Error::Packed { expert: 0, source: ft_quant::Error::Overflow { scale: 254, .. }, .. }), "{error:?}");
}

#[test]
fn plain_experts_are_packed_as_requantizing_packs_them() {
    let folder = Folder::new();
    let source = folder.model("plain", ExpertStorage::Float(Dtype::Bf16), &[]);
    let tensors = folder.exported(&source, GgufTarget::Mix(Mix::Mxfp4));
    let (inputs, outputs) = (160, 96);
    let view = source.tensor(&Projection::Down.tensor_name(0)).unwrap();
    let mut expected = Vec::new();
    for expert in view.bytes.chunks_exact(inputs * outputs * 2) {
        let values: Vec<bf16> = expert.as_chunks().0.iter().map(|half| bf16::from_le_bytes(*half)).collect();
        let (mut blocks, mut scales) = (vec![0; inputs * outputs / 2], vec![0; inputs * outputs / 32]);
        pack_transposed(&values, outputs, ScaleRule::Even.into(), None, &mut blocks, &mut scales).unwrap();
        let mut unpacked = vec![bf16::ZERO; inputs * outputs];
        unpack(&blocks, &scales, &mut unpacked).unwrap();
        expected.extend(unpacked.into_iter().map(|value| value.to_f32()));
    }
    let mut found = vec![0.0; expected.len()];
    ft_quant::ggml::Type::Mxfp4.dequantize(&tensors["blk.0.ffn_down_exps.weight"].2, &mut found).unwrap();
    assert!(found == expected);
    assert_eq!(tensors["token_embd.weight"].0, TensorType::Q8_0.number());
}

#[test]
fn parts_of_a_model_are_the_model() {
    let folder = Folder::new();
    let source = folder.model("model", ExpertStorage::Mxfp4, &[]);
    let whole = folder.exported(&source, GgufTarget::Native);
    let exported = folder.run(&source, GgufTarget::Native, Some(100_000)).unwrap();
    assert_eq!(exported.report().num_files, 7);
    assert_eq!(exported.path().file_name().unwrap(), "out-00001-of-00007.gguf");
    // The whole set can be looked at before it appears.
    assert_eq!(fs::read_dir(exported.path().parent().unwrap()).unwrap().count(), 7);
    assert_eq!(folder.names(), [".out.gguf.partial", "model"]);
    let report = exported.report().clone();
    let files = exported.publish().unwrap();
    assert_eq!(report.target_bytes, files.iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>());
    let joined: Tensors = files.iter().flat_map(|path| read(path)).collect();
    assert!(joined == whole);
}

#[test]
fn rows_that_are_no_blocks_fall_back_or_are_refused() {
    let folder = Folder::new();
    let source = folder.model("odd", ExpertStorage::Float(Dtype::Bf16), &[("intermediate_size", "80")]);
    let tensors = folder.exported(&source, GgufTarget::Mix(Mix::Q8_0));
    assert_eq!(tensors["blk.0.ffn_gate_exps.weight"].0, TensorType::Q8_0.number());
    assert_eq!(tensors["blk.0.ffn_down_exps.weight"].0, TensorType::F16.number());
    let tensors = folder.exported(&source, GgufTarget::Mix(Mix::Mxfp4));
    assert_eq!(tensors["blk.0.ffn_gate_exps.weight"].0, TensorType::Mxfp4.number());
    assert_eq!(tensors["blk.0.ffn_down_exps.weight"].0, TensorType::F16.number());
    let wanted = |_: &GgufTensor| Ok(TensorType::Q4K);
    let error = export(&source, &folder.path("out.gguf"), &wanted, None).run(&mut |_, _| ()).unwrap_err();
    let expected = "tensor `token_embd.weight` of shape [1003, 96] cannot be Q4_K in GGUF: a block holds 256 elements, which do not divide a row of 96";
    assert_eq!(error.to_string(), expected);
    assert_eq!(folder.names(), ["odd"]);
}

#[test]
fn progress_ends_at_the_whole_and_what_is_not_published_leaves_nothing() {
    let folder = Folder::new();
    for storage in [ExpertStorage::Mxfp4, ExpertStorage::Float(Dtype::Bf16)] {
        let source = folder.model("model", storage, &[]);
        let mut steps = Vec::new();
        let types = |tensor: &GgufTensor| GgufTarget::Mix(Mix::Q8_0).tensor_type(&source, tensor);
        let target = folder.path("out.gguf");
        let exported = export(&source, &target, &types, None).run(&mut |done, total| steps.push((done, total))).unwrap();
        assert!(steps.is_sorted() && steps.len() > 20);
        assert_eq!(steps.last(), Some(&(source.total_bytes(), source.total_bytes())));
        drop(exported);
        assert_eq!(folder.names(), ["model"]);
        fs::remove_dir_all(source.path()).unwrap();
    }
}

/// Rewrites the single file of a model.
fn change_tensors(model: &Path, change: impl FnOnce(&mut Vec<(TensorSpec, Vec<u8>)>)) {
    let path = model.join("model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() };
    let mut tensors = file.tensors().map(|view| (spec(view.name, view.dtype, view.shape), view.bytes.to_vec())).collect();
    drop(file);
    change(&mut tensors);
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = SafetensorsWriter::create(&path, &specs, &BTreeMap::new()).unwrap();
    tensors.iter().for_each(|(spec, bytes)| writer.write(&spec.name, bytes).unwrap());
    writer.finish().unwrap();
}

/// `model` with bytes put into one of its tensors, opened.
fn spoiled(model: &Path, name: &str, offset: usize, bytes: &[u8]) -> Checkpoint {
    change_tensors(model, |tensors| {
        let (_, tensor) = tensors.iter_mut().find(|(spec, _)| spec.name == name).unwrap();
        tensor[offset..offset + bytes.len()].copy_from_slice(bytes);
    });
    Checkpoint::open(model).unwrap()
}

#[test]
fn weights_that_are_no_numbers_or_too_large_are_named_and_nothing_is_left() {
    let folder = Folder::new();
    let large = bf16::from_f32(1e6);
    let gate_up = Projection::GateUp.tensor_name(1);
    let index = (3 * 96 + 17) * 320 + 40;
    // Of several the first in the order of the source, gates before the others.
    let bytes = [large.to_le_bytes(), large.to_le_bytes()].concat();
    let path = folder.model("plain", ExpertStorage::Float(Dtype::Bf16), &[]).path().to_owned();
    for (name, index) in [(gate_up.as_str(), index), ("model.layers.0.self_attn.o_proj.weight", 1234)] {
        let source = spoiled(&path, name, 2 * index, &bytes);
        let Error::OutOfRange { tensor, index: found, value, tensor_type, .. } =
            folder.run(&source, GgufTarget::Mix(Mix::F16), None).unwrap_err()
        else {
            panic!()
        };
        assert_eq!((tensor.as_str(), found, tensor_type), (name, index, TensorType::F16));
        assert_eq!(value, large.to_f32());
        folder.exported(&source, GgufTarget::Mix(Mix::Bf16));
        let source = spoiled(&path, name, 2 * index, &bf16::NAN.to_le_bytes());
        for to in [GgufTarget::Native, GgufTarget::Mix(Mix::F32), GgufTarget::Mix(Mix::F16), GgufTarget::Mix(Mix::Q8_0)] {
            let Error::NotFinite { tensor, index: found, .. } = folder.run(&source, to, None).unwrap_err() else { panic!() };
            assert_eq!((tensor.as_str(), found), (name, index));
        }
        spoiled(&path, name, 2 * index, &[0; 4]);
    }
    let source = spoiled(&path, "model.layers.1.input_layernorm.weight", 2 * 7, &bf16::INFINITY.to_le_bytes());
    let error = folder.run(&source, GgufTarget::Mix(Mix::F32), None).unwrap_err();
    assert!(matches!(error, Error::NotFinite { index: 7, .. }), "{error}");
    let source = spoiled(&path, "model.layers.1.input_layernorm.weight", 2 * 7, &[0; 2]);
    drop(source);
    let source = spoiled(&path, &format!("{gate_up}_bias"), 2 * 321, &bf16::NAN.to_le_bytes());
    let error = folder.run(&source, GgufTarget::Mix(Mix::F16), None).unwrap_err();
    assert!(matches!(error, Error::NotFinite { index: 321, .. }), "{error}");

    let path = folder.model("packed", ExpertStorage::Mxfp4, &[]).path().to_owned();
    let source = spoiled(&path, &format!("{gate_up}_scales"), 2 * 320 * 3 + 5, &[255]);
    for to in [GgufTarget::Native, GgufTarget::Mix(Mix::F32)] {
        let Error::Packed { tensor, expert, source: ft_quant::Error::ReservedScale { index }, .. } =
            folder.run(&source, to, None).unwrap_err()
        else {
            panic!()
        };
        assert_eq!((tensor, expert, index), (format!("{gate_up}_scales"), 2, 5));
    }
    // Row 1 is the first of the other half; its elements from 64 on are 6 * 2^15 at most.
    let source = spoiled(&path, &format!("{gate_up}_scales"), 2 * 320 * 3 + 5, &[127 + 15]);
    drop(source);
    let source = spoiled(&path, &format!("{gate_up}_blocks"), (2 * 320 * 3 + 5) * 16, &[0x70; 16]);
    let Error::OutOfRange { tensor, index, value, .. } = folder.run(&source, GgufTarget::Mix(Mix::F16), None).unwrap_err() else {
        panic!()
    };
    assert_eq!((tensor.as_str(), index, value), ("blk.1.ffn_up_exps.weight", (2 * 320 + 1) * 96 + 65, 6.0 * 32768.0));
    assert_eq!(folder.names(), ["packed", "plain"]);
}
