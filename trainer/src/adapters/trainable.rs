//! A tensor that the optimizer may change.

use tch::Tensor;

use crate::error::Result;
use crate::model::Transformer;
use crate::torch::ops::Named;

/// A leaf of the graph, by the name under which checkpoints keep it.
#[derive(Debug)]
pub struct Trainable {
    /// Name in the checkpoint, or of the adapted weight with `.lora_A` or `.lora_B`.
    pub name: String,
    /// The leaf, f32, shared with the model.
    pub tensor: Tensor,
}

/// Makes every weight of the model trainable; they must have been loaded in f32.
///
/// # Errors
/// [`crate::Error::Torch`] when a weight cannot take a gradient.
pub fn train_everything(model: &mut Transformer) -> Result<Vec<Trainable>> {
    model
        .parameters_mut()
        .into_iter()
        .map(|(name, parameter)| {
            *parameter = parameter.f_set_requires_grad(true).named("train_everything", &[parameter])?;
            Ok(Trainable { name, tensor: parameter.shallow_clone() })
        })
        .collect()
}
