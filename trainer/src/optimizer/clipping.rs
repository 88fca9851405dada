//! The norm of all gradients together, and its bound.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::torch::ops::{Named, scalar};

/// Scales `gradients` down so that their common norm is at most `max_norm`; 0 turns it off. Gives the norm before.
///
/// # Errors
/// [`crate::Error::Torch`] when an operation fails.
///
/// Source: `torch.nn.utils.clip_grad_norm_`, whose 1e-6 in the denominator it shares.
pub fn clip(gradients: &mut [Tensor], max_norm: f64) -> Result<f64> {
    let mut squares = 0.0;
    for gradient in gradients.iter() {
        let norm = gradient.f_norm_scalaropt_dtype(2.0, Kind::Float).named("clip", &[gradient])?;
        squares += scalar(&norm)?.powi(2);
    }
    let norm = squares.sqrt();
    let factor = max_norm / (norm + 1e-6);
    if max_norm > 0.0 && factor < 1.0 {
        for gradient in gradients.iter_mut() {
            let _ = gradient.f_mul_scalar_(factor).named("clip", &[])?;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_over_the_bound_is_brought_to_it() {
        let mut gradients = [Tensor::from_slice(&[3f32, 0.0]), Tensor::from_slice(&[4f32])];
        assert!((clip(&mut gradients, 1.0).unwrap() - 5.0).abs() < 1e-6);
        assert!((clip(&mut gradients, 1.0).unwrap() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn zero_turns_it_off() {
        let mut gradients = [Tensor::from_slice(&[3f32])];
        clip(&mut gradients, 0.0).unwrap();
        assert_eq!(gradients[0].double_value(&[0]), 3.0);
    }
}
