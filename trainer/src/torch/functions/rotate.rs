//! The rotation of heads by their positions.
//!
//! Letters: t tokens, h heads, k head width, p pairs (k / 2).

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::kernels::{self, RopeDirection};
use crate::torch::ops::{add, cast, concatenate, contiguous, mul, narrow, sub, without_graph};

/// Each head's elements i and i + k/2 turned by the angle of token and pair (halves, not neighbours), computed in f32.
///
/// # Shapes
/// `heads_thk` [t, h, k], `cos_t1p` and `sin_t1p` f32 [t, 1, p]; gives [t, h, k] in the type of the heads. No gradient reaches the angles.
///
/// # Errors
/// [`crate::Error::Torch`] on shapes that do not fit.
pub fn rotate(heads_thk: &Tensor, cos_t1p: &Tensor, sin_t1p: &Tensor) -> Result<Tensor> {
    if !kernels::can_take(&[heads_thk, cos_t1p, sin_t1p]) {
        return by_operators(heads_thk, cos_t1p, sin_t1p);
    }
    let output = without_graph(|| kernels::rope(heads_thk, cos_t1p, sin_t1p, RopeDirection::Forward))?;
    let saved = Rotate { cos_t1p: cos_t1p.shallow_clone(), sin_t1p: sin_t1p.shallow_clone() };
    Ok(attach(saved, &[heads_thk], vec![output])?.remove(0))
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
        let gradient_thk = contiguous(gradient_thk)?;
        Ok(vec![Some(kernels::rope(&gradient_thk, &self.cos_t1p, &self.sin_t1p, RopeDirection::Backward)?)])
    }
}
