//! One model, several ways to the same numbers: with a cache, packed, with activations kept or computed again, with experts packed or
//! unpacked.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use ft_formats::checkpoint::{Checkpoint, Config, ExpertStorage, Projection, write_random_model};
use ft_formats::dtype::Dtype;
use ft_formats::peft::{AdapterTarget, AttentionProjection};
use ft_trainer::adapters::lora::{Adapter, LoraSpec};
use ft_trainer::adapters::{Trainable, train_everything};
use ft_trainer::data::{Sample, SampleOrigin, TrainedTokens};
use ft_trainer::loss::{Batch, loss, metered_loss, total_weight};
use ft_trainer::model::experts::ExpertWeight;
use ft_trainer::model::weights::{Placement, load};
use ft_trainer::model::{Activations, PackedTokens, RoutingMeter, Transformer};
use ft_trainer::recipe::Experts;
use ft_trainer::torch::functions::InputKept;
use tch::{Device, Kind, Tensor};

/// A model of odd sizes with a window much shorter than the sequences below.
fn model() -> Transformer {
    let checkpoint = Stored::new(ExpertStorage::Float(Dtype::Bf16), 80).open();
    load(&checkpoint, Placement::trained(Kind::Float, Device::Cpu), &mut |_| {}).unwrap()
}

/// A checkpoint of that model, which is there as long as this.
struct Stored {
    folder: tempfile::TempDir,
}

impl Stored {
    fn new(storage: ExpertStorage, intermediate_size: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_random_model(&folder.path().join("model"), &config(intermediate_size), storage, 3, &mut |_, _| {}).unwrap();
        Self { folder }
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(&self.folder.path().join("model")).unwrap()
    }
}

fn config(intermediate_size: usize) -> Config {
    let mut config = Config::nano();
    let intermediate_size = intermediate_size.to_string();
    for (key, value) in [
        ("vocab_size", "517"),
        ("hidden_size", "96"),
        ("intermediate_size", intermediate_size.as_str()),
        ("num_attention_heads", "6"),
        ("num_key_value_heads", "2"),
        ("head_dim", "24"),
        ("num_local_experts", "5"),
        ("num_experts_per_tok", "3"),
        ("sliding_window", "16"),
        ("initializer_range", "0.15"),
    ] {
        config.set(key, value).unwrap();
    }
    config
}

fn ids(length: u32, seed: u32) -> Vec<u32> {
    (0..length).map(|index| (index * 7919 + seed * 104_729) % 517).collect()
}

fn samples() -> Vec<Sample> {
    [(50, 1), (3, 2), (31, 3)]
        .map(|(length, seed)| {
            let ids = ids(length, seed);
            let weights = (0..ids.len()).map(|index| [0.0, 1.0, 0.5][index % 3]).collect();
            let origin = SampleOrigin { file: "test".into(), line: 1, turn: None };
            Sample { ids, weights, origin, trained: TrainedTokens::default(), spans: Vec::new() }
        })
        .into()
}

fn largest_difference(left: &Tensor, right: &Tensor) -> f64 {
    (left - right).abs().max().double_value(&[])
}

#[test]
fn a_cache_gives_the_logits_of_the_whole_sequence() {
    let model = model();
    let ids = ids(60, 1);
    let whole = tch::no_grad(|| model.logits(&PackedTokens::from_sequences([&ids[..]], Device::Cpu).unwrap()).unwrap());
    let deviation = whole.std(false).double_value(&[]);
    let mut cache = model.new_cache();
    let (prompt, rest) = ids.split_at(25);
    let mut compare = |ids: &[u32], last: i64| {
        let found = tch::no_grad(|| model.next_logits(ids, &mut cache).unwrap());
        let difference = largest_difference(&found.get(0), &whole.get(last));
        assert!(difference < 1e-4 * deviation, "position {last}: {difference} of {deviation}");
    };
    compare(prompt, 24);
    compare(&rest[..10], 34);
    for (id, last) in rest[10..].iter().zip(35..) {
        compare(&[*id], last);
    }
}

#[test]
fn a_packed_sequence_gives_the_logits_of_each_alone() {
    let model = model();
    let samples = samples();
    let logits = |samples: &[&Sample]| {
        let tokens = PackedTokens::from_sequences(samples.iter().map(|sample| &sample.ids[..]), Device::Cpu).unwrap();
        tch::no_grad(|| model.logits(&tokens).unwrap())
    };
    let alone: Vec<Tensor> = samples.iter().map(|sample| logits(&[sample])).collect();
    let packed = logits(&samples.iter().collect::<Vec<_>>());
    assert!(largest_difference(&packed, &Tensor::cat(&alone, 0)) < 1e-4 * packed.std(false).double_value(&[]));
}

/// Loss and gradients of `batches`, as one step.
fn step(model: &Transformer, trainables: &[Trainable], batches: &[&[Sample]], activations: Activations) -> (f64, Vec<Tensor>) {
    let whole = total_weight(batches.iter().copied().flatten());
    let mut sum = 0.0;
    for batch in batches {
        let loss = loss(model, &Batch::new(*batch, model).unwrap(), whole, activations).unwrap();
        loss.backward();
        sum += loss.double_value(&[]);
    }
    let gradients = trainables
        .iter()
        .map(|trainable| {
            let gradient = trainable.tensor.grad().copy();
            let _ = trainable.tensor.grad().zero_();
            gradient
        })
        .collect();
    (sum, gradients)
}

fn assert_same_gradients(name: &str, trainables: &[Trainable], found: &[Tensor], expected: &[Tensor], tolerance: f64) {
    for ((trainable, found), expected) in trainables.iter().zip(found).zip(expected) {
        let scale = expected.abs().max().double_value(&[]).max(1e-6);
        let difference = largest_difference(found, expected);
        assert!(difference <= tolerance * scale, "{name}: gradient of {} differs by {difference} of {scale}", trainable.name);
    }
}

#[test]
fn packing_and_accumulation_change_neither_loss_nor_gradients() {
    let mut model = model();
    let trainables = train_everything(&mut model).unwrap();
    let samples = samples();
    let (expected_loss, expected) = step(&model, &trainables, &[&samples], Activations::Kept);
    let apart: Vec<&[Sample]> = samples.chunks(1).collect();
    let (found_loss, found) = step(&model, &trainables, &apart, Activations::Kept);
    assert!((found_loss - expected_loss).abs() < 1e-5 * expected_loss, "{found_loss} {expected_loss}");
    assert_same_gradients("apart", &trainables, &found, &expected, 1e-5);
}

#[test]
fn checkpointing_and_offloading_change_no_bit_of_the_loss() {
    let mut model = model();
    let trainables = train_everything(&mut model).unwrap();
    let samples = samples();
    let (expected_loss, expected) = step(&model, &trainables, &[&samples], Activations::Kept);
    for kept in [InputKept::OnDevice, InputKept::OnHost] {
        let (loss, gradients) = step(&model, &trainables, &[&samples], Activations::Recomputed(kept));
        assert_eq!(loss, expected_loss, "{kept:?}");
        assert_same_gradients(&format!("{kept:?}"), &trainables, &gradients, &expected, 1e-6);
    }
}

/// A model of the checkpoint with updates that already do something, and its leaves.
fn adapted(checkpoint: &Checkpoint, kind: Kind, experts: Experts) -> (Transformer, Vec<Trainable>) {
    let placement = Placement { experts, ..Placement::frozen(kind, Device::Cpu) };
    let mut model = load(checkpoint, placement, &mut |_| {}).unwrap();
    let targets = (0..checkpoint.config().num_hidden_layers).flat_map(|layer| {
        let attention = AdapterTarget::Attention { layer, projection: AttentionProjection::V };
        let experts = Projection::ALL.map(|projection| AdapterTarget::Experts { layer, projection });
        [attention, AdapterTarget::Router { layer }].into_iter().chain(experts)
    });
    let spec = LoraSpec { rank: 3, alpha: 6.0, rslora: false, targets: targets.collect() };
    let trainables = Adapter::fresh(&mut model, spec, 5).unwrap().trainables();
    tch::manual_seed(6);
    for trainable in &trainables {
        let noise = Tensor::randn(trainable.tensor.size(), (Kind::Float, Device::Cpu)) * 0.1;
        trainable.tensor.detach().copy_(&noise);
    }
    (model, trainables)
}

#[test]
fn low_rank_updates_of_packed_experts_get_the_gradients_of_unpacked_ones() {
    let stored = Stored::new(ExpertStorage::Mxfp4, 160);
    let (checkpoint, samples) = (stored.open(), samples());
    for kind in [Kind::Float, Kind::BFloat16] {
        for activations in [Activations::Kept, Activations::Recomputed(InputKept::OnDevice)] {
            let [packed, unpacked] = [Experts::Mxfp4, Experts::Bf16].map(|experts| {
                let (model, trainables) = adapted(&checkpoint, kind, experts);
                let is_packed = matches!(model.blocks[0].experts.gate_up.weight, ExpertWeight::Packed(_));
                assert_eq!(is_packed, experts == Experts::Mxfp4);
                let (loss, gradients) = step(&model, &trainables, &[&samples], activations);
                (loss, gradients, trainables)
            });
            assert_eq!(packed.0, unpacked.0, "{kind:?}");
            assert!(packed.1.iter().all(|gradient| gradient.abs().max().double_value(&[]) > 0.0));
            assert_same_gradients(&format!("{kind:?}"), &packed.2, &packed.1, &unpacked.1, 0.0);
        }
    }
}

#[test]
fn counting_the_routers_choices_changes_no_bit_and_counts_each_token_once() {
    let stored = Stored::new(ExpertStorage::Mxfp4, 160);
    let (checkpoint, samples) = (stored.open(), samples());
    let tokens: usize = samples.iter().map(|sample| sample.ids.len()).sum();
    for experts in [Experts::Mxfp4, Experts::Bf16] {
        let mut counted = Vec::new();
        for activations in [Activations::Kept, Activations::Recomputed(InputKept::OnDevice), Activations::Recomputed(InputKept::OnHost)] {
            let (model, trainables) = adapted(&checkpoint, Kind::Float, experts);
            let (expected_loss, expected) = step(&model, &trainables, &[&samples[..2], &samples[2..]], activations);
            let (meter, mut found_loss) = (RoutingMeter::default(), 0.0);
            for batch in [&samples[..2], &samples[2..]] {
                let batch = Batch::new(batch, &model).unwrap();
                let loss = metered_loss(&model, &batch, total_weight(&samples), activations, Some(&meter)).unwrap();
                loss.backward();
                found_loss += loss.double_value(&[]);
            }
            assert_eq!(found_loss, expected_loss);
            for (trainable, expected) in trainables.iter().zip(&expected) {
                assert!(trainable.tensor.grad().equal(expected), "{}", trainable.name);
            }
            counted.push(meter.read().unwrap());
        }
        assert!(counted.iter().all(|layers| *layers == counted[0]), "{counted:?}");
        assert_eq!(counted[0].len(), checkpoint.config().num_hidden_layers);
        // Those of a pass without a graph, which routes the same tokens.
        let (model, _) = adapted(&checkpoint, Kind::Float, experts);
        let all = PackedTokens::from_sequences(samples.iter().map(|sample| &sample.ids[..]), Device::Cpu).unwrap();
        let (_, routings) = tch::no_grad(|| model.hidden_with_routing(&all).unwrap());
        for (layer, routing) in counted[0].iter().zip(&routings) {
            let mut expected = [0.0; 5];
            routing.experts_on_host().unwrap().iter().for_each(|&expert| expected[usize::try_from(expert).unwrap()] += 1.0);
            assert_eq!(layer.expert_tokens, expected);
            assert_eq!(layer.expert_tokens.iter().sum::<f64>(), 3.0 * tokens as f64);
            assert!(layer.entropy_sum > 0.0 && layer.entropy_sum < 5f64.ln() * tokens as f64, "{}", layer.entropy_sum);
        }
    }
}
