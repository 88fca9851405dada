//! libtorch's flash attention over packed sequences, on a CUDA device; tch has its operators but for the forward one.
//!
//! Letters: t queries, n keys, h query heads, g key/value heads, k head width, b sequences.
//!
//! What libtorch 2.11.0 does with its arguments, from its wheel (`torch/_meta_registrations.py` line 6277 and
//! `torch/nn/attention/varlen.py`) and from pytorch/pytorch 03b7c19d (`aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp`,
//! functions `mha_varlen_fwd` and `mha_varlen_bwd`; another commit than the release's, with the signatures of its `flash_api.h`):
//! - with cumulative lengths the log sums are [h, t] in f32 at both ends, unpadded; backward reads them by pointer, so they must be contiguous;
//! - query, key and value have one type, bf16 or f16, and a width that is a multiple of 8 and at most 256; b is at least 1; GPUs from sm_80 on;
//! - g divides h, without expansion: query head j reads key head j / (h / g);
//! - query i of a sequence with q queries and n keys sees the keys up to i + n - q, and back to i + n - q - `window_size_left`
//!   (`flash_attn/src/mask.h` of Dao-AILab/flash-attention 04da83f3, `apply_mask_local`);
//! - `is_causal` sets `window_size_right` to 0, and is dropped where all sequences have one query; here 0 is always said, which also keeps a
//!   single query on the usual kernel;
//! - keys that no query sees get a gradient of 0 (`flash_bwd_kernel.h`); rows outside all sequences are left unwritten by both passes;
//! - backward forms D = rowsum(dO O) in f32 from `output` as given, P = exp(S - log sum), and is the same at every run only where
//!   [`super::device::set_deterministic`] asked for it;
//! - backward holds t h k f32 of query gradients, times ceil(multiprocessors / (b h)) where it is to be the same at every run, and with
//!   g < h the key and value gradients of every query head, 2 n h k of the inputs' type;
//! - the random state is read only with dropout.

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};

use super::autograd::native_error;
use crate::error::{Error, Result};

type Handle = *mut torch_sys::C_tensor;

unsafe extern "C" {
    fn ft_flash_attention_forward(
        query: Handle,
        key: Handle,
        value: Handle,
        query_starts: Handle,
        key_starts: Handle,
        max_queries: i64,
        max_keys: i64,
        scale: f64,
        window: i64,
        results: *mut Handle,
        message: *mut *mut c_char,
    ) -> c_int;
    fn ft_flash_attention_backward(
        gradient: Handle,
        query: Handle,
        key: Handle,
        value: Handle,
        output: Handle,
        log_sums: Handle,
        query_starts: Handle,
        key_starts: Handle,
        max_queries: i64,
        max_keys: i64,
        scale: f64,
        window: i64,
        results: *mut Handle,
        message: *mut *mut c_char,
    ) -> c_int;
}

/// Where sequences lie in their tensors.
#[derive(Debug)]
pub(super) struct PackedLengths {
    /// Where each sequence's queries begin, and where the last ends: i32 [b + 1], on the device of the tensors.
    pub(super) query_starts: Tensor,
    /// The same of keys.
    pub(super) key_starts: Tensor,
    /// Queries of the longest sequence.
    pub(super) max_queries: i64,
    /// Its keys.
    pub(super) max_keys: i64,
}

impl PackedLengths {
    /// The same lengths, in further handles.
    pub(super) fn share(&self) -> Self {
        Self { query_starts: self.query_starts.shallow_clone(), key_starts: self.key_starts.shallow_clone(), ..*self }
    }
}

/// Query, key, value, and what sees what: the keys up to a query's own place, or the newest `window` of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlashInputs<'a> {
    /// [t, h, k].
    pub(super) query_thk: &'a Tensor,
    /// [n, g, k].
    pub(super) key_ngk: &'a Tensor,
    /// [n, g, k].
    pub(super) value_ngk: &'a Tensor,
    /// The sequences.
    pub(super) lengths: &'a PackedLengths,
    /// At least 1.
    pub(super) window: Option<i64>,
    /// Of the products.
    pub(super) scale: f64,
}

/// Whether the kernels take heads of this type and width.
pub(super) fn takes(kind: Kind, width: i64) -> bool {
    matches!(kind, Kind::BFloat16 | Kind::Half) && width > 0 && width <= 256 && width % 8 == 0
}

/// The output, [t, h, k], and the logarithms of the softmax's sums, f32 [h, t].
///
/// # Errors
/// [`Error::Torch`] for what the kernels refuse, without a device, or out of its memory; [`Error::Shape`] when the log sums come in another
/// shape, as they do in other releases.
pub(super) fn forward(inputs: &FlashInputs) -> Result<[Tensor; 2]> {
    const OPERATION: &str = "flash attention";
    let FlashInputs { query_thk, key_ngk, value_ngk, lengths, window, scale } = inputs;
    let mut results = [std::ptr::null_mut(); 2];
    let mut message = std::ptr::null_mut();
    // SAFETY: handles are live for the length of the call; the shim writes two results where it returns 0.
    let status = unsafe {
        ft_flash_attention_forward(
            handle(query_thk),
            handle(key_ngk),
            handle(value_ngk),
            handle(&lengths.query_starts),
            handle(&lengths.key_starts),
            lengths.max_queries,
            lengths.max_keys,
            *scale,
            window.unwrap_or(0),
            results.as_mut_ptr(),
            &raw mut message,
        )
    };
    let [output_thk, log_sums_ht] = owned(OPERATION, status, message, results)?;
    match (&query_thk.size()[..], &log_sums_ht.size()[..]) {
        ([t, h, _], [rows, columns]) if rows == h && columns == t => Ok([output_thk, log_sums_ht]),
        (_, found) => Err(Error::Shape { operation: OPERATION, tensor: "log sums", expected: "[h, t]", found: found.to_vec() }),
    }
}

/// The gradients of query, key and value, given that of the output. `output_thk` and `log_sums_ht` need not be those of [`forward`]: the
/// probabilities are exp(score - log sum), whatever else was summed.
///
/// # Errors
/// [`Error::Torch`] for what the kernels refuse, without a device, or out of its memory.
pub(super) fn backward(inputs: &FlashInputs, gradient_thk: &Tensor, output_thk: &Tensor, log_sums_ht: &Tensor) -> Result<[Tensor; 3]> {
    let FlashInputs { query_thk, key_ngk, value_ngk, lengths, window, scale } = inputs;
    let mut results = [std::ptr::null_mut(); 3];
    let mut message = std::ptr::null_mut();
    // SAFETY: handles are live for the length of the call; the shim writes three results where it returns 0.
    let status = unsafe {
        ft_flash_attention_backward(
            handle(gradient_thk),
            handle(query_thk),
            handle(key_ngk),
            handle(value_ngk),
            handle(output_thk),
            handle(log_sums_ht),
            handle(&lengths.query_starts),
            handle(&lengths.key_starts),
            lengths.max_queries,
            lengths.max_keys,
            *scale,
            window.unwrap_or(0),
            results.as_mut_ptr(),
            &raw mut message,
        )
    };
    owned("flash attention backward", status, message, results)
}

fn handle(tensor: &Tensor) -> Handle {
    tensor.as_ptr().cast_mut()
}

fn owned<const N: usize>(operation: &'static str, status: c_int, message: *mut c_char, results: [Handle; N]) -> Result<[Tensor; N]> {
    if status != 0 {
        return Err(native_error(operation, message));
    }
    // SAFETY: the shim did its work, so each is a tensor that it made for us.
    Ok(results.map(|result| unsafe { Tensor::from_ptr(result) }))
}
