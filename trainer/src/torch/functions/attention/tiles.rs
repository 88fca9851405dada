//! Attention by our tiles, on the CPU in f32 or bf16.

use std::ops::Range;

use half::bf16;
use tch::{Kind, TchError, Tensor};

use super::kernel::{Inputs, Kernel};
use crate::error::{Error, Result};
use crate::torch::host::{
    AttentionGradients, AttentionInputs, AttentionResults, AttentionTiles, Element, HeadShape, SpanRows, elements, elements_mut, floats,
    floats_mut,
};
use crate::torch::ops::{Named, cast, contiguous, empty};

/// The kernel of the CPU. Products and sums are in f32.
pub(super) struct Tiles;

impl Kernel for Tiles {
    fn forward(&self, inputs: &Inputs) -> Result<(Tensor, Tensor)> {
        let query = &inputs.query_thk;
        let mut output_thk = empty(&query.size(), query.kind(), query.device())?;
        let mut log_sums_ht = empty(&[inputs.heads, query.size()[0]], Kind::Float, query.device())?;
        let tiles = tiles(inputs)?;
        let mut workspace = workspace(tiles.forward_workspace(), query)?;
        let run = if query.kind() == Kind::BFloat16 { forward::<bf16> } else { forward::<f32> };
        run(&tiles, inputs, [&mut output_thk, &mut log_sums_ht, &mut workspace]).named("sink_attention", &[query, &inputs.key_ngk])?;
        Ok((output_thk, log_sums_ht))
    }

    fn backward(&self, inputs: &Inputs, gradient_thk: &Tensor, output_thk: &Tensor, log_sums_ht: &Tensor) -> Result<[Tensor; 3]> {
        let query = &inputs.query_thk;
        let [gradient_thk, output_thk, log_sums_ht] =
            [contiguous(&cast(gradient_thk, query.kind())?)?, contiguous(output_thk)?, contiguous(log_sums_ht)?];
        // Spans cover all rows, so every element is written.
        let like = |tensor: &Tensor| empty(&tensor.size(), tensor.kind(), tensor.device());
        let mut gradients = [like(query)?, like(&inputs.key_ngk)?, like(&inputs.value_ngk)?];
        let tiles = tiles(inputs)?;
        let mut workspace = workspace(tiles.backward_workspace(), query)?;
        let run = if query.kind() == Kind::BFloat16 { backward::<bf16> } else { backward::<f32> };
        run(&tiles, inputs, [&gradient_thk, &output_thk, &log_sums_ht], &mut gradients, &mut workspace)
            .named("sink_attention backward", &[query, &inputs.key_ngk])?;
        Ok(gradients)
    }
}

fn forward<T: Element>(tiles: &AttentionTiles, inputs: &Inputs, results: [&mut Tensor; 3]) -> Result<(), TchError> {
    let [output_thk, log_sums_ht, workspace] = results;
    tiles.forward::<T>(slices(inputs)?, elements_mut(output_thk)?, floats_mut(log_sums_ht)?, floats_mut(workspace)?);
    Ok(())
}

fn backward<T: Element>(
    tiles: &AttentionTiles,
    inputs: &Inputs,
    results: [&Tensor; 3],
    gradients: &mut [Tensor; 3],
    workspace: &mut Tensor,
) -> Result<(), TchError> {
    let [gradient_thk, output_thk, log_sums_ht] = results;
    let results = AttentionResults { gradient: elements(gradient_thk)?, output: elements(output_thk)?, log_sums: floats(log_sums_ht)? };
    let [query, key, value] = gradients;
    let gradients = AttentionGradients { query: elements_mut(query)?, key: elements_mut(key)?, value: elements_mut(value)? };
    tiles.backward::<T>(slices(inputs)?, results, gradients, floats_mut(workspace)?);
    Ok(())
}

fn slices<T: Element>(inputs: &Inputs) -> Result<AttentionInputs<'_, T>, TchError> {
    Ok(AttentionInputs { query: elements(&inputs.query_thk)?, key: elements(&inputs.key_ngk)?, value: elements(&inputs.value_ngk)? })
}

fn tiles(inputs: &Inputs) -> Result<AttentionTiles> {
    let size = |size: i64| {
        let found = inputs.query_thk.size();
        usize::try_from(size).map_err(|_| Error::Shape { operation: "sink_attention", tensor: "query", expected: "positive sizes", found })
    };
    let rows = |range: &Range<i64>| Ok::<_, Error>(size(range.start)?..size(range.end)?);
    let spans = inputs.spans.iter().map(|span| Ok(SpanRows { queries: rows(&span.queries)?, keys: rows(&span.keys)? }));
    let shape = HeadShape { heads: size(inputs.heads)?, groups: size(inputs.groups)?, width: size(inputs.width)? };
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    Ok(AttentionTiles::new(spans.collect::<Result<_>>()?, inputs.window.map(size).transpose()?, shape, threads))
}

/// `floats` of f32, unwritten, which a tensor holds so that the allocation may fail.
fn workspace(floats: usize, query: &Tensor) -> Result<Tensor> {
    empty(&[i64::try_from(floats).unwrap_or(i64::MAX)], Kind::Float, query.device())
}
