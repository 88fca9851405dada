//! Small models there and back, and those that must be refused.

use std::fs;
use std::path::{Path, PathBuf};

use ft_quant::mxfp4::{Rounding, pack_transposed};
use half::{bf16, f16};
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::{Config, Projection, write_random_model};
use crate::testing::{Models, change_tensors, tensors};

impl Models {
    /// Converts `source` and publishes the result as `name`.
    fn convert(&self, source: &Path, name: &str, to: ExpertTarget) -> (PathBuf, ConversionReport) {
        let target = self.path(name);
        let converted = requantization(source, &target, to).run(&Codec::Cpu, &mut |_, _| ()).unwrap();
        let report = converted.report().clone();
        (converted.publish().unwrap(), report)
    }
}

fn requantization<'a>(source: &'a Path, target: &'a Path, to: ExpertTarget) -> Requantization<'a> {
    Requantization { source, target, to, hints_from: None, max_shard_bytes: u64::MAX }
}

fn by(rule: ScaleRule) -> ExpertTarget {
    ExpertTarget::Mxfp4(rule.into())
}

fn config_of(model: &Path) -> Value {
    serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap()
}

fn edit_config(model: &Path, edit: impl FnOnce(&mut Value)) {
    let mut config = config_of(model);
    edit(&mut config);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn packed_models_come_back_byte_for_byte() {
    let models = Models::new();
    let packed = models.random("packed", ExpertStorage::Mxfp4);
    // Blocks whose largest code is small, which only their own scales bring back, and the scales at both ends.
    change_tensors(&packed, |tensors| {
        for (spec, bytes) in tensors {
            if spec.name.ends_with("_blocks") {
                bytes.chunks_exact_mut(48).for_each(|bytes| bytes[..16].iter_mut().for_each(|byte| *byte &= 0xbb));
            } else if spec.name.ends_with("_scales") {
                bytes.chunks_exact_mut(101).for_each(|bytes| (bytes[7], bytes[9], bytes[50]) = (0, 1, 252));
            }
        }
    });
    let (plain, report) = models.convert(&packed, "plain", ExpertTarget::Bf16);
    assert_eq!((report.from, report.tensors.len(), report.total().noise), (ExpertStorage::Mxfp4, 4, 0.0));
    assert_eq!(report.total().elements, 2 * 5 * 3 * 96 * 160);
    let back = models.path("back");
    let converted =
        Requantization { hints_from: Some(&packed), max_shard_bytes: 60_000, ..requantization(&plain, &back, by(ScaleRule::Hint)) };
    let converted = converted.run(&Codec::Cpu, &mut |_, _| ()).unwrap();
    let total = converted.report().total();
    assert_eq!((total.noise, total.changed_codes, total.changed_scales), (0.0, 0, 0));
    assert_eq!(total.compared_blocks, total.blocks());
    assert_eq!(converted.report().scales, ScaleSource::Model(packed.clone()));
    // Before it is published it is a model already, and not to be seen.
    assert!(!back.exists() && tensors(converted.path()) == tensors(&packed));
    converted.publish().unwrap();
    assert!(back.join("model.safetensors.index.json").exists());
    assert!(tensors(&back) == tensors(&packed));
    let (again, report) = models.convert(&packed, "again", by(ScaleRule::Hint));
    assert!(tensors(&again) == tensors(&packed));
    assert_eq!((report.total().noise, report.worst()), (0.0, None));
    // By another rule the values stay and bytes change.
    let (other, report) = models.convert(&packed, "other", by(ScaleRule::Rceil));
    assert!(report.total().noise == 0.0 && report.total().changed_codes > 0 && report.total().changed_scales > 0);
    let (plain_again, _) = models.convert(&other, "plain again", ExpertTarget::Bf16);
    assert!(tensors(&plain_again) == tensors(&plain));
}

#[test]
fn plain_experts_are_packed_expert_by_expert_and_all_else_is_carried_over() {
    let models = Models::new();
    for (name, dtype) in [("bf16", Dtype::Bf16), ("f16", Dtype::F16), ("f32", Dtype::F32)] {
        let source = models.random(name, ExpertStorage::Float(dtype));
        let packing = Packing { rule: ScaleRule::Mse, rounding: Rounding::TowardZero };
        let (target, report) = models.convert(&source, &format!("{name} packed"), ExpertTarget::Mxfp4(packing));
        assert_eq!((report.from, &report.scales), (ExpertStorage::Float(dtype), &ScaleSource::Values));
        let (before, mut after) = (tensors(&source), tensors(&target));
        for (layer, projection) in Checkpoint::open(&source).unwrap().expert_matrices() {
            let [inputs, outputs] = if projection == Projection::GateUp { [96, 320] } else { [160, 96] };
            let name = projection.tensor_name(layer);
            let (mut blocks, mut scales) = (Vec::new(), Vec::new());
            for expert in before[&name].chunks_exact(inputs * outputs * dtype.size()) {
                let start = (blocks.len(), scales.len());
                blocks.resize(start.0 + inputs * outputs / 2, 0);
                scales.resize(start.1 + inputs * outputs / 32, 0);
                let (blocks, scales) = (&mut blocks[start.0..], &mut scales[start.1..]);
                match dtype {
                    Dtype::Bf16 => pack_transposed::<bf16>(&bytemuck::pod_collect_to_vec(expert), outputs, packing, None, blocks, scales),
                    Dtype::F16 => pack_transposed::<f16>(&bytemuck::pod_collect_to_vec(expert), outputs, packing, None, blocks, scales),
                    _ => pack_transposed::<f32>(&bytemuck::pod_collect_to_vec(expert), outputs, packing, None, blocks, scales),
                }
                .unwrap();
            }
            assert!(after.remove(&format!("{name}_blocks")).unwrap() == blocks, "{name}");
            assert!(after.remove(&format!("{name}_scales")).unwrap() == scales, "{name}");
        }
        for (name, bytes) in after {
            assert!(bytes == before[&name], "{name}");
        }
        let quality = report.total().sqnr_db().unwrap();
        assert!((17.0..21.0).contains(&quality), "{quality} dB");
    }
}

#[test]
fn wider_floats_are_rounded_to_bf16() {
    let models = Models::new();
    let source = models.random("source", ExpertStorage::Float(Dtype::F32));
    let (target, report) = models.convert(&source, "target", ExpertTarget::Bf16);
    let (before, after) = (tensors(&source), tensors(&target));
    let name = Projection::Down.tensor_name(1);
    let rounded: Vec<u8> =
        before[&name].as_chunks().0.iter().flat_map(|word| bf16::from_f32(f32::from_le_bytes(*word)).to_le_bytes()).collect();
    assert!(after[&name] == rounded);
    assert!(after["lm_head.weight"] == before["lm_head.weight"]);
    assert!(report.total().sqnr_db().unwrap() > 50.0);
}

#[test]
fn the_config_says_how_the_experts_are_stored_and_keeps_the_rest() {
    let models = Models::new();
    let packed = models.random("packed", ExpertStorage::Mxfp4);
    edit_config(&packed, |config| {
        config["an_unknown_key"] = json!([1, {"b": 2}]);
        config["quantization_config"]["by"] = json!("somebody");
    });
    let (same, _) = models.convert(&packed, "same", by(ScaleRule::Hint));
    assert_eq!(config_of(&same), config_of(&packed));
    let (plain, _) = models.convert(&packed, "plain", ExpertTarget::Bf16);
    let mut expected = config_of(&packed);
    expected.as_object_mut().unwrap().remove("quantization_config");
    expected["dtype"] = json!("bfloat16");
    assert_eq!(config_of(&plain), expected);
    edit_config(&plain, |config| {
        config["quantization_config"] = json!(null);
        config["torch_dtype"] = config.as_object_mut().unwrap().remove("dtype").unwrap();
    });
    let (back, _) = models.convert(&plain, "back", by(ScaleRule::Even));
    assert_eq!(config_of(&back)["quantization_config"]["quant_method"], "mxfp4");
    assert_eq!(config_of(&back)["torch_dtype"], "bfloat16");
    assert!(config_of(&back).get("dtype").is_none());
}

#[test]
fn files_beside_the_weights_go_along() {
    let models = Models::new();
    let source = models.random("source", ExpertStorage::Mxfp4);
    fs::write(source.join("chat_template.jinja"), "{{ messages }}").unwrap();
    fs::write(source.join("LICENSE"), "free").unwrap();
    fs::write(source.join("generation_config.json"), "{\"temperature\": 0.5}").unwrap();
    for left in [".gitattributes", "pytorch_model.bin", "other.gguf"] {
        fs::write(source.join(left), "x").unwrap();
    }
    fs::create_dir(source.join("metal")).unwrap();
    let (target, _) = models.convert(&source, "target", ExpertTarget::Bf16);
    for name in ["chat_template.jinja", "LICENSE", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(fs::read(target.join(name)).unwrap(), fs::read(source.join(name)).unwrap(), "{name}");
    }
    for left in [".gitattributes", "pytorch_model.bin", "other.gguf", "metal"] {
        assert!(!target.join(left).exists(), "{left}");
    }
}

#[test]
fn progress_ends_at_the_whole() {
    let models = Models::new();
    let source = models.random("source", ExpertStorage::Mxfp4);
    let mut steps = Vec::new();
    let target = models.path("target");
    requantization(&source, &target, ExpertTarget::Bf16).run(&Codec::Cpu, &mut |done, total| steps.push((done, total))).unwrap();
    let total = Checkpoint::open(&source).unwrap().total_bytes();
    assert!(steps.is_sorted() && steps.len() > 20);
    assert_eq!(steps.last(), Some(&(total, total)));
    // It was not published.
    models.assert_only(&["source"]);
}

#[test]
fn weights_that_are_no_numbers_are_named_and_nothing_is_left() {
    let models = Models::new();
    let source = models.random("plain", ExpertStorage::Float(Dtype::Bf16));
    let packed = models.random("packed", ExpertStorage::Mxfp4);
    let put = |model: &Path, name: &str, offset: usize, bytes: &[u8]| {
        change_tensors(model, |tensors| {
            let (_, tensor) = tensors.iter_mut().find(|(spec, _)| spec.name == name).unwrap();
            tensor[offset..offset + bytes.len()].copy_from_slice(bytes);
        });
    };
    let run = |source: &Path, to| {
        let target = models.path("target");
        requantization(source, &target, to).run(&Codec::Cpu, &mut |_, _| ()).unwrap_err()
    };
    let name = Projection::Down.tensor_name(1);
    let size = 160 * 96;
    put(&source, &name, (3 * size + 1234) * 2, &bf16::NAN.to_le_bytes());
    for to in [by(ScaleRule::Even), by(ScaleRule::Hint), ExpertTarget::Bf16] {
        let Error::Unpackable { tensor, path, expert, source: ft_quant::Error::NotFinite { index } } = run(&source, to) else { panic!() };
        assert_eq!((tensor, path, expert, index), (name.clone(), source.join("model.safetensors"), 3, 1234));
    }
    put(&source, "model.layers.1.mlp.router.weight", 2 * 77, &bf16::INFINITY.to_le_bytes());
    let Error::NotFinite { tensor, index, .. } = run(&source, by(ScaleRule::Even)) else { panic!() };
    assert_eq!((tensor.as_str(), index), ("model.layers.1.mlp.router.weight", 77));
    put(&packed, &format!("{name}_scales"), 4 * size / 32 + 5, &[255]);
    for to in [by(ScaleRule::Hint), ExpertTarget::Bf16] {
        let Error::Packed { tensor, expert, source: ft_quant::Error::ReservedScale { index }, .. } = run(&packed, to) else { panic!() };
        assert_eq!((tensor, expert, index), (format!("{name}_scales"), 4, 5));
    }
    models.assert_only(&["packed", "plain"]);
}

#[test]
fn hints_of_another_model_are_refused() {
    let models = Models::new();
    let source = models.random("source", ExpertStorage::Float(Dtype::Bf16));
    let target = models.path("target");
    let run = |hints: &Path| {
        let conversion = Requantization { hints_from: Some(hints), ..requantization(&source, &target, by(ScaleRule::Hint)) };
        conversion.run(&Codec::Cpu, &mut |_, _| ()).unwrap_err()
    };
    assert!(matches!(run(&source), Error::NotPacked { .. }));
    let mut config = Config::nano();
    config.set("vocab_size", "1000").unwrap();
    let other = write_random_model(&models.path("other"), &config, ExpertStorage::Mxfp4, 3, &mut |_, _| ()).unwrap();
    let Error::ForeignHints { tensor, expected, found, .. } = run(&other) else { panic!() };
    assert_eq!((tensor.as_str(), expected), ("model.layers.0.mlp.experts.gate_up_proj_scales", vec![5, 320, 3]));
    assert_eq!(found, [8, 192, 2]);
    assert!(matches!(run(&models.path("nothing")), Error::NoConfig { .. }));
    models.assert_only(&["other", "source"]);
}

#[test]
fn sizes_that_make_no_blocks_are_refused() {
    let models = Models::new();
    let mut config = Config::nano();
    for (key, value) in [("vocab_size", "1000"), ("intermediate_size", "80")] {
        config.set(key, value).unwrap();
    }
    config.has_mxfp4_experts = false;
    let source = write_random_model(&models.path("source"), &config, ExpertStorage::Float(Dtype::Bf16), 3, &mut |_, _| ()).unwrap();
    let target = models.path("target");
    let error = requantization(&source, &target, by(ScaleRule::Even)).run(&Codec::Cpu, &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{error}");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("x"), "x").unwrap();
    let error = requantization(&source, &target, ExpertTarget::Bf16).run(&Codec::Cpu, &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    models.assert_only(&["source", "target"]);
}
