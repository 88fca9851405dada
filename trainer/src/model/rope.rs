//! Rotary position embedding with YaRN.
//!
//! Letters: t tokens, h heads, k head width, p pairs (k / 2).

use std::f64::consts::PI;

use ft_formats::checkpoint::Config;
use tch::{Device, Kind, TchError, Tensor};

use crate::error::Result;
use crate::torch::functions::rotate;
use crate::torch::ops::Named;

/// The frequencies of the rotation.
#[derive(Debug)]
pub struct Rope {
    frequencies_p: Tensor,
    /// Multiplies sine and cosine: YaRN's temperature.
    concentration: f64,
}

/// Cosines and sines of a batch's positions, f32 [t, 1, p], times the concentration.
#[derive(Debug)]
pub struct Rotation {
    cos_t1p: Tensor,
    sin_t1p: Tensor,
}

impl Rope {
    /// The frequencies that `config` asks for: YaRN, or the plain ones where it has no scaling.
    ///
    /// Source: YaRN (arXiv 2309.00071), section 3.2 and 3.4. Steps are taken in f32 in the order of transformers'
    /// `_compute_yarn_parameters`, so that far positions round alike.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] out of memory.
    pub fn new(config: &Config, device: Device) -> Result<Self> {
        let build = || -> Result<Self, TchError> {
            let pairs = float(config.head_dim / 2);
            let exponents_p = Tensor::f_arange(pairs, (Kind::Float, device))?.f_mul_scalar(2.0)?.f_div_scalar(float(config.head_dim))?;
            let periods_p = Tensor::f_pow_scalar(config.rope_theta, &exponents_p)?;
            let extrapolated_p = periods_p.f_reciprocal()?;
            let Some(yarn) = &config.rope_scaling else {
                return Ok(Self { frequencies_p: extrapolated_p, concentration: 1.0 });
            };
            let interpolated_p = periods_p.f_mul_scalar(yarn.factor)?.f_reciprocal()?;
            // The pair that turns `rotations` times over the original context.
            let pair_of = |rotations: f64| {
                let context = float(yarn.original_max_position_embeddings);
                float(config.head_dim) * (context / (rotations * 2.0 * PI)).ln() / (2.0 * config.rope_theta.ln())
            };
            let (mut low, mut high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
            if yarn.truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let low = low.max(0.0);
            let high = high.min(float(config.head_dim) - 1.0);
            let width = if low == high { 0.001 } else { high - low };
            let ramp_p = Tensor::f_arange(pairs, (Kind::Float, device))?.f_sub_scalar(low)?.f_div_scalar(width)?.f_clamp(0.0, 1.0)?;
            let kept_p = ramp_p.f_neg()?.f_add_scalar(1.0)?;
            let frequencies_p = interpolated_p.f_mul(&kept_p.f_neg()?.f_add_scalar(1.0)?)?.f_add(&extrapolated_p.f_mul(&kept_p)?)?;
            let concentration = if yarn.factor <= 1.0 { 1.0 } else { 0.1 * yarn.factor.ln() + 1.0 };
            Ok(Self { frequencies_p, concentration })
        };
        build().named("rope", &[])
    }

    /// The rotation of each position.
    ///
    /// # Shapes
    /// `positions_t` i64 [t].
    ///
    /// # Errors
    /// [`crate::Error::Torch`] out of memory.
    pub fn rotation(&self, positions_t: &Tensor) -> Result<Rotation> {
        let build = || -> Result<Rotation, TchError> {
            let angles_t1p = positions_t.f_to_kind(Kind::Float)?.f_view([-1, 1, 1])?.f_mul(&self.frequencies_p)?;
            Ok(Rotation {
                cos_t1p: angles_t1p.f_cos()?.f_mul_scalar(self.concentration)?,
                sin_t1p: angles_t1p.f_sin()?.f_mul_scalar(self.concentration)?,
            })
        };
        build().named("rope", &[positions_t])
    }
}

impl Rotation {
    /// Heads rotated by their positions: element i pairs with element i + k/2 (halves, not neighbours). Computed in f32.
    ///
    /// # Shapes
    /// `heads_thk` [t, h, k]; gives the same, in the same type.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn apply(&self, heads_thk: &Tensor) -> Result<Tensor> {
        rotate(heads_thk, &self.cos_t1p, &self.sin_t1p)
    }
}

#[expect(clippy::cast_precision_loss, reason = "widths and context lengths are far below 2^52")]
fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concentration_and_ramp_are_those_of_the_reference() {
        let rope = Rope::new(&Config::gpt_oss_20b(), Device::Cpu).unwrap();
        assert!((rope.concentration - 1.346_573_590_279_972_7).abs() < 1e-12);
        let frequencies = Vec::<f32>::try_from(&rope.frequencies_p).unwrap();
        // Pairs 0..=8 keep their frequency, pairs from 18 on are slowed by 32; 8.09 and 17.40 bound the ramp.
        assert_eq!(frequencies[0], 1.0);
        let period = |pair: f64| 150_000f64.powf(pair / 32.0);
        assert!((f64::from(frequencies[8]) * period(8.0) - 1.0).abs() < 1e-6);
        assert!((f64::from(frequencies[18]) * period(18.0) * 32.0 - 1.0).abs() < 1e-6);
        let ramp = (9.0 - 8.092_779_115_512_402) / (17.398_024_501_588_56 - 8.092_779_115_512_402);
        let expected = (ramp / 32.0 + (1.0 - ramp)) / period(9.0);
        assert!((f64::from(frequencies[9]) / expected - 1.0).abs() < 1e-6);
    }

    /// Source: `GptOssRotaryEmbedding` of transformers 5.17.0 on `GptOssConfig()`, whose sizes are 20b's: (position, pair, cosine, sine).
    #[test]
    fn far_positions_turn_as_in_the_reference() {
        let expected = [
            (4096i64, 0, 1.082_632_5, -0.800_729_2),
            (4096, 17, 1.162_044_5, 0.680_376_9),
            (65_537, 13, -0.131_946_77, 1.340_093_5),
            (131_071, 0, -1.101_475, -0.774_605_27),
            (131_071, 8, 1.345_97, -0.040_312_055),
            (131_071, 9, -1.088_215_2, 0.793_125_57),
            (131_071, 17, -0.434_856_24, -1.274_425_5),
            (131_071, 31, 1.345_516_3, 0.053_350_028),
        ];
        let rope = Rope::new(&Config::gpt_oss_20b(), Device::Cpu).unwrap();
        for (position, pair, cosine, sine) in expected {
            let rotation = rope.rotation(&Tensor::from_slice(&[position])).unwrap();
            let found = [&rotation.cos_t1p, &rotation.sin_t1p].map(|values| values.double_value(&[0, 0, pair]));
            assert!((found[0] - cosine).abs() < 1e-6 && (found[1] - sine).abs() < 1e-6, "{position} {pair}: {found:?}");
        }
    }
}
