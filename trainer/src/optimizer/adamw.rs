//! Adam with decoupled weight decay.

use tch::{Device, TchError, Tensor};

use super::moments::{Moments, Packed};
use super::packed::{CHUNK_BLOCKS, DeviceMaps};
use crate::error::Result;
use crate::recipe::OptimizerKind;
use crate::torch::fused::{AdamWStep, AdamWTensors, fused_adamw};
use crate::torch::host::{AdamWFactors, PackedSlices, adamw, adamw_8bit, elements_mut, floats, floats_mut};
use crate::torch::ops::{Named, contiguous};

/// Constants of the optimizer, under their names in the recipe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// How moments are kept.
    pub kind: OptimizerKind,
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
    moments: Vec<Moments>,
    /// Of the device on which packed moments lie, once there was a step that took place there.
    maps: Option<DeviceMaps>,
    steps: usize,
}

impl AdamW {
    /// Zero moments for `parameters`, all on one device.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] out of memory.
    pub fn new(options: AdamWOptions, parameters: &[Tensor]) -> Result<Self> {
        let moments = parameters.iter().map(|parameter| Moments::zeros(options.kind, parameter)).collect::<Result<_>>()?;
        Ok(Self { options, moments, maps: None, steps: 0 })
    }

    /// The moments of every parameter, to be saved or restored.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Says how many steps the moments come from, after they were restored.
    pub fn resume_at(&mut self, steps: usize) {
        self.steps = steps;
    }

    /// One step: `parameters` move along `gradients`, both f32 and in the order given to [`AdamW::new`].
    ///
    /// On the host, and where moments are packed, each gradient is freed once its parameter has moved. f32 moments on a GPU take all of them
    /// in a few launches. Nothing waits for a GPU.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when an operation fails.
    ///
    /// # Panics
    /// When there is not one gradient and one parameter for each that [`AdamW::new`] was given: the caller's mistake.
    ///
    /// Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), algorithm 2, in the order of `torch.optim.AdamW`.
    pub fn step(&mut self, parameters: &mut [Tensor], gradients: Vec<Tensor>, learning_rate: f64) -> Result<()> {
        let count = self.moments.len();
        assert!(parameters.len() == count && gradients.len() == count, "one gradient and one parameter for each of {count} moments");
        self.steps += 1;
        let factors = self.factors(learning_rate);
        let mut fused = AdamWTensors::default();
        let mut copied = Vec::new();
        for (index, (gradient, moments)) in gradients.into_iter().zip(&mut self.moments).enumerate() {
            // The same storage, but for a parameter that lies otherwise than its moments.
            let mut parameter = contiguous(&parameters[index])?;
            let gradient = contiguous(&gradient)?;
            let device = parameter.device();
            match moments {
                Moments::Float { first, second } if device == Device::Cpu => on_host(&mut parameter, &gradient, [first, second], factors),
                Moments::Float { first, second } => {
                    fused.push([&parameter, &gradient, first, second]);
                    Ok(())
                }
                Moments::Packed { first, second } if device == Device::Cpu => {
                    packed_on_host(&mut parameter, &gradient, [first, second], factors)
                }
                Moments::Packed { first, second } => {
                    let maps = match &mut self.maps {
                        Some(maps) => maps,
                        none => none.insert(DeviceMaps::new(device, CHUNK_BLOCKS)?),
                    };
                    maps.step(&parameter, &gradient, [first, second], factors)
                }
            }
            .named("adamw", &[&parameter, &gradient])?;
            if !parameters[index].is_contiguous() {
                copied.push((index, parameter));
            }
        }
        fused_adamw(&fused, self.numbers(learning_rate))?;
        for (index, parameter) in copied {
            tch::no_grad(|| parameters[index].f_copy_(&parameter)).named("adamw", &[&parameter])?;
        }
        Ok(())
    }

    fn numbers(&self, learning_rate: f64) -> AdamWStep {
        let AdamWOptions { beta1, beta2, epsilon, weight_decay, .. } = self.options;
        AdamWStep { steps: self.steps, learning_rate, beta1, beta2, weight_decay, epsilon }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the arithmetic is f32, as that of the moments")]
    fn factors(&self, learning_rate: f64) -> AdamWFactors {
        let AdamWOptions { beta1, beta2, epsilon, weight_decay, .. } = self.options;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        AdamWFactors {
            rest1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            rest2: (1.0 - beta2) as f32,
            decay: (1.0 - learning_rate * weight_decay) as f32,
            step_size: (learning_rate / (1.0 - beta1.powi(power))) as f32,
            root_correction: (1.0 - beta2.powi(power)).sqrt() as f32,
            epsilon: epsilon as f32,
        }
    }
}

fn on_host(parameter: &mut Tensor, gradient: &Tensor, [first, second]: [&mut Tensor; 2], factors: AdamWFactors) -> Result<(), TchError> {
    adamw(floats_mut(parameter)?, floats(gradient)?, floats_mut(first)?, floats_mut(second)?, factors);
    Ok(())
}

fn packed_on_host(parameter: &mut Tensor, gradient: &Tensor, moments: [&mut Packed; 2], factors: AdamWFactors) -> Result<(), TchError> {
    let [first, second] = moments;
    let first = PackedSlices { codes: elements_mut(&mut first.codes)?, scales: floats_mut(&mut first.scales)? };
    let second = PackedSlices { codes: elements_mut(&mut second.codes)?, scales: floats_mut(&mut second.scales)? };
    adamw_8bit(floats_mut(parameter)?, floats(gradient)?, first, second, factors);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn options(kind: OptimizerKind) -> AdamWOptions {
        AdamWOptions { kind, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 }
    }

    #[test]
    fn first_step_moves_by_the_learning_rate_against_the_gradient() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Adamw8bit] {
            let mut parameters = [Tensor::ones([5000], CPU)];
            let mut optimizer = AdamW::new(options(kind), &parameters).unwrap();
            let gradient = Tensor::full([5000], -0.5, CPU);
            let _ = gradient.get(0).fill_(3.0);
            optimizer.step(&mut parameters, vec![gradient], 0.01).unwrap();
            let values = Vec::<f32>::try_from(&parameters[0]).unwrap();
            assert!((values[0] - (1.0 - 0.001 - 0.01)).abs() < 1e-6);
            assert!((values[1] - (1.0 - 0.001 + 0.01)).abs() < 1e-6);
            assert_eq!(values[1], values[4999]);
        }
    }

    #[test]
    fn host_kernel_and_fused_operator_agree() {
        tch::manual_seed(3);
        let start = [Tensor::randn([513], CPU), Tensor::randn([7, 3], CPU)];
        let copies = || start.each_ref().map(Tensor::copy);
        let (mut host, fused) = (copies(), copies());
        let mut optimizer = AdamW::new(options(OptimizerKind::Adamw), &host).unwrap();
        let [firsts, seconds] = [(); 2].map(|()| start.each_ref().map(Tensor::zeros_like));
        for _ in 0..5 {
            let gradients = start.each_ref().map(Tensor::randn_like);
            let mut tensors = AdamWTensors::default();
            for index in 0..start.len() {
                tensors.push([&fused[index], &gradients[index], &firsts[index], &seconds[index]]);
            }
            optimizer.step(&mut host, gradients.into(), 0.01).unwrap();
            fused_adamw(&tensors, optimizer.numbers(0.01)).unwrap();
        }
        for (host, fused) in host.iter().zip(&fused) {
            assert!((host - fused).abs().max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn a_parameter_that_lies_otherwise_moves_all_the_same() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Adamw8bit] {
            tch::manual_seed(6);
            let start = Tensor::randn([70, 80], CPU);
            let gradient = Tensor::randn([70, 80], CPU);
            let transposed = start.transpose(0, 1).contiguous().transpose(0, 1);
            assert!(!transposed.is_contiguous());
            let mut parameters = [start.copy(), transposed.shallow_clone()];
            let mut optimizer = AdamW::new(options(kind), &parameters).unwrap();
            optimizer.step(&mut parameters, vec![gradient.copy(), gradient], 0.01).unwrap();
            assert!(parameters[0].equal(&transposed) && !transposed.equal(&start));
        }
    }

    /// Gradients of 5,000 parabolas of very different curvature, with noise. The moments of a block stretch over four powers of ten.
    struct Valley {
        curvatures: Tensor,
        target: Tensor,
    }

    impl Valley {
        fn new() -> Self {
            let curvatures = (Tensor::rand([5000], CPU) * -2.0 * std::f64::consts::LN_10).exp();
            Self { curvatures, target: Tensor::randn([5000], CPU) }
        }

        fn gradient(&self, position: &Tensor, noise: &Tensor) -> Tensor {
            (position - &self.target + noise * 0.3) * &self.curvatures
        }

        fn loss(&self, position: &Tensor) -> f64 {
            ((position - &self.target).square() * &self.curvatures).sum(Kind::Double).double_value(&[]) / 2.0
        }
    }

    fn length(tensor: &Tensor) -> f64 {
        tensor.square().sum(Kind::Double).sqrt().double_value(&[])
    }

    /// A first moment is rounded by 0.45 / 64 of its block's largest, 2% of itself on the mean of the upper power of ten, and by twice as much
    /// in each power below; the root of a second by a quarter of that. Second moments change slowly, so that the steps of a parameter are
    /// wrong by the same few percent for long, and so is the way that it has come. With 256 equally spaced numbers it is 35%.
    #[test]
    fn eight_bits_follow_f32_over_two_hundred_steps() {
        tch::manual_seed(7);
        let valley = Valley::new();
        let mut positions = [OptimizerKind::Adamw, OptimizerKind::Adamw8bit].map(|kind| {
            let position = Tensor::zeros([5000], CPU);
            let options = AdamWOptions { beta2: 0.999, weight_decay: 0.0, ..options(kind) };
            (AdamW::new(options, &[position.shallow_clone()]).unwrap(), [position])
        });
        for _ in 0..200 {
            let noise = Tensor::randn([5000], CPU);
            for (optimizer, position) in &mut positions {
                let gradient = valley.gradient(&position[0], &noise);
                optimizer.step(position, vec![gradient], 0.01).unwrap();
            }
        }
        let [(_, [float]), (_, [packed])] = &positions;
        let apart = length(&(float - packed)) / length(float);
        let [start, end, end_packed] = [&float.zeros_like(), float, packed].map(|position| valley.loss(position));
        assert!(end < 0.1 * start, "the steps went somewhere: {start} {end}");
        assert!(apart < 0.05, "{apart}");
        assert!((end_packed - end).abs() < 0.01 * start, "{start} {end} {end_packed}");
    }

    /// A first moment that is kept beside a second that became zero would make a step of first / epsilon.
    #[test]
    fn a_small_gradient_beside_large_ones_moves_no_further_than_in_f32() {
        let mut gradient = vec![1f32; 4096];
        gradient[7] = 1e-4;
        let gradient = Tensor::from_slice(&gradient);
        let mut ends = [OptimizerKind::Adamw, OptimizerKind::Adamw8bit].map(|kind| {
            let mut parameters = [Tensor::zeros([4096], CPU)];
            let options = AdamWOptions { weight_decay: 0.0, ..options(kind) };
            let mut optimizer = AdamW::new(options, &parameters).unwrap();
            for step in 0..20 {
                // Every other step brings no gradient, as to an expert that no token chose.
                let gradient = if step % 2 == 0 { gradient.copy() } else { gradient.zeros_like() };
                optimizer.step(&mut parameters, vec![gradient], 0.01).unwrap();
            }
            parameters[0].double_value(&[7]).abs()
        });
        ends.reverse();
        let [packed, float] = ends;
        assert!(packed > 0.0 && packed <= float * 1.01, "{packed} {float}");
    }
}
