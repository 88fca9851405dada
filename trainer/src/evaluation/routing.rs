//! How far the routers of two models send tokens to the same experts.

use serde::Serialize;

use super::figures::fraction;
use super::statistics::Mean;
use crate::error::Result;
use crate::model::router::Routing;
use ft_formats::checkpoint::Config;

/// The experts that each layer chose, at some positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RouterChoices {
    num_active: usize,
    /// For each layer the experts of each position, position by position.
    layers: Vec<Vec<u32>>,
}

/// How far two models' routers agree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouterAgreement {
    /// Experts of a token.
    pub experts_per_token: usize,
    /// Share of the reference's experts that the model also picks, over all positions and layers; 0..1.
    pub agreement_fraction: f64,
    /// Share of positions and layers at which all experts are the same; 0..1.
    pub same_set_fraction: f64,
    /// The same for each layer.
    pub layers: Vec<LayerAgreement>,
}

/// How far one layer's routers agree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerAgreement {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Share of the reference's experts that the model also picks; 0..1.
    pub agreement_fraction: f64,
    /// Share of positions at which all experts are the same; 0..1.
    pub same_set_fraction: f64,
}

/// What keeps two models' routers from being compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RouterMismatch {
    /// `layers`, `experts of a layer` or `experts of a token`.
    pub what: &'static str,
    /// How many the reference has.
    pub reference: usize,
    /// How many the model has.
    pub model: usize,
}

impl RouterMismatch {
    /// The first count in which the routers of two models differ.
    pub(super) fn between(reference: &Config, model: &Config) -> Option<Self> {
        [
            ("layers", reference.num_hidden_layers, model.num_hidden_layers),
            ("experts of a layer", reference.num_local_experts, model.num_local_experts),
            ("experts of a token", reference.num_experts_per_token, model.num_experts_per_token),
        ]
        .into_iter()
        .find(|(_, reference, model)| reference != model)
        .map(|(what, reference, model)| Self { what, reference, model })
    }
}

impl RouterChoices {
    /// The choices of `routings`, a layer each, at the rows of the pass that `rows` names.
    pub(super) fn of(routings: &[Routing], rows: &[i64]) -> Result<Self> {
        let num_active = routings.first().and_then(|routing| routing.weights_ta.size().last().copied()).unwrap_or(0);
        let num_active = usize::try_from(num_active).unwrap_or(0);
        let start = |row: i64| usize::try_from(row).unwrap_or(0) * num_active;
        let at_rows = |routing: &Routing| {
            let all = routing.experts_on_host()?;
            let experts = rows.iter().flat_map(|&row| &all[start(row)..start(row) + num_active]);
            Ok(experts.map(|&expert| u32::try_from(expert).unwrap_or(u32::MAX)).collect())
        };
        Ok(Self { num_active, layers: routings.iter().map(at_rows).collect::<Result<_>>()? })
    }
}

/// Counts over passes.
#[derive(Debug, Default)]
pub(super) struct AgreementCounts {
    num_active: usize,
    positions: usize,
    /// For each layer the experts in common, and the positions with all of them in common.
    layers: Vec<(usize, usize)>,
}

impl AgreementCounts {
    /// Adds the choices of two models of the same layers and experts at the same positions.
    pub(super) fn add(&mut self, reference: &RouterChoices, model: &RouterChoices) {
        assert_eq!(reference.layers.len(), model.layers.len(), "layers of the reference and of the model");
        assert_eq!(reference.num_active, model.num_active, "experts of a token of the reference and of the model");
        self.num_active = reference.num_active;
        self.layers.resize(reference.layers.len(), (0, 0));
        let num_active = self.num_active.max(1);
        self.positions += reference.layers.first().map_or(0, |experts| experts.len() / num_active);
        for ((common, same), (reference, model)) in self.layers.iter_mut().zip(reference.layers.iter().zip(&model.layers)) {
            for (reference, model) in reference.chunks(num_active).zip(model.chunks(num_active)) {
                let found = reference.iter().filter(|expert| model.contains(expert)).count();
                *common += found;
                *same += usize::from(found == num_active);
            }
        }
    }

    pub(super) fn finish(&self) -> RouterAgreement {
        let layers: Vec<LayerAgreement> = self
            .layers
            .iter()
            .enumerate()
            .map(|(layer, &(common, same))| LayerAgreement {
                layer,
                agreement_fraction: fraction(common, self.positions * self.num_active),
                same_set_fraction: fraction(same, self.positions),
            })
            .collect();
        let mean = |value: &dyn Fn(&LayerAgreement) -> f64| Mean::of(&layers.iter().map(value).collect::<Vec<_>>()).mean;
        RouterAgreement {
            experts_per_token: self.num_active,
            agreement_fraction: mean(&|layer| layer.agreement_fraction),
            same_set_fraction: mean(&|layer| layer.same_set_fraction),
            layers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_of_sets_layer_by_layer() {
        let choices = |layers: [&[u32]; 2]| RouterChoices { num_active: 2, layers: layers.map(<[u32]>::to_vec).into() };
        let mut counts = AgreementCounts::default();
        // Layer 0: the same set in another order, then one in common. Layer 1: none in common, then all.
        counts.add(&choices([&[0, 1, 2, 3], &[4, 5, 6, 7]]), &choices([&[1, 0, 3, 9], &[0, 1, 6, 7]]));
        counts.add(&choices([&[0, 1], &[4, 5]]), &choices([&[0, 1], &[4, 5]]));
        let found = counts.finish();
        let layer = |layer, agreement, same| LayerAgreement { layer, agreement_fraction: agreement, same_set_fraction: same };
        assert_eq!(found.layers, [layer(0, 5.0 / 6.0, 2.0 / 3.0), layer(1, 4.0 / 6.0, 2.0 / 3.0)]);
        assert!((found.agreement_fraction - 0.75).abs() < 1e-15);
        assert!((found.same_set_fraction - 2.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn models_of_other_counts_are_not_compared() {
        let (reference, mut model) = (Config::nano(), Config::nano());
        assert_eq!(RouterMismatch::between(&reference, &model), None);
        model.num_local_experts += 1;
        let found = RouterMismatch::between(&reference, &model).unwrap();
        assert_eq!((found.what, found.model - found.reference), ("experts of a layer", 1));
    }
}
