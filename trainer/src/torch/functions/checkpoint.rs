//! Activation checkpointing: keep a block's input, compute the block again in backward.

use tch::Tensor;

use crate::error::Result;
use crate::torch::autograd::{Function, attach, backward};
use crate::torch::offload::Offloaded;
use crate::torch::ops::{Named, without_graph, zeros};

/// Where the input of a block waits for backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKept {
    /// On its device.
    OnDevice,
    /// In host memory.
    OnHost,
}

/// `block(input)` without keeping what it computes on the way; backward runs `block` once more, with a graph.
///
/// The block must give the same result both times. Parameters that it captures receive their gradients as usual.
///
/// # Errors
/// Those of `block`, now or in backward.
pub fn checkpoint(input: &Tensor, kept: InputKept, block: impl Fn(&Tensor) -> Result<Tensor> + 'static) -> Result<Tensor> {
    let output = without_graph(|| block(input))?;
    // The block's parameters want gradients even where the input has none (a frozen embedding), so there must be an edge.
    let anchor = zeros(&[1], output.kind(), output.device())?.f_set_requires_grad(true).named("checkpoint", &[])?;
    let saved = match kept {
        InputKept::OnDevice => Saved::OnDevice(input.detach()),
        InputKept::OnHost => Saved::OnHost(Offloaded::new(input)?),
    };
    Ok(attach(Checkpoint { input: saved, block }, &[input, &anchor], vec![output])?.remove(0))
}

enum Saved {
    OnDevice(Tensor),
    OnHost(Offloaded),
}

struct Checkpoint<Block> {
    input: Saved,
    block: Block,
}

impl<Block: Fn(&Tensor) -> Result<Tensor> + 'static> Function for Checkpoint<Block> {
    fn backward(&mut self, output_gradients: &[Option<Tensor>], needs_gradient: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient) = &output_gradients[0] else { return Ok(vec![None, None]) };
        let input = match &self.input {
            Saved::OnDevice(input) => input.detach(),
            Saved::OnHost(input) => input.restore()?.detach(),
        };
        let input = input.f_set_requires_grad(needs_gradient[0]).named("checkpoint", &[&input])?;
        let output = tch::with_grad(|| (self.block)(&input))?;
        if output.requires_grad() {
            backward(&output, gradient)?;
        }
        let input_gradient = match needs_gradient[0] {
            true => Some(input.f_grad().named("checkpoint", &[&input])?),
            false => None,
        };
        Ok(vec![input_gradient, None])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::functions::testing::{assert_same_gradients, random};

    #[test]
    fn gradients_are_those_without_checkpointing() {
        let block = |input: &Tensor, weight: &Tensor| (input * weight).tanh() * weight;
        for kept in [InputKept::OnDevice, InputKept::OnHost] {
            assert_same_gradients(
                &[random(&[3, 4]), random(&[4])],
                |inputs| {
                    let weight = inputs[1].shallow_clone();
                    checkpoint(&inputs[0], kept, move |input| Ok(block(input, &weight))).unwrap()
                },
                |inputs| block(&inputs[0], &inputs[1]),
            );
        }
    }

    #[test]
    fn parameters_get_their_gradient_where_the_input_has_none() {
        let (input, weight) = (random(&[3]).detach(), random(&[3]));
        let captured = weight.shallow_clone();
        let output = checkpoint(&input, InputKept::OnDevice, move |input| Ok(input * &captured)).unwrap();
        output.sum(None::<tch::Kind>).backward();
        assert!(weight.grad().allclose(&input, 1e-9, 1e-9, false));
    }
}
