//! What a run leaves on disk.

use serde::Serialize;

use crate::optimizer::state_bytes;
use crate::recipe::Recipe;

/// Disk space of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Bytes of one checkpoint: what is trained, in f32, and the optimizer's state.
    pub checkpoint_bytes: u64,
    /// Checkpoints that there are at a time: those kept, and one more while it is written.
    pub checkpoints: u64,
    /// Bytes of the adapter or the model at the end.
    pub result_bytes: u64,
    /// All of that.
    pub needed_bytes: u64,
    /// Bytes of the model that `ft merge` would make of base and adapter, its experts stored as they are. It is not counted in: the merge may
    /// go elsewhere.
    pub merged_model_bytes: Option<u64>,
}

/// The disk space of `steps` steps of `recipe`, which train tensors of `leaves` elements of a model of `model_bytes` on disk.
pub(super) fn disk(recipe: &Recipe, leaves: &[u64], steps: usize, model_bytes: u64) -> Disk {
    let trained: u64 = leaves.iter().sum();
    let checkpoint_bytes = trained * 4 + state_bytes(recipe.optimizer.kind, leaves);
    let written = match recipe.checkpoint.every_steps {
        0 => 1,
        every => steps.div_ceil(every).max(1),
    };
    let checkpoints = written.min(recipe.checkpoint.keep.saturating_add(1)) as u64;
    let element = if recipe.training.dtype == crate::recipe::TrainingDtype::F32 { 4 } else { 2 };
    // An adapter is written in f32, a model in the type of the activations.
    let (result_bytes, merged_model_bytes) = match recipe.lora() {
        Some(_) => (trained * 4, Some(model_bytes)),
        None => (trained * element, None),
    };
    Disk {
        checkpoint_bytes,
        checkpoints,
        result_bytes,
        needed_bytes: checkpoint_bytes.saturating_mul(checkpoints).saturating_add(result_bytes),
        merged_model_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Full, OptimizerKind};

    #[test]
    fn one_checkpoint_more_than_is_kept_exists_while_it_is_written() {
        let mut recipe = Recipe { lora: Some(crate::recipe::Lora::default()), ..Recipe::default() };
        (recipe.checkpoint.every_steps, recipe.checkpoint.keep) = (10, 2);
        let leaves = [100, 5000];
        let found = disk(&recipe, &leaves, 35, 7);
        assert_eq!((found.checkpoint_bytes, found.checkpoints, found.result_bytes), (5100 * 12, 3, 5100 * 4));
        assert_eq!((found.needed_bytes, found.merged_model_bytes), (5100 * 40, Some(7)));
        // Fewer are written than could be kept.
        assert_eq!(disk(&recipe, &leaves, 11, 7).checkpoints, 2);
        recipe.checkpoint.every_steps = 0;
        assert_eq!(disk(&recipe, &leaves, 35, 7).checkpoints, 1);
        recipe.full = Some(Full {});
        recipe.optimizer.kind = OptimizerKind::Adamw8bit;
        let found = disk(&recipe, &leaves, 35, 7);
        assert_eq!((found.result_bytes, found.merged_model_bytes), (5100 * 2, None));
        assert_eq!(found.checkpoint_bytes, 5100 * 4 + 800 + 2 * 5000 + 8 * 20);
    }
}
