//! The types and the bytes that llama-quantize gives to models of gpt-oss, against what it gave: tests/peers/mixes.json.

use std::fs;

use ft_formats::checkpoint::Config;
use ft_formats::gguf::{GgufTensor, Mix, MixModel, TensorType, gguf_tensors};
use ft_tests::program::repository;
use half::{bf16, f16};
use serde_json::Value;

fn number(value: &Value) -> usize {
    value.as_u64().and_then(|value| value.try_into().ok()).unwrap_or_else(|| panic!("{value} is no size"))
}

/// A model of mixes.json, and what llama-quantize made of it.
struct Model<'a> {
    label: &'a str,
    listed: &'a Value,
    sizes: MixModel,
    tensors: Vec<GgufTensor>,
}

impl<'a> Model<'a> {
    fn new(label: &'a str, listed: &'a Value, vocabulary: usize) -> Self {
        let size = |name: &str| number(&listed[name]);
        let config = Config {
            vocab_size: vocabulary,
            num_hidden_layers: size("layers"),
            hidden_size: size("hidden"),
            intermediate_size: size("intermediate"),
            num_attention_heads: size("heads"),
            num_key_value_heads: size("kv_heads"),
            head_dim: size("head"),
            num_local_experts: size("experts"),
            ..Config::nano()
        };
        let has_output = listed["tied"] != true;
        let mut tensors = gguf_tensors(&config);
        tensors.retain(|tensor| has_output || tensor.name != "output.weight");
        let sizes = MixModel { num_layers: size("layers"), num_experts: size("experts"), has_output };
        Self { label, listed, sizes, tensors }
    }

    /// The values of each tensor, from their place among all: `values_from` and `make` of mixes.py.
    fn values(&self) -> Vec<Vec<f32>> {
        let mut place = 0..;
        let mut value = || {
            let bits = place.next().map_or(0, |place: u32| place.wrapping_mul(0x9e37_79b1));
            let bits = (bits ^ bits >> 15).wrapping_mul(0x85eb_ca77);
            (((bits ^ bits >> 13) >> 8) as f32 / 16_777_216.0 - 0.5) * 0.1
        };
        let is_bf16 = self.listed["bf16"] == true;
        let tensors = self.tensors.iter().map(|tensor| {
            let cut = if is_bf16 && !tensor.is_always_f32() { 0xffff_0000 } else { u32::MAX };
            (0..tensor.shape.iter().product()).map(|_| f32::from_bits(value().to_bits() & cut)).collect()
        });
        tensors.collect()
    }
}

/// Values as a type stores them.
fn stored(values: &[f32], tensor_type: TensorType) -> Vec<u8> {
    let Some(kind) = tensor_type.block_type() else {
        return match tensor_type {
            TensorType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            TensorType::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
    };
    let mut blocks = vec![0; values.len() / kind.block_elements() * kind.block_bytes()];
    kind.quantize(values, &mut blocks).expect("small numbers");
    blocks
}

/// `checksum` of mixes.py.
fn checksum(tensors: impl Iterator<Item = Vec<u8>>) -> String {
    let sum = (0_u64..).zip(tensors.flatten()).fold(0_u64, |sum, (place, byte)| {
        sum.wrapping_add((u64::from(byte) + 1).wrapping_mul(place.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    });
    format!("{sum:016x}")
}

#[test]
fn every_tensor_has_the_type_and_the_bytes_of_llama_quantize() {
    let path = repository().join("tests/peers/mixes.json");
    let list: Value = serde_json::from_slice(&fs::read(path).expect("a list")).expect("JSON");
    let models = list["models"].as_object().expect("models by name");
    assert!(models.len() >= 10, "{} models only", models.len());
    for (label, listed) in models {
        let model = Model::new(label, listed, number(&list["vocabulary"]));
        let values = model.values();
        for mix in Mix::ALL {
            let expected = &model.listed["targets"][mix.name()];
            let what = format!("{} of {}", mix.name(), model.label);
            assert_eq!(expected["file_type"], mix.file_type().number(), "{what}");
            let types: Vec<TensorType> =
                model.tensors.iter().map(|tensor| mix.tensor_type(&model.sizes, &tensor.name, &tensor.shape)).collect();
            let letters = expected["types"].as_str().expect("letters");
            assert_eq!(letters.len(), types.len(), "{what}: tensors");
            for ((tensor, found), letter) in model.tensors.iter().zip(&types).zip(letters.chars()) {
                assert_eq!(list["letters"][found.name()], letter.to_string(), "{} ({:?}) in {what} is {found}", tensor.name, tensor.shape);
            }
            let found = checksum(values.iter().zip(&types).map(|(values, tensor_type)| stored(values, *tensor_type)));
            assert_eq!(expected["checksum"], found, "{what}: bytes");
        }
    }
}
