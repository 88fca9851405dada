//! Linear layers, and the low-rank updates that training adds to them.

use tch::{Device, Tensor};

use crate::error::Result;
use crate::torch::functions::{Groups, LogitTerm, grouped_matmul};
use crate::torch::ops::{add, cast, linear, pad, scale, transpose};

/// Grouped products on a GPU take rows of whole 16 bytes: ranks that are multiples of this, in 16 bits or more.
const RANK_MULTIPLE: i64 = 8;

/// A trainable update `scaling * B A` of a weight, held in f32 and computed with in the type of its input.
#[derive(Debug)]
pub struct LowRank {
    /// [rank, in], or [e, rank, in] for experts.
    pub a: Tensor,
    /// [out, rank], or [e, out, rank] for experts.
    pub b: Tensor,
    /// Alpha over rank, or over its root.
    pub scaling: f64,
}

impl LowRank {
    /// `scaling * (input A^T) B^T`.
    ///
    /// # Shapes
    /// `input` [t, in]; gives [t, out].
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn delta(&self, input: &Tensor) -> Result<Tensor> {
        linear(&self.narrow(input)?, &cast(&self.b, input.kind())?, None)
    }

    /// `scaling * input A^T`: the input at the rank's width.
    fn narrow(&self, input: &Tensor) -> Result<Tensor> {
        scale(&linear(input, &cast(&self.a, input.kind())?, None)?, self.scaling)
    }

    /// The same for rows sorted by expert, each with its expert's halves.
    ///
    /// # Shapes
    /// `input_ri` [r, in]; gives [r, out].
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn grouped_delta(&self, input_ri: &Tensor, groups: &Groups) -> Result<Tensor> {
        let (mut a, mut b) = (cast(&self.a, input_ri.kind())?, cast(&self.b, input_ri.kind())?);
        let missing = (RANK_MULTIPLE - self.a.size()[1] % RANK_MULTIPLE) % RANK_MULTIPLE;
        if let Device::Cuda(_) = input_ri.device()
            && missing > 0
        {
            // A rank of zeros adds nothing.
            (a, b) = (pad(&a, &[0, 0, 0, missing])?, pad(&b, &[0, missing])?);
        }
        let (a, b) = (transpose(&a, 1, 2)?, transpose(&b, 1, 2)?);
        let narrow = scale(&grouped_matmul(input_ri, &a, None, groups)?, self.scaling)?;
        grouped_matmul(&narrow, &b, None, groups)
    }
}

/// `x W^T + b`, plus a low-rank update where one is trained.
#[derive(Debug)]
pub struct Linear {
    /// [out, in].
    pub weight: Tensor,
    /// [out].
    pub bias: Option<Tensor>,
    /// The trained update.
    pub update: Option<LowRank>,
}

impl Linear {
    /// # Shapes
    /// `input` [t, in]; gives [t, out] in the type of the input.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let kind = input.kind();
        let bias = self.bias.as_ref().map(|bias| cast(bias, kind)).transpose()?;
        let output = linear(input, &cast(&self.weight, kind)?, bias.as_ref())?;
        match &self.update {
            Some(update) => add(&output, &update.delta(input)?),
            None => Ok(output),
        }
    }

    /// The layer as summands of logits: the weight, and the update at its rank.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn logit_terms(&self, input_nd: &Tensor) -> Result<Vec<LogitTerm>> {
        let mut terms = vec![LogitTerm { input_ni: input_nd.shallow_clone(), weight_vi: self.weight.shallow_clone() }];
        if let Some(update) = &self.update {
            terms.push(LogitTerm { input_ni: update.narrow(input_nd)?, weight_vi: update.b.shallow_clone() });
        }
        Ok(terms)
    }
}
