//! What must hold between the numbers of a config.

use super::{Config, ConfigProblem, LayerType};
use crate::checkpoint::tensors::parameters;

/// Layers at most; the largest published model has 36.
pub(super) const LIMIT_LAYERS: usize = 4096;

/// Any size at most, so that products of three stay below 2^64 after the checks on the whole.
pub(super) const LIMIT_SIZE: usize = 1 << 31;

impl Config {
    /// Checks that the numbers make a model.
    ///
    /// # Errors
    /// The first [`ConfigProblem`] found.
    pub fn validate(&self) -> Result<(), ConfigProblem> {
        self.check_sizes()?;
        self.check_relations()?;
        self.check_numbers()?;
        // Four bytes an element is the widest that weights come in.
        match parameters(self).checked_mul(4) {
            Some(bytes) if bytes <= i64::MAX as u128 => Ok(()),
            _ => Err(ConfigProblem::TooLarge),
        }
    }

    fn check_sizes(&self) -> Result<(), ConfigProblem> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_local_experts", self.num_local_experts),
            ("num_experts_per_tok", self.num_experts_per_token),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
            ("sliding_window", self.sliding_window),
            ("rope_scaling.original_max_position_embeddings", self.rope_scaling.map_or(1, |yarn| yarn.original_max_position_embeddings)),
        ];
        if !(1..=LIMIT_LAYERS).contains(&self.num_hidden_layers) {
            let found = self.num_hidden_layers.to_string();
            return Err(ConfigProblem::OutOfRange { key: "num_hidden_layers", expected: "1 to 4096", found });
        }
        match sizes.into_iter().find(|(_, size)| !(1..=LIMIT_SIZE).contains(size)) {
            Some((key, size)) => Err(ConfigProblem::OutOfRange { key, expected: "1 to 2^31", found: size.to_string() }),
            None => Ok(()),
        }
    }

    fn check_relations(&self) -> Result<(), ConfigProblem> {
        let contradiction = |key, found: usize, other, other_found: usize| {
            Err(ConfigProblem::Contradiction { key, found: found.to_string(), other, other_found: other_found.to_string() })
        };
        if self.layer_types.len() != self.num_hidden_layers {
            return contradiction("num_hidden_layers", self.num_hidden_layers, "the length of `layer_types`", self.layer_types.len());
        }
        if self.num_experts_per_token > self.num_local_experts {
            return contradiction("num_experts_per_tok", self.num_experts_per_token, "`num_local_experts`", self.num_local_experts);
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return contradiction(
                "num_attention_heads",
                self.num_attention_heads,
                "`num_key_value_heads`, which must divide it,",
                self.num_key_value_heads,
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            let found = self.head_dim.to_string();
            return Err(ConfigProblem::OutOfRange { key: "head_dim", expected: "an even number, for the rotation in pairs", found });
        }
        if let Some((key, supported)) =
            [(self.tie_word_embeddings, ("tie_word_embeddings", "false")), (!self.attention_bias, ("attention_bias", "true"))]
                .into_iter()
                .find_map(|(is_wrong, key)| is_wrong.then_some(key))
        {
            let found = if supported == "true" { "false" } else { "true" };
            return Err(ConfigProblem::Unsupported { key: key.to_owned(), found: found.to_owned(), supported });
        }
        if self.has_mxfp4_experts { self.check_blocks() } else { Ok(()) }
    }

    /// Checks that the experts' rows are whole MXFP4 blocks.
    pub(in crate::checkpoint) fn check_blocks(&self) -> Result<(), ConfigProblem> {
        let rows = [("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)];
        match rows.into_iter().find(|(_, size)| !size.is_multiple_of(ft_quant::mxfp4::BLOCK_ELEMENTS)) {
            Some((key, found)) => Err(ConfigProblem::PartialBlock { key, found }),
            None => Ok(()),
        }
    }

    fn check_numbers(&self) -> Result<(), ConfigProblem> {
        let positive = "a finite number above 0";
        let numbers = [
            ("rms_norm_eps", self.rms_norm_eps, self.rms_norm_eps > 0.0, positive),
            ("rope_theta", self.rope_theta, self.rope_theta > 1.0, "a finite number above 1"),
            ("swiglu_limit", self.swiglu_limit, self.swiglu_limit > 0.0, positive),
            ("swiglu_alpha", self.swiglu_alpha, self.swiglu_alpha > 0.0, positive),
            ("initializer_range", self.initializer_range, self.initializer_range >= 0.0, "a finite number, not negative"),
            ("router_aux_loss_coef", self.router_aux_loss_coef, true, "a finite number"),
        ];
        let yarn = self.rope_scaling.into_iter().flat_map(|yarn| {
            [
                ("rope_scaling.factor", yarn.factor, yarn.factor >= 1.0, "a finite number, at least 1"),
                ("rope_scaling.beta_slow", yarn.beta_slow, yarn.beta_slow > 0.0, positive),
                ("rope_scaling.beta_fast", yarn.beta_fast, yarn.beta_fast >= yarn.beta_slow, "a finite number, at least `beta_slow`"),
            ]
        });
        match numbers.into_iter().chain(yarn).find(|(_, number, is_right, _)| !number.is_finite() || !is_right) {
            Some((key, number, _, expected)) => Err(ConfigProblem::OutOfRange { key, expected, found: number.to_string() }),
            None => Ok(()),
        }
    }

    /// True when some layer slides.
    #[must_use]
    pub fn has_sliding_layers(&self) -> bool {
        self.layer_types.contains(&LayerType::SlidingAttention)
    }
}
