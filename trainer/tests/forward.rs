//! One model, several ways to the same numbers: with a cache, packed, with activations kept or computed again.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use ft_formats::checkpoint::{Checkpoint, Config, ExpertStorage, write_random_model};
use ft_formats::dtype::Dtype;
use ft_trainer::adapters::{Trainable, train_everything};
use ft_trainer::data::{Sample, SampleOrigin, TrainedTokens};
use ft_trainer::loss::{Batch, loss, total_weight};
use ft_trainer::model::weights::{Placement, load};
use ft_trainer::model::{PackedTokens, Transformer};
use tch::{Device, Kind, Tensor};

/// A model of odd sizes with a window much shorter than the sequences below.
fn model() -> Transformer {
    let mut config = Config::nano();
    for (key, value) in [
        ("vocab_size", "517"),
        ("hidden_size", "96"),
        ("intermediate_size", "80"),
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
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    write_random_model(&path, &config, ExpertStorage::Float(Dtype::Bf16), 3, &mut |_, _| {}).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    load(&checkpoint, Placement::uniform(Kind::Float, Device::Cpu), &mut |_| {}).unwrap()
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
fn step(model: &Transformer, trainables: &[Trainable], batches: &[&[Sample]], checkpointing: bool) -> (f64, Vec<Tensor>) {
    let whole = total_weight(batches.iter().copied().flatten());
    let mut sum = 0.0;
    for batch in batches {
        let loss = loss(model, &Batch::new(*batch, model).unwrap(), whole, checkpointing).unwrap();
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

#[test]
fn packing_accumulation_and_checkpointing_change_neither_loss_nor_gradients() {
    let mut model = model();
    let trainables = train_everything(&mut model).unwrap();
    let samples = samples();
    let (expected_loss, expected) = step(&model, &trainables, &[&samples], false);
    let apart: Vec<&[Sample]> = samples.chunks(1).collect();
    for (name, batches, checkpointing) in [("apart", apart, false), ("checkpointed", vec![&samples[..]], true)] {
        let (found_loss, found) = step(&model, &trainables, &batches, checkpointing);
        assert!((found_loss - expected_loss).abs() < 1e-5 * expected_loss, "{name}: {found_loss} {expected_loss}");
        for ((trainable, found), expected) in trainables.iter().zip(&found).zip(&expected) {
            let scale = expected.abs().max().double_value(&[]).max(1e-6);
            let difference = largest_difference(found, expected);
            assert!(difference < 1e-4 * scale, "{name}: gradient of {} differs by {difference} of {scale}", trainable.name);
        }
    }
}
