//! The root mean square norm before each half of a block, and before the head.

use tch::Tensor;

use crate::error::Result;
use crate::torch::functions::rms_norm;

/// Norm with a learned weight.
#[derive(Debug)]
pub struct RmsNorm {
    /// [d].
    pub weight: Tensor,
    /// Added to the mean square.
    pub epsilon: f64,
}

impl RmsNorm {
    /// # Shapes
    /// `hidden_td` [t, d]; gives the same.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn forward(&self, hidden_td: &Tensor) -> Result<Tensor> {
        rms_norm(hidden_td, &self.weight, self.epsilon)
    }
}
