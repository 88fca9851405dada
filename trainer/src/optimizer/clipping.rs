//! The norm of all gradients together, and its bound.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::torch::ops::{Named, to_f64_vec, zeros};

/// The norm of all elements of `gradients`, as a scalar on their device; nothing waits for it.
///
/// # Shapes
/// `gradients` f32; gives a f64 scalar: the f32 norm of each, squared and summed in f64.
///
/// # Errors
/// [`crate::Error::Torch`] when an operation fails.
pub fn gradient_norm(gradients: &[Tensor]) -> Result<Tensor> {
    let norm = |gradient: &Tensor| gradient.f_norm_scalaropt_dtype(2.0, Kind::Float).named("gradient_norm", &[gradient]);
    let norms = gradients.iter().map(norm).collect::<Result<Vec<_>>>()?;
    if norms.is_empty() {
        return zeros(&[], Kind::Double, tch::Device::Cpu);
    }
    Tensor::f_stack(&norms, 0)
        .and_then(|norms| norms.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?.f_sqrt())
        .named("gradient_norm", &[])
}

/// Scales `gradients`, whose common norm is `norm`, down so that it is at most `max_norm`; 0 turns it off. Nothing waits for it.
///
/// # Shapes
/// `norm` f64, a scalar on the device of `gradients`.
///
/// # Errors
/// [`crate::Error::Torch`] when an operation fails.
///
/// Source: `torch.nn.utils.clip_grad_norm_`, whose 1e-6 in the denominator it shares.
pub fn clip(gradients: &mut [Tensor], norm: &Tensor, max_norm: f64) -> Result<()> {
    if max_norm == 0.0 {
        return Ok(());
    }
    let factor = norm
        .f_add_scalar(1e-6)
        .and_then(|norm| norm.f_reciprocal()?.f_mul_scalar(max_norm)?.f_clamp_max(1.0)?.f_to_kind(Kind::Float))
        .named("clip", &[norm])?;
    for gradient in gradients {
        let _ = gradient.f_mul_(&factor).named("clip", &[])?;
    }
    Ok(())
}

/// The values of several scalars on one device, for which the host waits once.
///
/// # Shapes
/// `scalars` f64, each of no dims.
///
/// # Errors
/// [`crate::Error::Torch`] when they are no scalars, or an operation before them failed.
pub fn read_together<const N: usize>(scalars: [&Tensor; N]) -> Result<[f64; N]> {
    let values = Tensor::f_stack(&scalars, 0).named("read_together", &scalars)?;
    let values = to_f64_vec(&values)?;
    Ok(std::array::from_fn(|index| values[index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clipped(gradients: &mut [Tensor], max_norm: f64) -> f64 {
        let norm = gradient_norm(gradients).unwrap();
        clip(gradients, &norm, max_norm).unwrap();
        norm.double_value(&[])
    }

    #[test]
    fn a_norm_over_the_bound_is_brought_to_it() {
        let mut gradients = [Tensor::from_slice(&[3f32, 0.0]), Tensor::from_slice(&[4f32])];
        assert!((clipped(&mut gradients, 1.0) - 5.0).abs() < 1e-6);
        assert!((clipped(&mut gradients, 1.0) - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_norm_below_the_bound_changes_no_bit() {
        let mut gradients = [Tensor::from_slice(&[0.3f32, -0.1]), Tensor::from_slice(&[1e-7f32])];
        let before = [gradients[0].copy(), gradients[1].copy()];
        assert!((clipped(&mut gradients, 0.5) - 0.1f64.sqrt()).abs() < 1e-7);
        assert!(gradients.iter().zip(&before).all(|(gradient, before)| gradient.equal(before)));
    }

    #[test]
    fn zero_turns_it_off() {
        let mut gradients = [Tensor::from_slice(&[3f32])];
        clipped(&mut gradients, 0.0);
        assert_eq!(gradients[0].double_value(&[0]), 3.0);
    }

    #[test]
    fn a_gradient_that_is_no_number_shows_in_the_norm() {
        for wrong in [f32::NAN, f32::INFINITY, f32::MAX] {
            let norm = gradient_norm(&[Tensor::from_slice(&[1f32]), Tensor::from_slice(&[0.0, wrong])]).unwrap();
            assert!(!norm.double_value(&[]).is_finite(), "{wrong}: its square is no finite f32 either");
        }
    }

    #[test]
    fn scalars_come_back_in_their_order_and_to_the_bit() {
        let scalars = [0.1f64 + 0.2, -1e-300, f64::NAN].map(Tensor::from);
        let [first, second, third] = read_together([&scalars[0], &scalars[1], &scalars[2]]).unwrap();
        assert_eq!((first, second), (0.1 + 0.2, -1e-300));
        assert!(third.is_nan());
    }
}
