//! Attention by libtorch's flash kernels, on a CUDA device in bf16 or f16.

use tch::{Kind, Tensor};

use super::kernel::{Inputs, Kernel};
use super::spans::packed_lengths;
use crate::error::Result;
use crate::torch::flash::{FlashInputs, PackedLengths, backward, forward};
use crate::torch::ops::{contiguous, empty, zeros};

/// The kernel of the GPU.
pub(super) struct Flash;

impl Kernel for Flash {
    fn forward(&self, inputs: &Inputs) -> Result<(Tensor, Tensor)> {
        let query = &inputs.query_thk;
        if query.numel() == 0 {
            let log_sums = empty(&[inputs.heads, 0], Kind::Float, query.device())?;
            return Ok((empty(&query.size(), query.kind(), query.device())?, log_sums));
        }
        let lengths = packed_lengths(&inputs.spans, query.device())?;
        let [output_thk, log_sums_ht] = forward(&flash_inputs(inputs, &lengths))?;
        Ok((output_thk, log_sums_ht))
    }

    fn backward(&self, inputs: &Inputs, gradient_thk: &Tensor, output_thk: &Tensor, log_sums_ht: &Tensor) -> Result<[Tensor; 3]> {
        let query = &inputs.query_thk;
        if query.numel() == 0 {
            let nothing = |like: &Tensor| zeros(&like.size(), like.kind(), like.device());
            return Ok([nothing(query)?, nothing(&inputs.key_ngk)?, nothing(&inputs.value_ngk)?]);
        }
        let lengths = packed_lengths(&inputs.spans, query.device())?;
        let [gradient_thk, output_thk, log_sums_ht] = [contiguous(gradient_thk)?, contiguous(output_thk)?, contiguous(log_sums_ht)?];
        backward(&flash_inputs(inputs, &lengths), &gradient_thk, &output_thk, &log_sums_ht)
    }
}

fn flash_inputs<'a>(inputs: &'a Inputs, lengths: &'a PackedLengths) -> FlashInputs<'a> {
    FlashInputs {
        query_thk: &inputs.query_thk,
        key_ngk: &inputs.key_ngk,
        value_ngk: &inputs.value_ngk,
        lengths,
        window: inputs.window,
        scale: inputs.scale(),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::spans::AttentionSpan;
    use super::*;
    use crate::error::{Error, chain};

    #[test]
    fn without_a_device_the_operators_are_there_and_say_so() {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let (query, key) = (random(&[5, 4, 8]), random(&[5, 2, 8]));
        let inputs = Inputs::new(&query, &key, &key, &[AttentionSpan { queries: 0..5, keys: 0..5 }], Some(3)).unwrap();
        let sums = Tensor::zeros([4, 5], (Kind::Float, Device::Cpu));
        let errors = [Flash.forward(&inputs).unwrap_err(), Flash.backward(&inputs, &query, &query, &sums).unwrap_err()];
        for (error, name) in errors.iter().zip(["aten::_flash_attention_forward", "aten::_flash_attention_backward"]) {
            assert!(matches!(error, Error::Torch { .. }) && chain(error).contains(name), "{}", chain(error));
        }
    }

    #[test]
    fn nothing_to_attend_is_no_call() {
        let empty = Tensor::zeros([0, 4, 8], (Kind::BFloat16, Device::Cpu));
        let inputs = Inputs::new(&empty, &empty, &empty, &[AttentionSpan { queries: 0..0, keys: 0..0 }], None).unwrap();
        let (output, sums) = Flash.forward(&inputs).unwrap();
        assert_eq!((output.size(), sums.size()), (vec![0, 4, 8], vec![4, 0]));
        let gradients = Flash.backward(&inputs, &output, &output, &sums).unwrap();
        assert!(gradients.iter().all(|gradient| gradient.size() == [0, 4, 8]));
    }
}
