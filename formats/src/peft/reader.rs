//! Reading an adapter: every tensor finds its weight, its other half, its rank and its layout, or the adapter is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};

use super::layout::{a_from_swapped, b_from_peft, b_from_swapped};
use super::names::{Half, Slot};
use super::{AdapterConfig, AdapterPair, AdapterProblem, AdapterTarget, AttentionProjection, TENSORS};
use crate::checkpoint::{Config, Projection};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::safetensors::{SafetensorsFile, TensorView};

/// An adapter, read whole.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftAdapter {
    path: PathBuf,
    config: AdapterConfig,
    pairs: Vec<AdapterPair>,
}

impl PeftAdapter {
    /// Reads the adapter in `directory`.
    ///
    /// Which way round the tensors of the experts are follows from the widths of both matrices, or from the other tensors; where nothing
    /// tells, they are taken to be as PEFT writes them for gpt-oss. [`PeftAdapter::open_for`] knows it from the model.
    ///
    /// # Errors
    /// [`Error::Adapter`] for whatever is wrong with the adapter; [`Error::Safetensors`], [`Error::Json`] or [`Error::Io`] for its files.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::read(directory, None)
    }

    /// Reads the adapter in `directory`, whose shapes must be those of `model`.
    ///
    /// # Errors
    /// As [`PeftAdapter::open`]; [`Error::NoSuch`] for a layer that the model does not have.
    pub fn open_for(directory: &Path, model: &Config) -> Result<Self> {
        Self::read(directory, Some(model))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its config.
    #[must_use]
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The updates, in the order of a forward pass.
    #[must_use]
    pub fn pairs(&self) -> &[AdapterPair] {
        &self.pairs
    }

    fn read(directory: &Path, model: Option<&Config>) -> Result<Self> {
        let config = AdapterConfig::read(directory)?;
        let path = directory.join(TENSORS);
        if !path.exists() && directory.join("adapter_model.bin").exists() {
            return Err(Error::Adapter { path: directory.to_owned(), problem: AdapterProblem::Pickled });
        }
        let file = SafetensorsFile::open(&path)?;
        let refuse = |problem| Error::Adapter { path: path.clone(), problem };
        let mut raw = raw_pairs(&file, &config).map_err(refuse)?;
        raw.sort_by_key(|pair| (pair.target.layer().unwrap_or(usize::MAX), pair.target));
        if let Some(model) = model {
            let count = model.num_hidden_layers;
            if let Some(index) = raw.iter().filter_map(|pair| pair.target.layer()).find(|&layer| layer >= count) {
                return Err(Error::NoSuch { what: "layer", index, count });
            }
        }
        let is_swapped = orientation(&raw, model).map_err(refuse)?;
        let pairs = raw.iter().map(|pair| pair.read(is_swapped, model)).collect::<Result<_, _>>().map_err(refuse)?;
        Ok(Self { path: directory.to_owned(), config, pairs })
    }
}

/// A pair as it lies in the file.
#[derive(Debug)]
struct RawPair<'a> {
    target: AdapterTarget,
    rank: usize,
    scaling: f64,
    experts: usize,
    a: TensorView<'a>,
    b: TensorView<'a>,
}

fn raw_pairs<'a>(file: &'a SafetensorsFile, config: &AdapterConfig) -> Result<Vec<RawPair<'a>>, AdapterProblem> {
    let mut slots: BTreeMap<Slot, [Option<TensorView<'a>>; 2]> = BTreeMap::new();
    for view in file.tensors() {
        let tensor = || view.name.to_owned();
        if view.name.contains(".experts.gate_up_projs.") || view.name.contains(".experts.down_projs.") {
            return Err(AdapterProblem::PerExpert { tensor: tensor() });
        }
        let (slot, half) = Slot::parse(view.name).ok_or_else(|| AdapterProblem::UnknownTensor { tensor: tensor() })?;
        if !view.dtype.is_weight() {
            return Err(AdapterProblem::Dtype { tensor: tensor(), found: view.dtype });
        }
        if view.shape.len() != 2 {
            return Err(AdapterProblem::Shape { tensor: tensor(), expected: "two dimensions".to_owned(), found: view.shape.to_vec() });
        }
        slots.entry(slot).or_default()[half as usize] = Some(view);
    }
    if slots.is_empty() {
        return Err(AdapterProblem::Empty);
    }
    let mut pairs: Vec<RawPair<'a>> = Vec::with_capacity(slots.len());
    for (&slot, halves) in &slots {
        let missing = |half| AdapterProblem::MissingHalf { tensor: slot.tensor_name(half) };
        let [a, b] = *halves;
        let (a, b) = (a.ok_or_else(|| missing(Half::A))?, b.ok_or_else(|| missing(Half::B))?);
        let target = target_of(slot, |other| slots.contains_key(&other), config)?;
        pairs.push(RawPair::new(target, a, b, config)?);
    }
    Ok(pairs)
}

/// The weight of a slot; what the outer wrapper of experts stands for depends on its surroundings.
fn target_of(slot: Slot, has: impl Fn(Slot) -> bool, config: &AdapterConfig) -> Result<AdapterTarget, AdapterProblem> {
    let layer = match slot {
        Slot::Plain(target) => return Ok(target),
        Slot::InnerExperts { layer } if has(Slot::OuterExperts { layer }) => {
            return Ok(AdapterTarget::Experts { layer, projection: Projection::GateUp });
        }
        // An inner wrapper is there only inside an outer one.
        Slot::InnerExperts { layer } => {
            return Err(AdapterProblem::MissingHalf { tensor: Slot::OuterExperts { layer }.tensor_name(Half::A) });
        }
        Slot::OuterExperts { layer } if has(Slot::InnerExperts { layer }) => {
            return Ok(AdapterTarget::Experts { layer, projection: Projection::Down });
        }
        Slot::OuterExperts { layer } => layer,
    };
    let targeted = Projection::ALL.map(|projection| config.targets_parameter(&projection.tensor_name(layer)));
    match targeted {
        [true, false] => Ok(AdapterTarget::Experts { layer, projection: Projection::GateUp }),
        [false, true] => Ok(AdapterTarget::Experts { layer, projection: Projection::Down }),
        [true, true] => Err(AdapterProblem::MissingHalf { tensor: Slot::InnerExperts { layer }.tensor_name(Half::A) }),
        [false, false] => Err(AdapterProblem::Ambiguous { layer }),
    }
}

impl<'a> RawPair<'a> {
    fn new(target: AdapterTarget, a: TensorView<'a>, b: TensorView<'a>, config: &AdapterConfig) -> Result<Self, AdapterProblem> {
        let (rank, scaling) = config.rank_and_scaling(target)?;
        let wrong = |view: TensorView<'_>, expected: String| AdapterProblem::Shape {
            tensor: view.name.to_owned(),
            expected,
            found: view.shape.to_vec(),
        };
        let is_experts = matches!(target, AdapterTarget::Experts { .. });
        let rows = a.shape[0];
        if rows == 0 || a.shape[1] == 0 {
            return Err(wrong(a, "a size that is not 0".to_owned()));
        }
        if is_experts && !rows.is_multiple_of(rank) {
            return Err(wrong(a, format!("a multiple of the rank {rank} as its first size")));
        }
        if !is_experts && rows != rank {
            return Err(wrong(a, format!("the rank {rank} as its first size")));
        }
        if b.shape[1] != rows || b.shape[0] == 0 {
            return Err(wrong(b, format!("{rows} as its second size, as A has rows")));
        }
        Ok(Self { target, rank, scaling, experts: if is_experts { rows / rank } else { 1 }, a, b })
    }

    /// Width of A and rows of B.
    fn widths(&self) -> [usize; 2] {
        [self.a.shape[1], self.b.shape[0]]
    }

    /// The pair in our layout, checked against the model where there is one.
    fn read(&self, is_swapped: bool, model: Option<&Config>) -> Result<AdapterPair, AdapterProblem> {
        let is_experts = matches!(self.target, AdapterTarget::Experts { .. });
        let is_swapped = is_swapped && is_experts;
        if let Some(model) = model {
            let [experts, input, output] = self.target.dims(model);
            let [a_width, b_rows] = if is_swapped { [output, input] } else { [input, output] };
            for (view, expected) in [(self.a, [experts * self.rank, a_width]), (self.b, [b_rows, experts * self.rank])] {
                if view.shape != expected {
                    let (tensor, found) = (view.name.to_owned(), view.shape.to_vec());
                    return Err(AdapterProblem::Shape { tensor, expected: format!("{expected:?}"), found });
                }
            }
        }
        let (a, b) = (values(self.a)?, values(self.b)?);
        let (target, rank, scaling, e) = (self.target, self.rank, self.scaling, self.experts);
        let [a_width, b_rows] = self.widths();
        let [input, output] = if is_swapped { [b_rows, a_width] } else { [a_width, b_rows] };
        Ok(match (is_experts, is_swapped) {
            (false, _) => AdapterPair { target, rank, scaling, a, a_shape: vec![rank, input], b, b_shape: vec![output, rank] },
            (true, swapped) => AdapterPair {
                target,
                rank,
                scaling,
                a: if swapped { a_from_swapped(&b, e, input, rank) } else { a.clone() },
                a_shape: vec![e, rank, input],
                b: if swapped { b_from_swapped(&a, e, output, rank) } else { b_from_peft(&b, e, output, rank) },
                b_shape: vec![e, output, rank],
            },
        })
    }
}

/// True when the experts' tensors are transposed; all are the same way round.
///
/// A square matrix cannot tell, so it follows the others.
fn orientation(pairs: &[RawPair<'_>], model: Option<&Config>) -> Result<bool, AdapterProblem> {
    let hidden = model.map(|model| model.hidden_size).or_else(|| pairs.iter().find_map(hidden_size));
    let mut verdict = None;
    for pair in pairs {
        let AdapterTarget::Experts { layer, projection } = pair.target else { continue };
        let sibling = pairs.iter().find(
            |other| matches!(other.target, AdapterTarget::Experts { layer: its, projection: which } if its == layer && which != projection),
        );
        let [a, b] = pair.widths();
        // What would be the width of the residual stream, if this pair is as usual, and if it is transposed.
        let (usual, swapped) = match projection {
            Projection::GateUp => (a, b),
            Projection::Down => (b, a),
        };
        let judged = match (model, hidden, sibling) {
            (Some(model), ..) => {
                let [input, output] = projection.dims(model);
                one_of([a, b] == [input, output], [a, b] == [output, input])
            }
            (None, _, Some(sibling)) => {
                let (gate_up, down) = if projection == Projection::GateUp { (pair, sibling) } else { (sibling, pair) };
                let ([a, b], [c, d]) = (gate_up.widths(), down.widths());
                let (is_usual, is_swapped) = (d == a && b == 2 * c, c == b && a == 2 * d);
                if !is_usual && !is_swapped {
                    let (tensor, found) = (down.a.name.to_owned(), down.a.shape.to_vec());
                    let expected = format!("one that fits the [{a}, {b}] of gate_up_proj");
                    return Err(AdapterProblem::Shape { tensor, expected, found });
                }
                one_of(is_usual, is_swapped)
            }
            (None, Some(hidden), None) => one_of(usual == hidden, swapped == hidden),
            (None, None, None) => None,
        };
        match (verdict, judged) {
            (Some(before), Some(now)) if before != now => return Err(AdapterProblem::MixedLayouts { layer }),
            (None, Some(now)) => verdict = Some(now),
            _ => {}
        }
    }
    Ok(verdict.unwrap_or(false))
}

/// Whether the second holds, when exactly one of the two does.
fn one_of(first: bool, second: bool) -> Option<bool> {
    (first != second).then_some(second)
}

/// Width of the residual stream, as far as a pair tells.
fn hidden_size(pair: &RawPair<'_>) -> Option<usize> {
    let [a, b] = pair.widths();
    match pair.target {
        AdapterTarget::Attention { projection: AttentionProjection::O, .. } => Some(b),
        AdapterTarget::Attention { .. } | AdapterTarget::Router { .. } | AdapterTarget::LmHead => Some(a),
        AdapterTarget::Experts { .. } => None,
    }
}

fn values(view: TensorView<'_>) -> Result<Vec<f32>, AdapterProblem> {
    let pairs = || view.bytes.chunks_exact(2).map(|bytes| [bytes[0], bytes[1]]);
    let values: Vec<f32> = match view.dtype {
        Dtype::F32 => view.bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect(),
        Dtype::F16 => pairs().map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        _ => pairs().map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(AdapterProblem::NotFinite { tensor: view.name.to_owned(), index }),
        None => Ok(values),
    }
}
