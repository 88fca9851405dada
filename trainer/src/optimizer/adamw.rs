//! Adam with decoupled weight decay.

use tch::{Device, Kind, TchError, Tensor};

use crate::error::Result;
use crate::torch::host::{AdamWFactors, adamw, floats, floats_mut};
use crate::torch::ops::{Named, zeros};

/// Constants of the optimizer, under their names in the recipe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decay of the weights, times the learning rate.
    pub weight_decay: f64,
}

/// The moments of every trainable tensor, in the order they were given.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    moments: Vec<[Tensor; 2]>,
    steps: usize,
}

impl AdamW {
    /// Zero moments for `parameters`.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] out of memory.
    pub fn new(options: AdamWOptions, parameters: &[Tensor]) -> Result<Self> {
        let moments = parameters
            .iter()
            .map(|parameter| {
                let moment = || zeros(&parameter.size(), Kind::Float, parameter.device());
                Ok([moment()?, moment()?])
            })
            .collect::<Result<_>>()?;
        Ok(Self { options, moments, steps: 0 })
    }

    /// Moments to be saved or restored: first and second of every parameter.
    pub fn moments(&self) -> &[[Tensor; 2]] {
        &self.moments
    }

    /// Says how many steps the moments come from, after they were restored.
    pub fn resume_at(&mut self, steps: usize) {
        self.steps = steps;
    }

    /// One step: `parameters` move along `gradients`, both f32 and in the order given to [`AdamW::new`].
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when an operation fails.
    ///
    /// Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), algorithm 2, in the order of `torch.optim.AdamW`.
    pub fn step(&mut self, parameters: &mut [Tensor], gradients: &[Tensor], learning_rate: f64) -> Result<()> {
        self.steps += 1;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let update = Update {
            options: self.options,
            decay: 1.0 - learning_rate * self.options.weight_decay,
            step_size: learning_rate / (1.0 - self.options.beta1.powi(power)),
            root_correction: (1.0 - self.options.beta2.powi(power)).sqrt(),
        };
        for ((parameter, gradient), moments) in parameters.iter_mut().zip(gradients).zip(&mut self.moments) {
            let on_host = parameter.device() == Device::Cpu && parameter.is_contiguous() && gradient.is_contiguous();
            let done = if on_host { update.on_host(parameter, gradient, moments) } else { update.on_device(parameter, gradient, moments) };
            done.named("adamw", &[parameter, gradient])?;
        }
        Ok(())
    }
}

struct Update {
    options: AdamWOptions,
    decay: f64,
    step_size: f64,
    root_correction: f64,
}

impl Update {
    #[expect(clippy::cast_possible_truncation, reason = "the arithmetic is f32, as that of the moments")]
    fn on_host(&self, parameter: &mut Tensor, gradient: &Tensor, moments: &mut [Tensor; 2]) -> Result<(), TchError> {
        let [first, second] = moments;
        let factors = AdamWFactors {
            rest1: (1.0 - self.options.beta1) as f32,
            beta2: self.options.beta2 as f32,
            rest2: (1.0 - self.options.beta2) as f32,
            decay: self.decay as f32,
            step_size: self.step_size as f32,
            root_correction: self.root_correction as f32,
            epsilon: self.options.epsilon as f32,
        };
        adamw(floats_mut(parameter)?, floats(gradient)?, floats_mut(first)?, floats_mut(second)?, factors);
        Ok(())
    }

    fn on_device(&self, parameter: &mut Tensor, gradient: &Tensor, moments: &mut [Tensor; 2]) -> Result<(), TchError> {
        let [first, second] = moments;
        tch::no_grad(|| {
            let _ = first.f_lerp_(gradient, 1.0 - self.options.beta1)?;
            let _ = second.f_mul_scalar_(self.options.beta2)?.f_add_(&gradient.f_square()?.f_mul_scalar(1.0 - self.options.beta2)?)?;
            let denominator = second.f_sqrt()?.f_div_scalar(self.root_correction)?.f_add_scalar(self.options.epsilon)?;
            let _ = parameter.f_mul_scalar_(self.decay)?;
            let _ = parameter.f_sub_(&first.f_div(&denominator)?.f_mul_scalar(self.step_size)?)?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: AdamWOptions = AdamWOptions { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };

    #[test]
    fn first_step_moves_by_the_learning_rate_against_the_gradient() {
        let mut parameters = [Tensor::from_slice(&[1f32, 1.0])];
        let mut optimizer = AdamW::new(OPTIONS, &parameters).unwrap();
        optimizer.step(&mut parameters, &[Tensor::from_slice(&[3f32, -0.5])], 0.01).unwrap();
        let values = Vec::<f32>::try_from(&parameters[0]).unwrap();
        assert!((values[0] - (1.0 - 0.001 - 0.01)).abs() < 1e-6);
        assert!((values[1] - (1.0 - 0.001 + 0.01)).abs() < 1e-6);
    }

    #[test]
    fn host_and_device_path_agree() {
        tch::manual_seed(3);
        let start = Tensor::randn([513], (Kind::Float, Device::Cpu));
        let mut host = [start.copy()];
        let mut device = start.copy();
        let mut optimizer = AdamW::new(OPTIONS, &host).unwrap();
        let mut moments = [start.zeros_like(), start.zeros_like()];
        for step in 1..=5 {
            let gradient = Tensor::randn([513], (Kind::Float, Device::Cpu));
            optimizer.step(&mut host, &[gradient.shallow_clone()], 0.01).unwrap();
            let update = Update {
                options: OPTIONS,
                decay: 1.0 - 0.01 * 0.1,
                step_size: 0.01 / (1.0 - 0.9f64.powi(step)),
                root_correction: (1.0 - 0.99f64.powi(step)).sqrt(),
            };
            update.on_device(&mut device, &gradient, &mut moments).unwrap();
        }
        assert!((&host[0] - device).abs().max().double_value(&[]) < 1e-6);
    }
}
