//! Models over the samples, one model at a time: of the reference only what a comparison needs stays in memory.
//!
//! Letters: n counted tokens of a pass, d model width, v vocabulary.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::layers::EvaluatedModel;
use super::routing::{AgreementCounts, RouterChoices};
use super::tokens::{NotFinite, TokenFigures, figures};
use crate::data::{Sample, pack};
use crate::error::{Error, Result};
use crate::loss::Batch;
use crate::model::linear::{Linear, LowRank};
use crate::torch::ops::{cast, index_select, narrow, to_device, to_i64_vec, without_graph};

/// Tokens that run together, unless a single sample is longer.
pub const PASS_TOKENS: usize = 4096;

/// Elements of the logits of one model that exist at a time.
const CHUNK_ELEMENTS: usize = 32 << 20;

/// The samples, in passes.
#[derive(Debug)]
pub(super) struct Corpus<'a> {
    samples: &'a [Sample],
    /// Indices of the samples of each pass; the longest come first, so that memory runs out at once or not at all.
    passes: Vec<Vec<usize>>,
}

impl<'a> Corpus<'a> {
    pub(super) fn new(samples: &'a [Sample]) -> Self {
        Self::with_passes_of(samples, PASS_TOKENS)
    }

    fn with_passes_of(samples: &'a [Sample], pass_tokens: usize) -> Self {
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.ids.len()).collect();
        Self { samples, passes: pack(&lengths, pass_tokens) }
    }

    /// The samples in the order in which they are run.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &'a Sample> {
        self.passes.iter().flat_map(|pass| self.of_pass(pass))
    }

    fn of_pass(&self, pass: &[usize]) -> impl Iterator<Item = &'a Sample> + Clone {
        pass.iter().map(|&index| &self.samples[index])
    }

    /// Runs `model` and gives each pass to `each`; `progress` is called with the tokens done so far.
    fn run(
        &self,
        model: &EvaluatedModel<'_>,
        progress: &mut dyn FnMut(usize),
        mut each: impl FnMut(usize, Pass) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        progress(done);
        for (index, pass) in self.passes.iter().enumerate() {
            let count = self.of_pass(pass).map(|sample| sample.ids.len()).sum::<usize>();
            let batch = Batch::new(self.of_pass(pass), model.frame())?;
            let (hidden_td, routings) = model.hidden_with_routing(&batch.tokens, &mut |layer, all| progress(done + count * layer / all))?;
            let choices = RouterChoices::of(&routings, &to_i64_vec(&batch.trained_rows_n)?)?;
            each(index, Pass { hidden_nd: index_select(&hidden_td, 0, &batch.trained_rows_n)?, targets_n: batch.targets_n, choices })?;
            done += count;
            progress(done);
        }
        Ok(())
    }

    /// The sample in which counted token `row` of a pass lies.
    fn place(&self, pass: usize, row: usize) -> String {
        let mut left = row;
        for sample in self.of_pass(&self.passes[pass]) {
            let count = sample.trained.total();
            if left < count {
                return sample.origin.to_string();
            }
            left -= count;
        }
        String::new()
    }
}

/// What a model makes of the positions that predict the counted tokens of a pass.
#[derive(Debug)]
struct Pass {
    hidden_nd: Tensor,
    targets_n: Tensor,
    choices: RouterChoices,
}

/// What is kept of a reference that was run.
#[derive(Debug)]
pub(super) struct Reference<'a> {
    path: &'a Path,
    /// Hidden states before the head in the type they were computed in, on the host, and the routers' choices, pass by pass.
    passes: Vec<(Tensor, RouterChoices)>,
    head: Linear,
}

impl<'a> Reference<'a> {
    /// Runs the reference and lets go of all of it but the head.
    pub(super) fn run(path: &'a Path, model: EvaluatedModel<'_>, corpus: &Corpus<'_>, progress: &mut dyn FnMut(usize)) -> Result<Self> {
        without_graph(|| {
            let mut passes = Vec::new();
            corpus.run(&model, progress, |_, pass| {
                passes.push((to_device(&pass.hidden_nd, Device::Cpu)?, pass.choices));
                Ok(())
            })?;
            Ok(Self { path, passes, head: in_f32(&model.frame().head)? })
        })
    }
}

/// Runs the model and compares it with the reference, chunk by chunk: the figures of each counted token, in the corpus' order, and the
/// agreement of the routers, where `routers_compare`.
pub(super) fn run_model(
    path: &Path,
    model: &EvaluatedModel<'_>,
    reference: Option<&Reference<'_>>,
    routers_compare: bool,
    corpus: &Corpus<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<(Vec<TokenFigures>, AgreementCounts)> {
    without_graph(|| {
        let head = in_f32(&model.frame().head)?;
        let mut tokens = Vec::new();
        let mut agreement = AgreementCounts::default();
        corpus.run(model, progress, |index, pass| {
            let kept = reference.map(|reference| (&reference.head, &reference.passes[index]));
            if let (Some((_, (_, choices))), true) = (kept, routers_compare) {
                agreement.add(choices, &pass.choices);
            }
            let reference_side = kept.map(|(head, (hidden_nd, _))| (head, hidden_nd));
            let found = pass_figures(&pass, &head, reference_side)?;
            tokens.extend(found.map_err(|NotFinite { is_reference, row }| Error::NotFiniteLogit {
                model: if is_reference { reference.map_or(path, |reference| reference.path) } else { path }.to_path_buf(),
                place: corpus.place(index, row),
            })?);
            Ok(())
        })?;
        Ok((tokens, agreement))
    })
}

/// The figures of a pass: at no time are there more logits than a chunk's.
fn pass_figures(pass: &Pass, head: &Linear, reference: Option<(&Linear, &Tensor)>) -> Result<Result<Vec<TokenFigures>, NotFinite>> {
    let count = pass.targets_n.numel();
    let vocabulary = usize::try_from(head.weight.size()[0]).unwrap_or(usize::MAX);
    let chunk = (CHUNK_ELEMENTS / vocabulary.max(1)).max(1);
    let mut all = Vec::with_capacity(count);
    for first in (0..count).step_by(chunk) {
        let rows = |tensor: &Tensor| narrow(tensor, 0, integer(first), integer(chunk.min(count - first)));
        let logits = |head: &Linear, hidden_nd: &Tensor| {
            let hidden_nd = to_device(&rows(hidden_nd)?, head.weight.device())?;
            head.forward(&cast(&hidden_nd, Kind::Float)?)
        };
        let reference_nv = reference.map(|(head, hidden_nd)| logits(head, hidden_nd)).transpose()?;
        match figures(&logits(head, &pass.hidden_nd)?, reference_nv.as_ref(), &rows(&pass.targets_n)?)? {
            Ok(found) => all.extend(found),
            Err(NotFinite { is_reference, row }) => return Ok(Err(NotFinite { is_reference, row: first + row })),
        }
    }
    Ok(Ok(all))
}

/// The head for logits in f32, whatever it is held in.
fn in_f32(head: &Linear) -> Result<Linear> {
    let update =
        head.update.as_ref().map(|update| LowRank { a: update.a.shallow_clone(), b: update.b.shallow_clone(), scaling: update.scaling });
    Ok(Linear { weight: cast(&head.weight, Kind::Float)?, bias: None, update })
}

fn integer(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use ft_formats::checkpoint::{Checkpoint, Config, ExpertStorage, write_random_model};
    use ft_formats::dtype::Dtype;
    use tch::Kind;

    use super::*;
    use crate::data::{SampleOrigin, TrainedTokens};
    use crate::model::Transformer;
    use crate::model::weights::{Placement, load};

    fn model(seed: u64, kind: Kind) -> Transformer {
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
        write_random_model(&path, &config, ExpertStorage::Float(Dtype::Bf16), seed, &mut |_, _| {}).unwrap();
        load(&Checkpoint::open(&path).unwrap(), Placement::frozen(kind, Device::Cpu), &mut |_| {}).unwrap()
    }

    fn whole(seed: u64, kind: Kind) -> EvaluatedModel<'static> {
        EvaluatedModel::whole(model(seed, kind))
    }

    fn samples() -> Vec<Sample> {
        [50u32, 3, 31, 20]
            .into_iter()
            .zip(1..)
            .map(|(length, line)| {
                let ids = (0..length).map(|index| (index * 7919 + length * 104_729) % 517).collect();
                let weights: Vec<f32> = (0..length).map(|index| if index % 3 == 0 { 0.0 } else { 1.0 }).collect();
                let text = weights.iter().filter(|weight| **weight != 0.0).count();
                Sample {
                    ids,
                    weights,
                    origin: SampleOrigin { file: "d.jsonl".into(), line, turn: None },
                    trained: TrainedTokens { text, ..TrainedTokens::default() },
                    spans: Vec::new(),
                }
            })
            .collect()
    }

    /// Figures against a reference, by the line of their sample.
    fn compared(samples: &[Sample], pass_tokens: usize, kind: Kind) -> (Vec<TokenFigures>, AgreementCounts) {
        let corpus = Corpus::with_passes_of(samples, pass_tokens);
        let reference = Reference::run(Path::new("r"), whole(3, kind), &corpus, &mut |_| {}).unwrap();
        let mut done = 0;
        let (tokens, agreement) =
            run_model(Path::new("m"), &whole(4, kind), Some(&reference), true, &corpus, &mut |tokens| done = tokens).unwrap();
        assert_eq!(done, samples.iter().map(|sample| sample.ids.len()).sum::<usize>());
        let lines = corpus.in_order().flat_map(|sample| std::iter::repeat_n(sample.origin.line, sample.trained.total()));
        let mut placed: Vec<(usize, TokenFigures)> = lines.zip(tokens).collect();
        placed.sort_by_key(|(line, _)| *line);
        (placed.into_iter().map(|(_, token)| token).collect(), agreement)
    }

    #[test]
    fn packing_changes_no_figure() {
        let samples = samples();
        let (packed, packed_routers) = compared(&samples, 4096, Kind::Float);
        let (alone, routers) = compared(&samples, 1, Kind::Float);
        assert_eq!(packed.len(), samples.iter().map(|sample| sample.trained.total()).sum::<usize>());
        for (packed, alone) in packed.iter().zip(&alone) {
            let (left, right) = (packed.against.unwrap(), alone.against.unwrap());
            assert!((packed.loss - alone.loss).abs() < 1e-4 * alone.loss, "{packed:?} {alone:?}");
            assert!((left.kl_divergence - right.kl_divergence).abs() < 1e-4 * right.kl_divergence, "{packed:?} {alone:?}");
            assert!(right.kl_divergence > 0.1, "{alone:?}");
        }
        assert_eq!(packed_routers.finish(), routers.finish());
        assert!(routers.finish().agreement_fraction < 0.9);
    }

    #[test]
    fn layer_by_layer_nothing_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let config = Config { vocab_size: 517, ..Config::nano() };
        write_random_model(&path, &config, ExpertStorage::Mxfp4, 8, &mut |_, _| {}).unwrap();
        let (checkpoint, placement) = (Checkpoint::open(&path).unwrap(), Placement::frozen(Kind::Float, Device::Cpu));
        let samples = samples();
        let corpus = Corpus::with_passes_of(&samples, 60);
        let run = |model: &EvaluatedModel<'_>| {
            let mut seen = Vec::new();
            let (tokens, _) = run_model(&path, model, None, true, &corpus, &mut |tokens| seen.push(tokens)).unwrap();
            assert!(seen.is_sorted() && seen.last() == Some(&104), "{seen:?}");
            (tokens, seen.len())
        };
        let (whole, few) = run(&EvaluatedModel::whole(load(&checkpoint, placement, &mut |_| {}).unwrap()));
        let (by_layer, many) = run(&EvaluatedModel::by_layer(&checkpoint, placement).unwrap());
        assert_eq!(whole, by_layer);
        assert_eq!(many, few + corpus.passes.len() * config.num_hidden_layers);
    }

    #[test]
    fn a_model_equals_itself_in_every_type() {
        let samples = samples();
        let corpus = Corpus::new(&samples);
        for kind in [Kind::Float, Kind::BFloat16] {
            let reference = Reference::run(Path::new("r"), whole(5, kind), &corpus, &mut |_| {}).unwrap();
            let (tokens, agreement) = run_model(Path::new("m"), &whole(5, kind), Some(&reference), true, &corpus, &mut |_| {}).unwrap();
            for token in tokens {
                let against = token.against.unwrap();
                assert_eq!((against.kl_divergence, against.reference_loss, against.has_same_top), (0.0, token.loss, true));
            }
            assert_eq!(agreement.finish().same_set_fraction, 1.0);
        }
    }

    #[test]
    fn a_logit_that_is_no_number_names_model_and_sample() {
        let samples = samples();
        let corpus = Corpus::new(&samples);
        let mut spoiled = model(6, Kind::Float);
        spoiled.head.weight = cast(&(&spoiled.head.weight * 1e38), Kind::Float).unwrap();
        let spoiled = EvaluatedModel::whole(spoiled);
        let error = run_model(Path::new("models/m"), &spoiled, None, true, &corpus, &mut |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "models/m gives a logit that is not a finite number for d.jsonl:1");
        let reference = Reference::run(Path::new("models/r"), spoiled, &corpus, &mut |_| {}).unwrap();
        let good = whole(6, Kind::Float);
        let error = run_model(Path::new("models/m"), &good, Some(&reference), true, &corpus, &mut |_| {}).unwrap_err();
        assert!(error.to_string().starts_with("models/r gives"), "{error}");
        assert_eq!(corpus.place(0, 34), "d.jsonl:3");
    }
}
