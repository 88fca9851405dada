//! Writes the gradient of every weight of a model for given tokens, to be compared with other programs:
//! `cargo run --release -p ft-trainer --example gradients -- MODEL TOKENS.json OUT.safetensors`
//!
//! `TOKENS.json` holds `{"ids": [[...], ...], "weights": [[...], ...]}`. The loss is the weighted mean of the next-token cross entropy over
//! all sequences, computed in f32; tensors carry their names in the checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use ft_formats::checkpoint::Checkpoint;
use ft_formats::dtype::Dtype;
use ft_formats::safetensors::{SafetensorsWriter, TensorSpec};
use ft_trainer::adapters::train_everything;
use ft_trainer::data::{Sample, SampleOrigin, TrainedTokens};
use ft_trainer::loss::{Batch, loss, total_weight};
use ft_trainer::model::Activations;
use ft_trainer::model::weights::{Placement, load};
use ft_trainer::torch::autograd::backward;
use ft_trainer::torch::functions::InputKept;
use ft_trainer::torch::ops::{to_f32_vec, zeros};
use tch::{Device, Kind};

#[derive(serde::Deserialize)]
struct Tokens {
    ids: Vec<Vec<u32>>,
    weights: Vec<Vec<f32>>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens, output] = &arguments[..] else { return Err("usage: gradients MODEL TOKENS.json OUT.safetensors".into()) };
    let tokens: Tokens = serde_json::from_slice(&std::fs::read(tokens)?)?;
    let origin = SampleOrigin { file: "tokens".into(), line: 1, turn: None };
    let samples: Vec<Sample> = tokens
        .ids
        .into_iter()
        .zip(tokens.weights)
        .map(|(ids, weights)| Sample { ids, weights, origin: origin.clone(), trained: TrainedTokens::default(), spans: Vec::new() })
        .collect();

    let checkpoint = Checkpoint::open(Path::new(model))?;
    let mut model = load(&checkpoint, Placement::trained(Kind::Float, Device::Cpu), &mut |_| {})?;
    let trainables = train_everything(&mut model)?;
    let batch = Batch::new(&samples, &model)?;
    let loss = loss(&model, &batch, total_weight(&samples), Activations::Recomputed(InputKept::OnDevice))?;
    backward(&loss, &loss.ones_like())?;

    let specs: Vec<TensorSpec> = trainables
        .iter()
        .map(|trainable| {
            let shape = trainable.tensor.size().into_iter().map(usize::try_from).collect::<Result<_, _>>()?;
            Ok(TensorSpec { name: trainable.name.clone(), dtype: Dtype::F32, shape })
        })
        .collect::<Result<_, std::num::TryFromIntError>>()?;
    let mut writer = SafetensorsWriter::create(Path::new(output), &specs, &BTreeMap::new())?;
    for trainable in &trainables {
        let gradient = trainable.tensor.grad();
        // An expert that no token chose has none.
        let gradient = if gradient.defined() { gradient } else { zeros(&trainable.tensor.size(), Kind::Float, Device::Cpu)? };
        writer.write(&trainable.name, bytemuck::cast_slice(&to_f32_vec(&gradient)?))?;
    }
    writer.finish()?;
    Ok(())
}
