//! The rotation of heads by their positions.
//!
//! Letters: t tokens, h heads, k head width, p pairs (k / 2).

use half::bf16;
use tch::{Kind, TchError, Tensor};

use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::host::{Element, elements, elements_mut, floats, is_host, turn_heads};
use crate::torch::kernels::{self, RopeDirection};
use crate::torch::ops::{Named, add, cast, concatenate, contiguous, empty, mul, narrow, sub, without_graph};

/// Each head's elements i and i + k/2 turned by the angle of token and pair (halves, not neighbours), computed in f32.
///
/// # Shapes
/// `heads_thk` [t, h, k], `cos_t1p` and `sin_t1p` f32 [t, 1, p]; gives [t, h, k] in the type of the heads. No gradient reaches the angles.
///
/// # Errors
/// [`crate::Error::Torch`] on shapes that do not fit.
pub fn rotate(heads_thk: &Tensor, cos_t1p: &Tensor, sin_t1p: &Tensor) -> Result<Tensor> {
    let Some(output) = without_graph(|| turned(heads_thk, cos_t1p, sin_t1p, RopeDirection::Forward))? else {
        return by_operators(heads_thk, cos_t1p, sin_t1p);
    };
    let saved = Rotate { cos_t1p: cos_t1p.shallow_clone(), sin_t1p: sin_t1p.shallow_clone() };
    Ok(attach(saved, &[heads_thk], vec![output])?.remove(0))
}

/// The kernel's result, where there is one for these tensors.
fn turned(heads_thk: &Tensor, cos_t1p: &Tensor, sin_t1p: &Tensor, direction: RopeDirection) -> Result<Option<Tensor>> {
    if kernels::can_take(&[heads_thk, cos_t1p, sin_t1p]) {
        return kernels::rope(heads_thk, cos_t1p, sin_t1p, direction).map(Some);
    }
    let kernel = match heads_thk.kind() {
        Kind::Float => turned_on_host::<f32>,
        Kind::BFloat16 => turned_on_host::<bf16>,
        _ => return Ok(None),
    };
    if ![heads_thk, cos_t1p, sin_t1p].into_iter().all(is_host) || cos_t1p.numel() == 0 {
        return Ok(None);
    }
    let mut output_thk = empty(&heads_thk.size(), heads_thk.kind(), heads_thk.device())?;
    kernel(heads_thk, cos_t1p, sin_t1p, direction, &mut output_thk).named("rotate", &[heads_thk, cos_t1p])?;
    Ok(Some(output_thk))
}

fn turned_on_host<T: Element>(
    heads_thk: &Tensor,
    cos_t1p: &Tensor,
    sin_t1p: &Tensor,
    direction: RopeDirection,
    output_thk: &mut Tensor,
) -> Result<(), TchError> {
    let tokens = heads_thk.size().first().map_or(0, |&tokens| usize::try_from(tokens).unwrap_or(0));
    turn_heads::<T>(elements(heads_thk)?, floats(cos_t1p)?, floats(sin_t1p)?, tokens, direction, elements_mut(output_thk)?);
    Ok(())
}

/// The same with libtorch's operators and its graph.
fn by_operators(heads_thk: &Tensor, cos_t1p: &Tensor, sin_t1p: &Tensor) -> Result<Tensor> {
    let half = heads_thk.size().last().copied().unwrap_or(0) / 2;
    let first = cast(&narrow(heads_thk, -1, 0, half)?, Kind::Float)?;
    let second = cast(&narrow(heads_thk, -1, half, half)?, Kind::Float)?;
    let rotated_first = sub(&mul(&first, cos_t1p)?, &mul(&second, sin_t1p)?)?;
    let rotated_second = add(&mul(&second, cos_t1p)?, &mul(&first, sin_t1p)?)?;
    cast(&concatenate(&[&rotated_first, &rotated_second], -1)?, heads_thk.kind())
}

struct Rotate {
    cos_t1p: Tensor,
    sin_t1p: Tensor,
}

impl Function for Rotate {
    /// The transposed rotation.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient_thk) = &output_gradients[0] else { return Ok(vec![None]) };
        Ok(vec![turned(&contiguous(gradient_thk)?, &self.cos_t1p, &self.sin_t1p, RopeDirection::Backward)?])
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_kernel_gives_what_the_operators_give() {
        tch::manual_seed(4);
        let [cos, sin] = [(); 2].map(|()| Tensor::randn([7, 1, 5], (Kind::Float, Device::Cpu)));
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 2e-2)] {
            let heads = Tensor::randn([7, 3, 10], (Kind::Float, Device::Cpu)).to_kind(kind);
            let [found, expected] = [rotate, by_operators].map(|rotate| {
                let heads = heads.copy().set_requires_grad(true);
                let output = rotate(&heads, &cos, &sin).unwrap();
                output.square().sum(None::<Kind>).backward();
                [output.detach(), heads.grad()]
            });
            for (found, expected) in found.iter().zip(&expected) {
                assert!(found.allclose(expected, tolerance, tolerance, false), "{kind:?}");
            }
        }
    }
}
