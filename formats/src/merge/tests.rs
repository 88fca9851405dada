//! Small models merged and compared with the definition, and those that must be refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ft_quant::mxfp4::{BLOCK_ELEMENTS, pack, unpack};
use half::{bf16, f16};

use super::*;
use crate::checkpoint::{Config, Projection, write_random_model};
use crate::error::Error;
use crate::peft::{AdapterConfig, AdapterPair, AdapterProblem, AdapterTarget, AttentionProjection, write_adapter};
use crate::testing::{Models, change_tensors, tensors};

/// An update whose size is not that of any weight.
fn pair(target: AdapterTarget, rank: usize, alpha: f64, config: &Config) -> AdapterPair {
    let [experts, input, output] = target.dims(config);
    let mut state = target.key().bytes().fold(7u64, |state, byte| state.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut values = |count: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / 16_777_216.0 - 0.5) * 0.1
        };
        (0..count).map(|_| next()).collect()
    };
    let of_experts = |shape: [usize; 2]| match target {
        AdapterTarget::Experts { .. } => vec![experts, shape[0], shape[1]],
        _ => shape.to_vec(),
    };
    let (a_shape, b_shape) = (of_experts([rank, input]), of_experts([output, rank]));
    let (a, b) = (values(a_shape.iter().product()), values(b_shape.iter().product()));
    AdapterPair { target, rank, scaling: alpha / rank as f64, a, a_shape, b, b_shape }
}

/// Everything that can be adapted in layer 1, and the head.
fn targets() -> Vec<AdapterTarget> {
    let layer = 1;
    let attention = AttentionProjection::ALL.map(|projection| AdapterTarget::Attention { layer, projection });
    let experts = Projection::ALL.map(|projection| AdapterTarget::Experts { layer, projection });
    attention.into_iter().chain([AdapterTarget::Router { layer }]).chain(experts).chain([AdapterTarget::LmHead]).collect()
}

impl Models {
    fn adapter(&self, name: &str, pairs: &[AdapterPair]) -> PathBuf {
        let path = self.path(name);
        write_adapter(&path, &AdapterConfig::for_pairs("base", 3, 6.0, false, pairs), pairs).unwrap();
        path
    }

    /// An adapter of everything in layer 1, of two ranks and scalings.
    fn everything(&self, model: &Path) -> (PathBuf, Vec<AdapterPair>) {
        let checkpoint = Checkpoint::open(model).unwrap();
        let of = |target| match target {
            AdapterTarget::Router { .. } => pair(target, 5, 1.5, checkpoint.config()),
            _ => pair(target, 3, 6.0, checkpoint.config()),
        };
        let pairs: Vec<AdapterPair> = targets().into_iter().map(of).collect();
        (self.adapter("adapter", &pairs), pairs)
    }

    /// Merges and publishes the result as `name`.
    fn merge(&self, model: &Path, adapter: &Path, name: &str, to: MergeTarget) -> (PathBuf, ConversionReport) {
        let target = self.path(name);
        let merged = merge(model, adapter, &target, to).run(&mut |_, _| ()).unwrap();
        let report = merged.report().clone();
        (merged.publish().unwrap(), report)
    }
}

fn merge<'a>(model: &'a Path, adapter: &'a Path, target: &'a Path, to: MergeTarget) -> Merge<'a> {
    Merge { model, adapter, target, to, hints_from: None, max_shard_bytes: u64::MAX }
}

/// The update of an element by the definition.
fn update(pair: &AdapterPair, expert: usize, output: usize, input: usize) -> f32 {
    let (inputs, outputs) = (*pair.a_shape.last().unwrap(), pair.b_shape[pair.b_shape.len() - 2]);
    let (a, b) = (&pair.a[expert * pair.rank * inputs..], &pair.b[expert * outputs * pair.rank..]);
    let mut sum = 0.0f32;
    for r in 0..pair.rank {
        sum += b[output * pair.rank + r] * a[r * inputs + input];
    }
    sum * pair.scaling as f32
}

/// What a tensor [out, in], or plain experts [e, in, out], comes to, in f32.
fn merged(values: &[f32], pair: &AdapterPair) -> Vec<f32> {
    let (inputs, outputs) = (*pair.a_shape.last().unwrap(), pair.b_shape[pair.b_shape.len() - 2]);
    let is_experts = matches!(pair.target, AdapterTarget::Experts { .. });
    let sum = |(index, value): (usize, &f32)| {
        let (expert, place) = (index / (inputs * outputs), index % (inputs * outputs));
        let (output, input) = if is_experts { (place % outputs, place / outputs) } else { (place / inputs, place % inputs) };
        value + update(pair, expert, output, input)
    };
    values.iter().enumerate().map(sum).collect()
}

fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let halves = bytes.as_chunks().0;
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
        Dtype::F16 => halves.iter().map(|half| f16::from_le_bytes(*half).to_f32()).collect(),
        _ => halves.iter().map(|half| bf16::from_le_bytes(*half).to_f32()).collect(),
    }
}

fn of_f32(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}

/// The values of packed experts, as [e, out, in].
fn unpacked(blocks: &[u8], scales: &[u8]) -> Vec<f32> {
    let mut values = vec![bf16::ZERO; scales.len() * BLOCK_ELEMENTS];
    unpack(blocks, scales, &mut values).unwrap();
    values.into_iter().map(bf16::to_f32).collect()
}

#[test]
fn plain_weights_are_the_sum_rounded_once() {
    let models = Models::new();
    for (name, dtype) in [("bf16", Dtype::Bf16), ("f16", Dtype::F16), ("f32", Dtype::F32)] {
        let model = models.random(name, ExpertStorage::Float(dtype));
        let (adapter, pairs) = models.everything(&model);
        for to in [MergeTarget::Keep, MergeTarget::Bf16] {
            let (target, report) = models.merge(&model, &adapter, &format!("{name} {to:?}"), to);
            let (before, after) = (tensors(&model), tensors(&target));
            let experts = if to == MergeTarget::Keep { dtype } else { Dtype::Bf16 };
            let mut changed = BTreeSet::new();
            for pair in &pairs {
                let tensor = pair.target.tensor_name();
                let stored = if matches!(pair.target, AdapterTarget::Experts { .. }) { experts } else { dtype };
                let expected = of_f32(stored, &merged(&to_f32(dtype, &before[&tensor]), pair));
                assert!(after[&tensor] == expected && after[&tensor] != before[&tensor], "{name} {tensor}");
                changed.insert(tensor);
            }
            for (tensor, bytes) in &after {
                let is_converted = experts != dtype && tensor.ends_with("_proj") && tensor.contains("experts");
                assert!(changed.contains(tensor) || is_converted || bytes == &before[tensor], "{name} {tensor}");
            }
            let counts = report.adapter.as_ref().unwrap();
            assert_eq!((counts.changed_tensors, counts.kept_tensors), (8, before.len() - 8));
            assert_eq!((counts.changed_experts, counts.kept_experts), (5, 5));
            assert_eq!(counts.base_model.as_deref(), Some("base"));
            assert_eq!(report.tensors.len(), if experts == dtype { 8 } else { 10 });
            assert_eq!((report.from, report.to, report.packing), (ExpertStorage::Float(dtype), ExpertStorage::Float(experts), None));
            let is_exact = dtype == Dtype::F32 && experts == dtype;
            assert_eq!(report.total().sqnr_db().is_none(), is_exact, "{:?}", report.total());
        }
    }
}

#[test]
fn packed_experts_start_from_their_own_scales() {
    let models = Models::new();
    let model = models.random("model", ExpertStorage::Mxfp4);
    let (adapter, pairs) = models.everything(&model);
    let (kept, report) = models.merge(&model, &adapter, "kept", MergeTarget::Keep);
    let (packed, _) = models.merge(&model, &adapter, "packed", MergeTarget::Mxfp4);
    let (plain, unpacked_report) = models.merge(&model, &adapter, "plain", MergeTarget::Bf16);
    let (before, after, in_bf16) = (tensors(&model), tensors(&kept), tensors(&plain));
    assert!(tensors(&packed) == after);
    assert_eq!(report.scales, ScaleSource::Model(model.clone()));
    for pair in &pairs {
        let tensor = pair.target.tensor_name();
        if !matches!(pair.target, AdapterTarget::Experts { .. }) {
            assert!(after[&tensor] == of_f32(Dtype::Bf16, &merged(&to_f32(Dtype::Bf16, &before[&tensor]), pair)), "{tensor}");
            continue;
        }
        let (blocks, scales) = (&before[&format!("{tensor}_blocks")], &before[&format!("{tensor}_scales")]);
        let (inputs, outputs) = (pair.a_shape[2], pair.b_shape[1]);
        let values = unpacked(blocks, scales);
        let sum =
            |(index, value): (usize, &f32)| value + update(pair, index / (inputs * outputs), index / inputs % outputs, index % inputs);
        let sums: Vec<f32> = values.iter().enumerate().map(sum).collect();
        let (mut new_blocks, mut new_scales) = (vec![0; blocks.len()], vec![0; scales.len()]);
        pack(&sums, ScaleRule::Hint.into(), Some(scales), &mut new_blocks, &mut new_scales).unwrap();
        assert!(after[&format!("{tensor}_blocks")] == new_blocks && after[&format!("{tensor}_scales")] == new_scales, "{tensor}");
        assert!(&new_blocks != blocks, "{tensor}");
        let transposed: Vec<f32> = (0..sums.len())
            .map(|index| {
                let (expert, place) = (index / (inputs * outputs), index % (inputs * outputs));
                sums[(expert * outputs + place % outputs) * inputs + place / outputs]
            })
            .collect();
        assert!(in_bf16[&tensor] == of_f32(Dtype::Bf16, &transposed), "{tensor}");
        // Layer 0 is not adapted.
        let other = tensor.replace("layers.1", "layers.0") + "_blocks";
        assert!(after[&other] == before[&other], "{other}");
    }
    let experts: Vec<_> = report.tensors.iter().filter(|tensor| matches!(tensor.weight, AdapterTarget::Experts { .. })).collect();
    assert_eq!((report.tensors.len(), experts.len()), (8, 2));
    assert!(experts.iter().all(|tensor| tensor.accuracy.compared_blocks > 0 && tensor.accuracy.changed_codes > 0), "{experts:?}");
    // Without an adapter, unpacking loses nothing; those of layer 0 are told too.
    assert_eq!(unpacked_report.tensors.len(), 10);
    assert!(unpacked_report.tensors[..2].iter().all(|tensor| tensor.accuracy.noise == 0.0));
    assert_eq!(unpacked_report.adapter.unwrap().changed_tensors, 8);
}

/// Adapters that are nothing: zeros on one side, a scaling of zero, and products too small for f32.
fn nothings(config: &Config) -> Vec<Vec<AdapterPair>> {
    let of = |change: fn(&mut AdapterPair)| {
        let changed = |target| {
            let mut pair = pair(target, 3, 6.0, config);
            change(&mut pair);
            pair
        };
        targets().into_iter().map(changed).collect()
    };
    vec![
        of(|pair| pair.a.fill(0.0)),
        of(|pair| pair.b.fill(-0.0)),
        of(|pair| pair.scaling = 0.0),
        of(|pair| pair.a.iter_mut().chain(&mut pair.b).for_each(|value| *value = -1e-30)),
    ]
}

#[test]
fn nothing_merged_leaves_every_byte() {
    let models = Models::new();
    for (name, storage) in [
        ("mxfp4", ExpertStorage::Mxfp4),
        ("bf16", ExpertStorage::Float(Dtype::Bf16)),
        ("f16", ExpertStorage::Float(Dtype::F16)),
        ("f32", ExpertStorage::Float(Dtype::F32)),
    ] {
        let model = models.random(name, storage);
        // Zeros of both signs, and blocks that only their own scales bring back.
        change_tensors(&model, |tensors| {
            for (spec, bytes) in tensors {
                let size = spec.dtype.size();
                match spec.dtype {
                    Dtype::U8 if spec.name.ends_with("_blocks") => bytes.chunks_mut(48).for_each(|bytes| bytes[..16].fill(0x98)),
                    Dtype::U8 => bytes.chunks_exact_mut(101).for_each(|bytes| (bytes[7], bytes[50]) = (0, 252)),
                    _ => bytes.chunks_exact_mut(5 * size).for_each(|bytes| {
                        bytes[..2 * size].fill(0);
                        bytes[size - 1] = 0x80;
                    }),
                }
            }
        });
        let before = tensors(&model);
        for (index, pairs) in nothings(Checkpoint::open(&model).unwrap().config()).into_iter().enumerate() {
            let adapter = models.path("nothing");
            // The config's own alpha is 0 where the scaling is.
            let alpha = 3.0 * pairs[0].scaling;
            write_adapter(&adapter, &AdapterConfig::for_pairs("base", 3, alpha, false, &pairs), &pairs).unwrap();
            let (target, report) = models.merge(&model, &adapter, &format!("{name} {index}"), MergeTarget::Keep);
            assert!(tensors(&target) == before, "{name} {index}");
            let counts = report.adapter.as_ref().unwrap();
            assert_eq!((counts.changed_tensors, counts.changed_experts, counts.kept_experts), (0, 0, 10));
            let total = report.total();
            assert_eq!((report.tensors.len(), total.noise, total.changed_codes, total.changed_scales), (8, 0.0, 0, 0));
        }
    }
}

#[test]
fn an_expert_that_is_not_adapted_keeps_its_bytes() {
    let models = Models::new();
    for (name, storage) in [("mxfp4", ExpertStorage::Mxfp4), ("bf16", ExpertStorage::Float(Dtype::Bf16))] {
        let model = models.random(name, storage);
        let config = Checkpoint::open(&model).unwrap().config().clone();
        let mut pair = pair(AdapterTarget::Experts { layer: 1, projection: Projection::Down }, 3, 6.0, &config);
        let length = pair.b.len() / 5;
        pair.b[..3 * length].fill(0.0);
        pair.b[4 * length..].fill(0.0);
        let adapter = models.adapter(&format!("{name} adapter"), &[pair]);
        let (target, report) = models.merge(&model, &adapter, &format!("{name} merged"), MergeTarget::Keep);
        let (before, after) = (tensors(&model), tensors(&target));
        for (tensor, bytes) in &after {
            if !tensor.starts_with("model.layers.1.mlp.experts.down_proj") || tensor.ends_with("bias") {
                assert!(bytes == &before[tensor], "{name} {tensor}");
                continue;
            }
            let experts = bytes.chunks(bytes.len() / 5).zip(before[tensor].chunks(bytes.len() / 5)).enumerate();
            for (expert, (after, before)) in experts {
                // Some scales may be the same.
                assert!((after == before) != (expert == 3) || tensor.ends_with("_scales"), "{name} {tensor} {expert}");
            }
        }
        let counts = report.adapter.unwrap();
        assert_eq!((counts.changed_tensors, counts.changed_experts, counts.kept_experts), (1, 1, 9));
    }
}

#[test]
fn plain_experts_are_packed_from_the_values_or_from_given_scales() {
    let models = Models::new();
    let packed = models.random("packed", ExpertStorage::Mxfp4);
    let (adapter, _) = models.everything(&packed);
    let (plain, _) = models.merge(&packed, &adapter, "plain", MergeTarget::Bf16);
    let nothing: Vec<AdapterPair> = nothings(Checkpoint::open(&packed).unwrap().config()).remove(0);
    let nothing = models.adapter("nothing", &nothing);
    let target = models.path("back");
    let request = Merge { hints_from: Some(&packed), max_shard_bytes: 60_000, ..merge(&plain, &nothing, &target, MergeTarget::Mxfp4) };
    let back = request.run(&mut |_, _| ()).unwrap();
    let report = back.report();
    assert_eq!(report.scales, ScaleSource::Model(packed.clone()));
    assert_eq!(report.total().compared_blocks, report.total().blocks());
    let back = back.publish().unwrap();
    assert!(back.join("model.safetensors.index.json").exists());
    // Layer 0 went there and back; layer 1 is what it was merged to.
    let (before, after) = (tensors(&packed), tensors(&back));
    for ending in ["gate_up_proj_blocks", "gate_up_proj_scales", "down_proj_blocks", "down_proj_scales"] {
        let name = |layer: usize| format!("model.layers.{layer}.mlp.experts.{ending}");
        assert!(after[&name(0)] == before[&name(0)] && (after[&name(1)] != before[&name(1)] || ending.ends_with("scales")), "{ending}");
    }
    let (by_value, report) = models.merge(&plain, &adapter, "by value", MergeTarget::Mxfp4);
    assert_eq!((report.scales, report.to), (ScaleSource::Values, ExpertStorage::Mxfp4));
    assert_eq!(Checkpoint::open(&by_value).unwrap().expert_storage(), ExpertStorage::Mxfp4);
    let elsewhere = models.path("elsewhere");
    let refused = Merge { hints_from: Some(&plain), ..merge(&plain, &adapter, &elsewhere, MergeTarget::Mxfp4) };
    assert!(matches!(refused.run(&mut |_, _| ()), Err(Error::NotPacked { .. })));
}

#[test]
fn tensors_larger_than_a_piece_are_merged_in_rows() {
    let models = Models::new();
    let mut config = Config::nano();
    // More rows than a piece has, and not a multiple of it.
    for (key, value) in [("vocab_size", "200001"), ("hidden_size", "96"), ("num_hidden_layers", "1"), ("num_local_experts", "2")] {
        config.set(key, value).unwrap();
    }
    config.has_mxfp4_experts = false;
    config.num_experts_per_token = 2;
    let model = write_random_model(&models.path("model"), &config, ExpertStorage::Float(Dtype::Bf16), 3, &mut |_, _| ()).unwrap();
    let mut pair = pair(AdapterTarget::LmHead, 2, 4.0, &config);
    // The first piece is not adapted.
    pair.b[..2 * 180_000].fill(0.0);
    let adapter = models.adapter("adapter", &[pair.clone()]);
    let mut steps = Vec::new();
    let target = models.path("target");
    let merged_model = merge(&model, &adapter, &target, MergeTarget::Keep).run(&mut |done, total| steps.push((done, total))).unwrap();
    let total = Checkpoint::open(&model).unwrap().total_bytes();
    assert!(steps.is_sorted() && steps.last() == Some(&(total, total)));
    let target = merged_model.publish().unwrap();
    let (before, after) = (tensors(&model), tensors(&target));
    assert!(after["lm_head.weight"] == of_f32(Dtype::Bf16, &merged(&to_f32(Dtype::Bf16, &before["lm_head.weight"]), &pair)));
    assert!(after["model.embed_tokens.weight"] == before["model.embed_tokens.weight"]);
}

#[test]
fn updates_that_make_no_number_are_named_and_nothing_is_left() {
    let models = Models::new();
    let plain = models.random("plain", ExpertStorage::Float(Dtype::Bf16));
    let packed = models.random("packed", ExpertStorage::Mxfp4);
    let half = models.random("half", ExpertStorage::Float(Dtype::F16));
    let config = Checkpoint::open(&plain).unwrap().config().clone();
    let run = |model: &Path, pairs: &[AdapterPair], to| {
        let (adapter, target) = (models.adapter("adapter", pairs), models.path("target"));
        merge(model, &adapter, &target, to).run(&mut |_, _| ()).unwrap_err()
    };
    let assert_unmergeable = |error: Error, name: &str, of: Option<usize>, place: usize| {
        let Error::Unmergeable { adapter, tensor, expert, index } = error else { panic!("{error}") };
        assert_eq!((adapter, tensor.as_str(), expert, index), (models.path("adapter"), name, of, place));
    };
    let mut down = pair(AdapterTarget::Experts { layer: 1, projection: Projection::Down }, 3, 6.0, &config);
    // Output 5 of expert 2, infinite at input 7 alone.
    down.b[(2 * 96 + 5) * 3] = 3e38;
    (0..160).for_each(|input| down.a[2 * 3 * 160 + input] = if input == 7 { 3e38 } else { 0.0 });
    let name = Projection::Down.tensor_name(1);
    for to in [MergeTarget::Keep, MergeTarget::Bf16, MergeTarget::Mxfp4] {
        assert_unmergeable(run(&plain, std::slice::from_ref(&down), to), &name, Some(2), 7 * 96 + 5);
    }
    assert_unmergeable(run(&packed, std::slice::from_ref(&down), MergeTarget::Keep), &name, Some(2), 5 * 160 + 7);
    assert_unmergeable(run(&packed, std::slice::from_ref(&down), MergeTarget::Bf16), &name, Some(2), 7 * 96 + 5);
    // In f32 a number, and beyond the stored type.
    let mut query = pair(AdapterTarget::Attention { layer: 0, projection: AttentionProjection::K }, 3, 6.0, &config);
    (query.b[3 * 3], query.a[11]) = (1e5, 1.0);
    assert_unmergeable(
        run(&half, std::slice::from_ref(&query), MergeTarget::Keep),
        "model.layers.0.self_attn.k_proj.weight",
        None,
        3 * 96 + 11,
    );
    // A weight that is none itself is not the adapter's fault.
    change_tensors(&plain, |tensors| {
        let (_, bytes) = tensors.iter_mut().find(|(spec, _)| spec.name == name).unwrap();
        bytes[2 * (160 * 96 + 9)..][..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    });
    let mild = pair(AdapterTarget::Experts { layer: 1, projection: Projection::Down }, 3, 6.0, &config);
    for (pairs, to) in [(&[mild.clone()][..], MergeTarget::Keep), (&[mild][..], MergeTarget::Mxfp4), (&[query][..], MergeTarget::Mxfp4)] {
        let Error::Unpackable { tensor, expert, source, .. } = run(&plain, pairs, to) else { panic!() };
        assert_eq!((tensor, expert, source), (name.clone(), 1, ft_quant::Error::NotFinite { index: 9 }));
    }
    change_tensors(&packed, |tensors| {
        let (_, bytes) = tensors.iter_mut().find(|(spec, _)| spec.name == format!("{name}_scales")).unwrap();
        bytes[4 * 96 * 160 / 32 + 5] = 255;
    });
    let other = pair(AdapterTarget::LmHead, 3, 6.0, &config);
    for to in [MergeTarget::Keep, MergeTarget::Bf16] {
        let Error::Packed { tensor, expert, source: ft_quant::Error::ReservedScale { index }, .. } =
            run(&packed, std::slice::from_ref(&other), to)
        else {
            panic!()
        };
        assert_eq!((tensor, expert, index), (format!("{name}_scales"), 4, 5));
    }
    models.assert_only(&["adapter", "half", "packed", "plain"]);
}

#[test]
fn adapters_of_another_model_are_refused_and_nothing_is_left() {
    let models = Models::new();
    let model = models.random("model", ExpertStorage::Mxfp4);
    let config = Checkpoint::open(&model).unwrap().config().clone();
    let wider = Config { hidden_size: 128, ..config.clone() };
    let crowded = Config { num_local_experts: 6, ..config.clone() };
    let experts = AdapterTarget::Experts { layer: 0, projection: Projection::GateUp };
    let target = models.path("target");
    for pairs in [pair(AdapterTarget::LmHead, 3, 6.0, &wider), pair(experts, 3, 6.0, &wider), pair(experts, 3, 6.0, &crowded)] {
        let adapter = models.adapter("adapter", &[pairs]);
        let error = merge(&model, &adapter, &target, MergeTarget::Keep).run(&mut |_, _| ()).unwrap_err();
        assert!(matches!(error, Error::Adapter { problem: AdapterProblem::Shape { .. }, .. }), "{error}");
    }
    let beyond = models.adapter("adapter", &[pair(AdapterTarget::Router { layer: 2 }, 3, 6.0, &config)]);
    let error = merge(&model, &beyond, &target, MergeTarget::Keep).run(&mut |_, _| ()).unwrap_err();
    assert!(matches!(error, Error::NoSuch { what: "layer", index: 2, count: 2 }), "{error}");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("x"), "x").unwrap();
    let adapter = models.adapter("adapter", &[pair(AdapterTarget::LmHead, 3, 6.0, &config)]);
    let error = merge(&model, &adapter, &target, MergeTarget::Keep).run(&mut |_, _| ()).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    models.assert_only(&["adapter", "model", "target"]);
}
