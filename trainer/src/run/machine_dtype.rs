//! The type that a machine computes a recipe in.

use super::plan::Machine;
use crate::recipe::{Recipe, TrainingDtype};
use crate::torch::device;

/// `recipe` as `machine` runs it, and what the user should know of the difference.
///
/// A CPU without AVX-512 has no products of bf16 matrices worth the name: libtorch multiplies them number by number, hundreds of times slower.
/// The same run in f32 takes twice the memory and is more exact.
#[must_use]
pub fn for_machine(recipe: &Recipe, machine: &Machine) -> (Recipe, Option<String>) {
    let mut recipe = recipe.clone();
    if recipe.training.dtype != TrainingDtype::Bf16 || !machine.is_cpu() || device::has_fast_bf16() {
        return (recipe, None);
    }
    recipe.training.dtype = TrainingDtype::F32;
    let words = "this CPU has no AVX-512, and bf16 products are very slow without it: the run computes in f32".to_owned();
    (recipe, Some(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cpu_that_is_slow_in_bf16_changes_the_type() {
        let mut recipe = Recipe::default();
        let here = Machine { device: "cpu".to_owned(), ..Machine::with_device_memory(1) };
        let (resolved, warning) = for_machine(&recipe, &here);
        assert_eq!(resolved.training.dtype == TrainingDtype::Bf16, device::has_fast_bf16());
        assert_eq!(warning.is_none(), device::has_fast_bf16());
        assert_eq!(for_machine(&recipe, &Machine::with_device_memory(1)), (recipe.clone(), None));
        recipe.training.dtype = TrainingDtype::F32;
        assert_eq!(for_machine(&recipe, &here), (recipe, None));
    }
}
