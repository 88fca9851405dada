//! Operators of ATen over many tensors at once, which tch leaves out.

use std::ffi::c_char;

use tch::{Kind, Tensor};

use super::autograd::native_error;
use super::ops::Named;
use crate::error::{Error, Result};

type Handle = *mut torch_sys::C_tensor;

unsafe extern "C" {
    fn ft_fused_adamw(
        parameters: *const Handle,
        gradients: *const Handle,
        firsts: *const Handle,
        seconds: *const Handle,
        count: usize,
        step: Handle,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        message: *mut *mut c_char,
    ) -> i32;
}

/// The tensors of one step of AdamW, all f32, dense, and on one device; entry i of each list has the shape and strides of parameter i.
#[derive(Debug, Default)]
pub struct AdamWTensors {
    /// Moved by the step.
    pub parameters: Vec<Tensor>,
    /// What they move along.
    pub gradients: Vec<Tensor>,
    /// First moments.
    pub firsts: Vec<Tensor>,
    /// Second moments.
    pub seconds: Vec<Tensor>,
}

impl AdamWTensors {
    /// Adds a parameter, its gradient, and its first and second moment.
    pub fn push(&mut self, [parameter, gradient, first, second]: [&Tensor; 4]) {
        self.parameters.push(parameter.shallow_clone());
        self.gradients.push(gradient.shallow_clone());
        self.firsts.push(first.shallow_clone());
        self.seconds.push(second.shallow_clone());
    }
}

/// The numbers of one step of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Steps done, with this one.
    pub steps: usize,
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decay of the weights, times the learning rate.
    pub weight_decay: f64,
    /// Added to the corrected root of the second moment.
    pub epsilon: f64,
}

/// One step of AdamW over all `tensors`, in a few launches on a GPU; nothing waits for it.
///
/// # Errors
/// [`Error::Shape`] on tensors that do not fit, [`Error::Torch`] out of memory.
///
/// # Panics
/// When the lists differ in length: the caller's mistake.
pub fn fused_adamw(tensors: &AdamWTensors, step: AdamWStep) -> Result<()> {
    let AdamWTensors { parameters, gradients, firsts, seconds } = tensors;
    let count = parameters.len();
    assert!(gradients.len() == count && firsts.len() == count && seconds.len() == count, "one gradient and two moments for each parameter");
    let Some(device) = parameters.first().map(Tensor::device) else { return Ok(()) };
    for (list, name) in [(parameters, "parameters"), (gradients, "gradients"), (firsts, "firsts"), (seconds, "seconds")] {
        let fits = |(tensor, parameter): &(&Tensor, &Tensor)| {
            (tensor.kind(), tensor.device()) == (Kind::Float, device)
                && tensor.size() == parameter.size()
                && tensor.stride() == parameter.stride()
        };
        if let Some((wrong, _)) = list.iter().zip(parameters).find(|pair| !fits(pair)) {
            let expected = "f32 on the device, and in the shape and strides, of the parameter";
            return Err(Error::Shape { operation: "fused_adamw", tensor: name, expected, found: wrong.size() });
        }
    }
    // Filled by a kernel: a copy from the host would wait.
    #[expect(clippy::cast_precision_loss, reason = "a step count")]
    let steps = Tensor::f_full([0i64; 0], step.steps as f64, (Kind::Float, device)).named("fused_adamw", &[])?;
    let handles = |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect::<Vec<Handle>>();
    let lists = [parameters, gradients, firsts, seconds].map(|tensors| handles(tensors));
    let mut message = std::ptr::null_mut();
    // SAFETY: the handles point to live tensors for the length of the call, `count` of them in each list.
    let status = unsafe {
        ft_fused_adamw(
            lists[0].as_ptr(),
            lists[1].as_ptr(),
            lists[2].as_ptr(),
            lists[3].as_ptr(),
            count,
            steps.as_ptr().cast_mut(),
            step.learning_rate,
            step.beta1,
            step.beta2,
            step.weight_decay,
            step.epsilon,
            &raw mut message,
        )
    };
    if status == 0 { Ok(()) } else { Err(native_error("fused_adamw", message)) }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn step(steps: usize) -> AdamWStep {
        AdamWStep { steps, learning_rate: 0.01, beta1: 0.9, beta2: 0.99, weight_decay: 0.1, epsilon: 1e-8 }
    }

    /// Formula of the paper, in f64.
    fn expected(parameter: &Tensor, gradient: &Tensor, moments: &mut [Tensor; 2], step: AdamWStep) -> Tensor {
        let [first, second] = moments;
        *first = &*first * step.beta1 + gradient * (1.0 - step.beta1);
        *second = &*second * step.beta2 + gradient * gradient * (1.0 - step.beta2);
        let power = i32::try_from(step.steps).unwrap();
        let (corrected_first, corrected_second) = (&*first / (1.0 - step.beta1.powi(power)), &*second / (1.0 - step.beta2.powi(power)));
        parameter * (1.0 - step.learning_rate * step.weight_decay)
            - corrected_first / (corrected_second.sqrt() + step.epsilon) * step.learning_rate
    }

    #[test]
    fn many_tensors_move_as_the_formula_says() {
        tch::manual_seed(5);
        let shapes: [&[i64]; 3] = [&[7], &[3, 5, 2], &[129, 3]];
        let random = || shapes.iter().map(|shape| Tensor::randn(*shape, (Kind::Float, Device::Cpu))).collect::<Vec<_>>();
        let zeros = || shapes.iter().map(|shape| Tensor::zeros(*shape, (Kind::Float, Device::Cpu))).collect::<Vec<_>>();
        let mut tensors = AdamWTensors { parameters: random(), gradients: Vec::new(), firsts: zeros(), seconds: zeros() };
        let mut exact: Vec<Tensor> = tensors.parameters.iter().map(|tensor| tensor.to_kind(Kind::Double)).collect();
        let mut moments: Vec<[Tensor; 2]> = exact.iter().map(|tensor| [tensor.zeros_like(), tensor.zeros_like()]).collect();
        for steps in 1..=6 {
            tensors.gradients = random();
            fused_adamw(&tensors, step(steps)).unwrap();
            for ((exact, gradient), moments) in exact.iter_mut().zip(&tensors.gradients).zip(&mut moments) {
                *exact = expected(exact, &gradient.to_kind(Kind::Double), moments, step(steps));
            }
        }
        for (found, exact) in tensors.parameters.iter().zip(&exact) {
            // A step rounds a parameter of at most 4 once, and its update, of a hundredth, to a few parts in 2^24.
            assert!((found.to_kind(Kind::Double) - exact).abs().max().double_value(&[]) < 6.0 * 4.0 * f64::from(f32::EPSILON));
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_refused() {
        let tensor = |count: i64, kind| vec![Tensor::zeros([count], (kind, Device::Cpu))];
        let tensors = |gradients| AdamWTensors {
            parameters: tensor(3, Kind::Float),
            gradients,
            firsts: tensor(3, Kind::Float),
            seconds: tensor(3, Kind::Float),
        };
        for wrong in [tensor(3, Kind::Double), tensor(2, Kind::Float)] {
            let error = fused_adamw(&tensors(wrong), step(1)).unwrap_err();
            assert!(matches!(error, Error::Shape { tensor: "gradients", .. }), "{error}");
        }
        assert!(fused_adamw(&AdamWTensors::default(), step(1)).is_ok());
    }
}
