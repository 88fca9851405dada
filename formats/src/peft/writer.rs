//! Writing an adapter in PEFT's usual layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::layout::b_to_peft;
use super::names::{Half, Slot};
use super::{AdapterConfig, AdapterPair, AdapterProblem, AdapterTarget, CONFIG, TENSORS};
use crate::checkpoint::Projection;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::output::{PartialDirectory, write_synced};
use crate::safetensors::{SafetensorsWriter, TensorSpec};

/// Writes `pairs` in f32 and `config` into `directory`, whole or not at all; an adapter that is already there is replaced.
///
/// # Errors
/// [`Error::Adapter`] when the pairs do not fit the config, or their values their shapes; [`Error::Exists`] when the directory holds something
/// else than an adapter; [`Error::Io`].
pub fn write_adapter(directory: &Path, config: &AdapterConfig, pairs: &[AdapterPair]) -> Result<()> {
    let refuse = |problem| Error::Adapter { path: directory.to_owned(), problem };
    let targets: BTreeSet<AdapterTarget> = pairs.iter().map(|pair| pair.target).collect();
    if pairs.is_empty() {
        return Err(refuse(AdapterProblem::Empty));
    }
    let mut tensors: Vec<(TensorSpec, Vec<f32>)> = Vec::with_capacity(2 * pairs.len());
    let mut written = BTreeSet::new();
    for pair in pairs {
        if !written.insert(pair.target) {
            return Err(refuse(AdapterProblem::DuplicateTarget { target: pair.target.key() }));
        }
        check(config, pair).map_err(refuse)?;
        let both = pair.target.layer().is_some_and(|layer| {
            Projection::ALL.into_iter().all(|projection| targets.contains(&AdapterTarget::Experts { layer, projection }))
        });
        let slot = Slot::of(pair.target, both);
        let [e, input, output] = dims(pair).map_err(refuse)?;
        // A lies as PEFT has it.
        let b = match pair.target {
            AdapterTarget::Experts { .. } => b_to_peft(&pair.b, e, output, pair.rank),
            _ => pair.b.clone(),
        };
        let spec = |half, shape: [usize; 2]| TensorSpec { name: slot.tensor_name(half), dtype: Dtype::F32, shape: shape.to_vec() };
        tensors.push((spec(Half::A, [e * pair.rank, input]), pair.a.clone()));
        tensors.push((spec(Half::B, [output, e * pair.rank]), b));
    }
    let partial = PartialDirectory::create(directory, Some(CONFIG))?;
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = SafetensorsWriter::create(&partial.path().join(TENSORS), &specs, &BTreeMap::new())?;
    for (spec, values) in &tensors {
        writer.write(&spec.name, bytemuck::cast_slice(values))?;
    }
    writer.finish()?;
    write_synced(&partial.path().join(CONFIG), format!("{:#}\n", config.to_json()).as_bytes())?;
    partial.finish()
}

/// Experts, inputs and outputs of a pair, whose shapes must agree with each other and with its values.
fn dims(pair: &AdapterPair) -> Result<[usize; 3], AdapterProblem> {
    let is_experts = matches!(pair.target, AdapterTarget::Experts { .. });
    let wrong = |half: &str, found: &[usize], expected: &str| AdapterProblem::Shape {
        tensor: format!("{}.{half}", pair.target),
        expected: expected.to_owned(),
        found: found.to_vec(),
    };
    let [e, input] = match *pair.a_shape {
        [e, rank, input] if is_experts && rank == pair.rank => [e, input],
        [rank, input] if !is_experts && rank == pair.rank => [1, input],
        _ => return Err(wrong("A", &pair.a_shape, "[rank, in], or [experts, rank, in] for experts")),
    };
    let output = match *pair.b_shape {
        [experts, output, rank] if is_experts && experts == e && rank == pair.rank => output,
        [output, rank] if !is_experts && rank == pair.rank => output,
        _ => return Err(wrong("B", &pair.b_shape, "[out, rank], or [experts, out, rank] for experts")),
    };
    for (half, values, shape) in [("A", &pair.a, &pair.a_shape), ("B", &pair.b, &pair.b_shape)] {
        if shape.iter().product::<usize>() != values.len() {
            return Err(wrong(half, shape, &format!("a shape of its {} values", values.len())));
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(AdapterProblem::NotFinite { tensor: format!("{}.{half}", pair.target), index });
        }
    }
    Ok([e, input, output])
}

/// Checks that a reader will find the pair's rank and scaling in the config.
fn check(config: &AdapterConfig, pair: &AdapterPair) -> Result<(), AdapterProblem> {
    let (rank, scaling) = config.rank_and_scaling(pair.target)?;
    if rank == pair.rank && (scaling - pair.scaling).abs() <= 1e-9 * scaling.abs() {
        return Ok(());
    }
    Err(AdapterProblem::ConfigMismatch { target: pair.target.key(), rank, scaling, found_rank: pair.rank, found_scaling: pair.scaling })
}
