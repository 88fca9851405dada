//! Adapters written and read, in the layouts that the versions of PEFT write.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::layout::b_to_peft;
use super::{AdapterConfig, AdapterPair, AdapterTarget, AttentionProjection, PeftAdapter, write_adapter};
use crate::checkpoint::{Config, Projection};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::safetensors::{SafetensorsFile, SafetensorsWriter, TensorSpec};

/// No two sizes are equal, but hidden and down's output.
pub(super) fn model() -> Config {
    Config {
        vocab_size: 17,
        hidden_size: 12,
        intermediate_size: 7,
        num_hidden_layers: 3,
        num_local_experts: 5,
        num_experts_per_token: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 10,
        layer_types: Config::gpt_oss_20b().layer_types[..3].to_vec(),
        has_mxfp4_experts: false,
        ..Config::gpt_oss_20b()
    }
}

pub(super) fn pair(target: AdapterTarget, rank: usize, scaling: f64, model: &Config) -> AdapterPair {
    let [experts, input, output] = target.dims(model);
    let seed = target.key().bytes().map(usize::from).sum::<usize>();
    let values = |count: usize| (0..count).map(|index| ((index * 31 + seed) % 97) as f32 / 8.0 - 6.0).collect::<Vec<f32>>();
    let (a_shape, b_shape) = match target {
        AdapterTarget::Experts { .. } => (vec![experts, rank, input], vec![experts, output, rank]),
        _ => (vec![rank, input], vec![output, rank]),
    };
    let (a, b) = (values(a_shape.iter().product()), values(b_shape.iter().product()));
    AdapterPair { target, rank, scaling, a, a_shape, b, b_shape }
}

/// Everything that can be adapted in the given layers, in the order of a forward pass.
pub(super) fn targets(layers: &[usize]) -> Vec<AdapterTarget> {
    let in_layer = |&layer: &usize| {
        let attention = AttentionProjection::ALL.map(|projection| AdapterTarget::Attention { layer, projection });
        let experts = Projection::ALL.map(|projection| AdapterTarget::Experts { layer, projection });
        attention.into_iter().chain([AdapterTarget::Router { layer }]).chain(experts)
    };
    layers.iter().flat_map(in_layer).chain([AdapterTarget::LmHead]).collect()
}

fn tensors(directory: &Path) -> BTreeMap<String, Vec<usize>> {
    let file = SafetensorsFile::open(&directory.join("adapter_model.safetensors")).unwrap();
    file.tensors().map(|view| (view.name.to_owned(), view.shape.to_vec())).collect()
}

fn config_json(directory: &Path) -> Value {
    serde_json::from_slice(&fs::read(directory.join("adapter_config.json")).unwrap()).unwrap()
}

/// Writes tensors of any layout, and a config.
pub(super) fn write_raw(directory: &Path, config: &Value, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
    let spec =
        |&(name, dtype, shape, _): &(&str, Dtype, &[usize], Vec<u8>)| TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let mut writer = SafetensorsWriter::create(&directory.join("adapter_model.safetensors"), &specs, &BTreeMap::new()).unwrap();
    for (name, _, _, bytes) in tensors {
        writer.write(name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn adapters_come_back() {
    let model = model();
    for layers in [&[0, 1, 2][..], &[0, 2], &[1]] {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("adapter");
        let pairs: Vec<AdapterPair> = targets(layers).into_iter().map(|target| pair(target, 4, 2.0, &model)).collect();
        let config = AdapterConfig::for_pairs("base", 4, 8.0, false, &pairs);
        write_adapter(&directory, &config, &pairs).unwrap();
        for adapter in [PeftAdapter::open(&directory).unwrap(), PeftAdapter::open_for(&directory, &model).unwrap()] {
            assert_eq!(adapter.config(), &config);
            assert_eq!(adapter.pairs(), pairs);
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        // Written again, it takes the place of the old one.
        write_adapter(&directory, &config, &pairs[..1]).unwrap();
        assert_eq!(PeftAdapter::open(&directory).unwrap().pairs(), &pairs[..1]);
    }
}

#[test]
fn names_and_shapes_are_those_of_peft() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("adapter");
    let pairs: Vec<AdapterPair> = targets(&[0]).into_iter().map(|target| pair(target, 2, 1.5, &model())).collect();
    let config = AdapterConfig::for_pairs("openai/gpt-oss-20b", 2, 3.0, false, &pairs);
    write_adapter(&directory, &config, &pairs).unwrap();
    let prefix = "base_model.model.model.layers.0.";
    let tensors = tensors(&directory);
    for (name, shape) in [
        ("self_attn.q_proj.lora_A.weight", [2, 12]),
        ("self_attn.q_proj.lora_B.weight", [40, 2]),
        ("self_attn.k_proj.lora_B.weight", [20, 2]),
        ("self_attn.o_proj.lora_A.weight", [2, 40]),
        ("mlp.router.lora_A.weight", [2, 12]),
        ("mlp.router.lora_B.weight", [5, 2]),
        ("mlp.experts.base_layer.lora_A.weight", [10, 12]),
        ("mlp.experts.base_layer.lora_B.weight", [14, 10]),
        ("mlp.experts.lora_A.weight", [10, 7]),
        ("mlp.experts.lora_B.weight", [12, 10]),
    ] {
        assert_eq!(tensors[&format!("{prefix}{name}")], shape, "{name}");
    }
    assert_eq!(tensors["base_model.model.lm_head.lora_B.weight"], [17, 2]);
    assert_eq!(tensors.len(), 16);
    let json = config_json(&directory);
    assert_eq!(json["target_modules"], json!(["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]));
    assert_eq!(json["target_parameters"], json!(["mlp.router.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]));
    assert_eq!((&json["r"], &json["lora_alpha"]), (&json!(2), &json!(3)));
}

#[test]
fn some_layers_are_named_in_full() {
    let pairs = [
        AdapterTarget::Attention { layer: 1, projection: AttentionProjection::Q },
        AdapterTarget::Experts { layer: 1, projection: Projection::Down },
    ]
    .map(|target| pair(target, 2, 1.0, &model()));
    let config = AdapterConfig::for_pairs("base", 2, 2.0, false, &pairs);
    assert_eq!(config.target_modules, ["model.layers.1.self_attn.q_proj"]);
    assert_eq!(config.target_parameters, ["model.layers.1.mlp.experts.down_proj"]);
}

#[test]
fn only_experts_leave_an_empty_list_of_modules() {
    let pairs = Projection::ALL.map(|projection| pair(AdapterTarget::Experts { layer: 0, projection }, 2, 1.0, &model()));
    let json = AdapterConfig::for_pairs("base", 2, 2.0, false, &pairs).to_json();
    assert_eq!(json["target_modules"], json!([]));
    let attention = [pair(AdapterTarget::LmHead, 2, 1.0, &model())];
    assert_eq!(AdapterConfig::for_pairs("base", 2, 2.0, false, &attention).to_json()["target_parameters"], Value::Null);
}

#[test]
fn one_matrix_of_the_experts_alone_is_told_by_the_config() {
    for projection in Projection::ALL {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("adapter");
        let pairs = [pair(AdapterTarget::Experts { layer: 2, projection }, 3, 1.0, &model())];
        write_adapter(&directory, &AdapterConfig::for_pairs("base", 3, 3.0, false, &pairs), &pairs).unwrap();
        assert!(tensors(&directory).keys().all(|name| !name.contains("base_layer")));
        assert_eq!(PeftAdapter::open(&directory).unwrap().pairs(), pairs);
    }
}

#[test]
fn other_ranks_and_scalings_go_by_patterns() {
    let model = model();
    for use_rslora in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("adapter");
        let divisor = |rank: f64| if use_rslora { rank.sqrt() } else { rank };
        let mut pairs: Vec<AdapterPair> = targets(&[0, 1]).into_iter().map(|target| pair(target, 4, 8.0 / divisor(4.0), &model)).collect();
        pairs[1] = pair(pairs[1].target, 2, 8.0 / divisor(2.0), &model);
        pairs[12] = pair(pairs[12].target, 6, 3.0 / divisor(6.0), &model);
        let config = AdapterConfig::for_pairs("base", 4, 8.0, use_rslora, &pairs);
        assert_eq!((config.rank_pattern.len(), config.alpha_pattern.len()), (2, 1));
        write_adapter(&directory, &config, &pairs).unwrap();
        let adapter = PeftAdapter::open_for(&directory, &model).unwrap();
        for (found, expected) in adapter.pairs().iter().zip(&pairs) {
            assert_eq!((found.target, found.rank, &found.a, &found.b), (expected.target, expected.rank, &expected.a, &expected.b));
            assert!((found.scaling - expected.scaling).abs() < 1e-12);
        }
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes expert pairs as versions of PEFT do that take the parameter for [e, out, in].
fn write_swapped(directory: &Path, pairs: &[AdapterPair], config: &Value) {
    let mut tensors = Vec::new();
    for pair in pairs {
        let [e, rank, input] = pair.a_shape[..] else { panic!("not experts") };
        let output = pair.b_shape[1];
        let mut a = vec![0.0; e * rank * output];
        let mut b = vec![0.0; input * rank * e];
        for (e_index, r) in (0..e).flat_map(|e_index| (0..rank).map(move |r| (e_index, r))) {
            for o in 0..output {
                a[(e_index * rank + r) * output + o] = pair.b[(e_index * output + o) * rank + r];
            }
            for i in 0..input {
                b[(i * rank + r) * e + e_index] = pair.a[(e_index * rank + r) * input + i];
            }
        }
        let AdapterTarget::Experts { layer, projection } = pair.target else { panic!("not experts") };
        let wrapper = if projection == Projection::GateUp && pairs.len() > 1 { ".base_layer" } else { "" };
        for (half, rows, columns, values) in [("A", e * rank, output, a), ("B", input, e * rank, b)] {
            tensors.push((
                format!("base_model.model.model.layers.{layer}.mlp.experts{wrapper}.lora_{half}.weight"),
                [rows, columns],
                bytes(&values),
            ));
        }
    }
    let tensors: Vec<(&str, Dtype, &[usize], Vec<u8>)> =
        tensors.iter().map(|(name, shape, bytes)| (name.as_str(), Dtype::F32, &shape[..], bytes.clone())).collect();
    write_raw(directory, config, &tensors);
}

#[test]
fn transposed_adapters_are_recognised_by_their_widths() {
    for intermediate_size in [7, 12, 6] {
        let model = Config { intermediate_size, ..model() };
        let root = tempfile::tempdir().unwrap();
        let pairs = Projection::ALL.map(|projection| pair(AdapterTarget::Experts { layer: 0, projection }, 2, 1.0, &model));
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]});
        write_swapped(root.path(), &pairs, &config);
        assert_eq!(PeftAdapter::open(root.path()).unwrap().pairs(), pairs);
        // Here gate_up is square, and down tells.
        assert_eq!(PeftAdapter::open_for(root.path(), &model).unwrap().pairs(), pairs);
    }
}

#[test]
fn a_transposed_matrix_alone_is_recognised_by_the_model() {
    let model = model();
    for projection in Projection::ALL {
        let root = tempfile::tempdir().unwrap();
        let pairs = [pair(AdapterTarget::Experts { layer: 0, projection }, 2, 1.0, &model)];
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_parameters": [format!("experts.{}", projection.name())]});
        write_swapped(root.path(), &pairs, &config);
        assert_eq!(PeftAdapter::open_for(root.path(), &model).unwrap().pairs(), pairs);
    }
}

#[test]
fn half_precision_is_read_exactly() {
    let root = tempfile::tempdir().unwrap();
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 0.5, "target_modules": "all-linear"});
    let name = |half: &str| format!("base_model.model.lm_head.lora_{half}.weight");
    let a = [1.0f32, -2.5].iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
    let b = [0.1f32, 3.0, -0.0].iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    write_raw(root.path(), &config, &[(&name("A"), Dtype::Bf16, &[1, 2], a), (&name("B"), Dtype::F16, &[3, 1], b)]);
    let adapter = PeftAdapter::open(root.path()).unwrap();
    assert_eq!(adapter.pairs()[0].a, [1.0, -2.5]);
    assert_eq!(adapter.pairs()[0].b, [half::f16::from_f32(0.1).to_f32(), 3.0, 0.0]);
    assert_eq!(adapter.pairs()[0].scaling, 0.5);
}

#[test]
fn pairs_that_do_not_fit_are_not_written() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("adapter");
    let good = pair(AdapterTarget::Experts { layer: 0, projection: Projection::Down }, 2, 1.0, &model());
    let config = AdapterConfig::for_pairs("base", 2, 2.0, false, std::slice::from_ref(&good));
    let refused = |pairs: &[AdapterPair]| {
        let error = write_adapter(&directory, &config, pairs).unwrap_err();
        assert!(!directory.exists());
        let Error::Adapter { problem, .. } = error else { panic!("{error:?}") };
        problem.to_string()
    };
    assert!(refused(&[]).contains("no tensors"));
    assert!(refused(&[good.clone(), good.clone()]).contains("twice"));
    assert!(refused(&[AdapterPair { scaling: 2.0, ..good.clone() }]).contains("scaling 2"));
    assert!(refused(&[AdapterPair { b_shape: vec![12, 2], ..good.clone() }]).contains("[12, 2]"));
    assert!(refused(&[AdapterPair { a: vec![], ..good.clone() }]).contains("0 values"));
    let mut broken = good;
    broken.b[3] = f32::NAN;
    assert!(refused(&[broken]).contains("at 3"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn expert_pairs_come_back_at_any_size(sizes in proptest::array::uniform4(1usize..6), layer in 0usize..3) {
        let [experts, rank, input, output] = sizes;
        let b: Vec<f32> = (0..experts * output * rank).map(|index| index as f32).collect();
        // The first row of PEFT's B: rank first, then expert.
        let theirs = b_to_peft(&b, experts, output, rank);
        for (column, value) in theirs[..rank * experts].iter().enumerate() {
            let (r, e) = (column / experts, column % experts);
            prop_assert_eq!(*value, b[e * output * rank + r]);
        }
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("adapter");
        let pairs = [AdapterPair {
            target: AdapterTarget::Experts { layer, projection: Projection::GateUp },
            rank,
            scaling: 0.25,
            a: (0..experts * rank * input).map(|index| -(index as f32)).collect(),
            a_shape: vec![experts, rank, input],
            b,
            b_shape: vec![experts, output, rank],
        }];
        write_adapter(&directory, &AdapterConfig::for_pairs("base", rank, rank as f64 / 4.0, false, &pairs), &pairs).unwrap();
        let opened = PeftAdapter::open(&directory).unwrap();
        prop_assert_eq!(opened.pairs(), pairs);
    }
}
