//! Our CUDA kernels of training, on tensors: one launch where libtorch's operators take several, each of which reads and writes everything.
//!
//! [`can_take`] says whether they can be used, else the operators are; the functions themselves refuse what the kernels cannot take. None of
//! them records a graph or waits for the device. What they compute is defined in [`ft_quant::training`]: in f32, rounded once to the type of
//! the tensors, in an order that depends on the shapes alone.
//!
//! Letters: r rows, f expert width, t tokens, d model width, h heads, k head width, p pairs (k / 2), e experts, a active experts of a token,
//! n rows of all experts (or of logits), o output width, v vocabulary.

use std::sync::Arc;

use ft_quant::cuda::{Combine, CombineTypes, CrossEntropy, ElementType, ExpertBias, Gpu, RmsNorm, Rope, Swiglu, rms_norm_slices};
use tch::{Device, Kind, TchError, Tensor};

pub use ft_quant::cuda::RopeDirection;

use super::gpu::{InOperation, address, check_tensor, gpu, shape_error, stream};
use super::ops::{Named, dims2, dims3, empty, zeros};
use crate::error::Result;

/// True for contiguous tensors of bf16 or f32 on one GPU that runs our kernels.
#[must_use]
pub fn can_take(tensors: &[&Tensor]) -> bool {
    let Some(Device::Cuda(ordinal)) = tensors.first().map(|tensor| tensor.device()) else { return false };
    let is_taken = |tensor: &&Tensor| {
        tensor.device() == Device::Cuda(ordinal) && tensor.is_contiguous() && matches!(tensor.kind(), Kind::BFloat16 | Kind::Float)
    };
    tensors.iter().all(is_taken) && gpu("kernels", ordinal).is_ok()
}

/// A bias for each expert, and the rows that each owns, which are sorted by expert.
#[derive(Debug, Clone, Copy)]
pub struct BiasByExpert<'a> {
    /// [e, o] of the rows' type, e no less than 1.
    pub bias_eo: &'a Tensor,
    /// i32 [e]: expert k owns the rows from the end before its own, or 0, to its own. The last one owns what lies beyond all ends.
    pub ends_e: &'a Tensor,
}

/// The activation of `gate_up_rf`, to which the bias is added first (the sum rounded to its type).
///
/// # Shapes
/// `gate_up_rf` [r, 2f], even columns the gate, odd columns the linear half; bias [e, 2f]; gives [r, f] in the same type.
///
/// # Errors
/// [`crate::Error::Shape`] and [`crate::Error::Torch`] on tensors that do not fit, or out of memory; [`crate::Error::Codec`] where the kernel
/// cannot be compiled or launched.
pub fn swiglu(gate_up_rf: &Tensor, bias: Option<BiasByExpert<'_>>, alpha: f32, limit: f32) -> Result<Tensor> {
    let launch = Launch::new("swiglu", "gate_up", gate_up_rf)?;
    let of = launch.swiglu(gate_up_rf, bias, alpha, limit)?;
    let output_rf = empty(&[count_of(of.rows), count_of(of.width)], gate_up_rf.kind(), launch.device)?;
    let (gpu, stream) = launch.start()?;
    // SAFETY: contiguous tensors of these shapes on this device, as was checked. They are used on the stream on which libtorch, too, uses and
    // frees them, so that they stay until the kernel has run; the output is new.
    unsafe { gpu.swiglu_on(stream, of, address(&output_rf)) }.in_operation(launch.operation)?;
    Ok(output_rf)
}

/// The gradient of `gate_up_rf` (and of the bias that each of its rows had), given that of the activation.
///
/// # Shapes
/// As [`swiglu`]; `gradient_rf` [r, f]; gives [r, 2f], all of one type.
///
/// # Errors
/// As [`swiglu`].
pub fn swiglu_backward(
    gate_up_rf: &Tensor,
    bias: Option<BiasByExpert<'_>>,
    gradient_rf: &Tensor,
    alpha: f32,
    limit: f32,
) -> Result<Tensor> {
    let launch = Launch::new("swiglu backward", "gate_up", gate_up_rf)?;
    let of = launch.swiglu(gate_up_rf, bias, alpha, limit)?;
    launch.check("gradient", "[r, f]", gradient_rf, &[count_of(of.rows), count_of(of.width)], gate_up_rf.kind())?;
    let result_rf = empty(&gate_up_rf.size(), gate_up_rf.kind(), launch.device)?;
    let (gpu, stream) = launch.start()?;
    // SAFETY: as in `swiglu`.
    unsafe { gpu.swiglu_backward_on(stream, of, address(gradient_rf), address(&result_rf)) }.in_operation(launch.operation)?;
    Ok(result_rf)
}

/// `hidden_td` over its root mean square, times the weight; and the reciprocals of the roots, which the gradients need.
///
/// # Shapes
/// `hidden_td` [t, d], `weight_d` f32 [d]; gives [t, d] in the type of `hidden_td`, and f32 [t, 1].
///
/// # Errors
/// As [`swiglu`].
pub fn rms_norm(hidden_td: &Tensor, weight_d: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let launch = Launch::new("rms_norm", "hidden", hidden_td)?;
    let (t, d) = dims2("rms_norm", "hidden", hidden_td)?;
    launch.check("weight", "[d]", weight_d, &[d], Kind::Float)?;
    let output_td = empty(&[t, d], hidden_td.kind(), launch.device)?;
    let reciprocal_t1 = empty(&[t, 1], Kind::Float, launch.device)?;
    let of = launch.rms_norm(hidden_td, &reciprocal_t1, (t, d));
    #[expect(clippy::cast_possible_truncation, reason = "a constant of a model that computes in f32")]
    let epsilon = epsilon as f32;
    let (gpu, stream) = launch.start()?;
    // SAFETY: as in `swiglu`; the reciprocals are new, too.
    unsafe { gpu.rms_norm_on(stream, of, address(weight_d), epsilon, address(&output_td)) }.in_operation(launch.operation)?;
    Ok((output_td, reciprocal_t1))
}

/// The gradient of `hidden_td`, given that of its norm.
///
/// # Shapes
/// As [`rms_norm`]; `gradient_td` [t, d]; gives [t, d], both of the type of `hidden_td`.
///
/// # Errors
/// As [`swiglu`].
pub fn rms_norm_backward(hidden_td: &Tensor, weight_d: &Tensor, reciprocal_t1: &Tensor, gradient_td: &Tensor) -> Result<Tensor> {
    let launch = Launch::new("rms_norm backward", "hidden", hidden_td)?;
    let (t, d) = dims2("rms_norm backward", "hidden", hidden_td)?;
    launch.check("weight", "[d]", weight_d, &[d], Kind::Float)?;
    launch.check("reciprocal", "[t, 1]", reciprocal_t1, &[t, 1], Kind::Float)?;
    launch.check("gradient", "[t, d]", gradient_td, &[t, d], hidden_td.kind())?;
    let result_td = empty(&[t, d], hidden_td.kind(), launch.device)?;
    let of = launch.rms_norm(hidden_td, reciprocal_t1, (t, d));
    let (weight, gradient, result) = (address(weight_d), address(gradient_td), address(&result_td));
    let (gpu, stream) = launch.start()?;
    // SAFETY: as in `swiglu`.
    unsafe { gpu.rms_norm_backward_on(stream, of, weight, gradient, result) }.in_operation(launch.operation)?;
    Ok(result_td)
}

/// The gradient of the weight of a norm, given that of the norm.
///
/// # Shapes
/// As [`rms_norm_backward`]; gives f32 [d].
///
/// # Errors
/// As [`swiglu`].
pub fn rms_norm_weight_gradient(hidden_td: &Tensor, reciprocal_t1: &Tensor, gradient_td: &Tensor) -> Result<Tensor> {
    let launch = Launch::new("rms_norm weight", "hidden", hidden_td)?;
    let (t, d) = dims2("rms_norm weight", "hidden", hidden_td)?;
    launch.check("reciprocal", "[t, 1]", reciprocal_t1, &[t, 1], Kind::Float)?;
    launch.check("gradient", "[t, d]", gradient_td, &[t, d], hidden_td.kind())?;
    let of = launch.rms_norm(hidden_td, reciprocal_t1, (t, d));
    let partials_sd = empty(&[count_of(rms_norm_slices(of.rows)), d], Kind::Float, launch.device)?;
    let result_d = empty(&[d], Kind::Float, launch.device)?;
    let (gradient, partials, result) = (address(gradient_td), address(&partials_sd), address(&result_d));
    let (gpu, stream) = launch.start()?;
    // SAFETY: as in `swiglu`; what libtorch makes of the memory of the partials comes later on the same stream.
    unsafe { gpu.rms_norm_weight_gradient_on(stream, of, gradient, partials, result) }.in_operation(launch.operation)?;
    Ok(result_d)
}

/// Heads by their positions, or gradients of rotated heads back: element i pairs with element i + k/2.
///
/// # Shapes
/// `heads_thk` [t, h, k], `cos_t1p` and `sin_t1p` f32 [t, 1, p]; gives [t, h, k] in the type of the heads.
///
/// # Errors
/// As [`swiglu`].
pub fn rope(heads_thk: &Tensor, cos_t1p: &Tensor, sin_t1p: &Tensor, direction: RopeDirection) -> Result<Tensor> {
    let launch = Launch::new("rope", "heads", heads_thk)?;
    let (t, h, k) = dims3("rope", "heads", heads_thk)?;
    if k % 2 != 0 {
        return Err(shape_error("rope", "heads", "[t, h, 2p]", heads_thk));
    }
    launch.check("cos", "[t, 1, p]", cos_t1p, &[t, 1, k / 2], Kind::Float)?;
    launch.check("sin", "[t, 1, p]", sin_t1p, &[t, 1, k / 2], Kind::Float)?;
    let output_thk = empty(&[t, h, k], heads_thk.kind(), launch.device)?;
    let of = Rope {
        element: launch.element,
        tokens: size_of_dim(t),
        num_heads: size_of_dim(h),
        pairs: size_of_dim(k / 2),
        cosines: address(cos_t1p),
        sines: address(sin_t1p),
    };
    let (gpu, stream) = launch.start()?;
    // SAFETY: as in `swiglu`.
    unsafe { gpu.rope_on(stream, of, direction, address(heads_thk), address(&output_thk)) }.in_operation(launch.operation)?;
    Ok(output_thk)
}

/// For each token, its rows times their weights, summed in the order of its slots. Without weights and with one slot to each token, rows are
/// gathered bit for bit.
///
/// # Shapes
/// `rows_nd` [n, d], `row_of_slot_ta` i32 [t, a], `weights_ta` [t, a] of the rows' type or f32; gives [t, d] in the type of the rows. What is
/// summed over an index outside of 0..n is NaN.
///
/// # Errors
/// As [`swiglu`].
pub fn combine(rows_nd: &Tensor, row_of_slot_ta: &Tensor, weights_ta: Option<&Tensor>) -> Result<Tensor> {
    let launch = Launch::new("combine", "rows", rows_nd)?;
    let of = launch.combine(rows_nd, row_of_slot_ta, weights_ta)?;
    let output_td = empty(&[count_of(of.tokens), count_of(of.width)], rows_nd.kind(), launch.device)?;
    let (gpu, stream) = launch.start()?;
    // SAFETY: as in `swiglu`; the kernel reads no row that is not there.
    unsafe { gpu.combine_on(stream, of, address(&output_td)) }.in_operation(launch.operation)?;
    Ok(output_td)
}

/// The gradients of rows and of weights, where they are wanted, given that of [`combine`].
///
/// Each row is named by one slot, or there are more rows than slots: those that no slot names have gradients of 0 then.
///
/// # Shapes
/// As [`combine`]; `gradient_td` [t, d] of the rows' type; gives [n, d] and [t, a] in the types of rows and weights.
///
/// # Errors
/// As [`swiglu`].
pub fn combine_backward(
    rows_nd: &Tensor,
    row_of_slot_ta: &Tensor,
    weights_ta: Option<&Tensor>,
    gradient_td: &Tensor,
    (wants_rows, wants_weights): (bool, bool),
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let launch = Launch::new("combine backward", "rows", rows_nd)?;
    let of = launch.combine(rows_nd, row_of_slot_ta, weights_ta)?;
    launch.check("gradient", "[t, d]", gradient_td, &[count_of(of.tokens), count_of(of.width)], rows_nd.kind())?;
    // The kernel writes the rows that are named, which are all of them where there are no more.
    let new_rows = if of.num_rows > of.tokens * of.active { zeros } else { empty };
    let row_gradients = match wants_rows {
        true => Some(new_rows(&rows_nd.size(), rows_nd.kind(), launch.device)?),
        false => None,
    };
    let weight_kind = weights_ta.map_or(rows_nd.kind(), Tensor::kind);
    let weight_gradients = match wants_weights {
        true => Some(empty(&row_of_slot_ta.size(), weight_kind, launch.device)?),
        false => None,
    };
    let (to_rows, to_weights) = (row_gradients.as_ref().map(address), weight_gradients.as_ref().map(address));
    let (gpu, stream) = launch.start()?;
    // SAFETY: as in `swiglu`; the kernel reads and writes no row that is not there.
    unsafe { gpu.combine_backward_on(stream, of, address(gradient_td), to_rows, to_weights) }.in_operation(launch.operation)?;
    Ok((row_gradients, weight_gradients))
}

/// Adds to each row the bias of its expert.
///
/// # Shapes
/// `rows_ro` [r, o], bias [e, o].
///
/// # Errors
/// As [`swiglu`].
pub fn add_expert_bias(rows_ro: &mut Tensor, bias: BiasByExpert<'_>) -> Result<()> {
    let launch = Launch::new("add_expert_bias", "rows", rows_ro)?;
    let (r, o) = dims2("add_expert_bias", "rows", rows_ro)?;
    let bias = launch.bias(bias, o, rows_ro.kind())?;
    let dims = (size_of_dim(r), size_of_dim(o));
    let (gpu, stream) = launch.start()?;
    // SAFETY: as in `swiglu`; the rows are borrowed exclusively.
    unsafe { gpu.add_expert_bias_on(stream, launch.element, dims, address(rows_ro), bias) }.in_operation(launch.operation)
}

/// The losses of logits, weight (logsumexp - logit of the target). With `wants_gradient` the logits become their gradient, weight
/// (softmax - onehot).
///
/// # Shapes
/// `logits_nv` [n, v], `targets_n` i64 [n], `weights_n` f32 [n]; gives f32 [n]. Where a target is not below v, a logit is NaN or positive
/// infinity, or all of a row are negative infinity, loss and gradient of the row are NaN.
///
/// # Errors
/// As [`swiglu`].
pub fn cross_entropy(logits_nv: &mut Tensor, targets_n: &Tensor, weights_n: &Tensor, wants_gradient: bool) -> Result<Tensor> {
    let launch = Launch::new("cross_entropy", "logits", logits_nv)?;
    let (n, v) = dims2("cross_entropy", "logits", logits_nv)?;
    launch.check("targets", "[n]", targets_n, &[n], Kind::Int64)?;
    launch.check("weights", "[n]", weights_n, &[n], Kind::Float)?;
    let loss_n = empty(&[n], Kind::Float, launch.device)?;
    let of = CrossEntropy {
        element: launch.element,
        rows: size_of_dim(n),
        vocabulary: size_of_dim(v),
        logits: address(logits_nv),
        targets: address(targets_n),
        weights: address(weights_n),
    };
    let (gpu, stream) = launch.start()?;
    // SAFETY: as in `swiglu`; the logits are borrowed exclusively, and the kernel reads none that is not there.
    unsafe { gpu.cross_entropy_on(stream, of, wants_gradient, address(&loss_n)) }.in_operation(launch.operation)?;
    Ok(loss_n)
}

/// What a kernel is launched on, by its first tensor.
struct Launch {
    operation: &'static str,
    device: Device,
    element: ElementType,
}

impl Launch {
    fn new(operation: &'static str, name: &'static str, tensor: &Tensor) -> Result<Self> {
        let element = match tensor.kind() {
            Kind::BFloat16 if tensor.is_contiguous() => ElementType::Bf16,
            Kind::Float if tensor.is_contiguous() => ElementType::F32,
            kind => {
                let found = format!("`{name}` is {kind:?}, expected contiguous BFloat16 or Float");
                return Err(TchError::Torch(found)).named(operation, &[tensor]);
            }
        };
        Ok(Self { operation, device: tensor.device(), element })
    }

    /// The device with our kernels, and the stream on which libtorch uses it.
    fn start(&self) -> Result<(Arc<Gpu>, u64)> {
        match self.device {
            Device::Cuda(ordinal) => Ok((gpu(self.operation, ordinal)?, stream(self.operation, ordinal)?)),
            other => Err(TchError::Torch(format!("the tensors are on {other:?}, expected a GPU"))).named(self.operation, &[]),
        }
    }

    fn check(&self, name: &'static str, expected: &'static str, tensor: &Tensor, shape: &[i64], kind: Kind) -> Result<()> {
        check_tensor(self.operation, name, expected, tensor, shape, kind, self.device)
    }

    fn swiglu(&self, gate_up_rf: &Tensor, bias: Option<BiasByExpert<'_>>, alpha: f32, limit: f32) -> Result<Swiglu> {
        let (r, width) = dims2(self.operation, "gate_up", gate_up_rf)?;
        if width % 2 != 0 {
            return Err(shape_error(self.operation, "gate_up", "[r, 2f]", gate_up_rf));
        }
        let bias = bias.map(|bias| self.bias(bias, width, gate_up_rf.kind())).transpose()?;
        let (rows, width) = (size_of_dim(r), size_of_dim(width / 2));
        Ok(Swiglu { element: self.element, rows, width, alpha, limit, gate_up: address(gate_up_rf), bias })
    }

    fn bias(&self, bias: BiasByExpert<'_>, width: i64, kind: Kind) -> Result<ExpertBias> {
        let (e, _) = dims2(self.operation, "bias", bias.bias_eo)?;
        if e == 0 {
            return Err(shape_error(self.operation, "bias", "[e, o], e at least 1", bias.bias_eo));
        }
        self.check("bias", "[e, o]", bias.bias_eo, &[e, width], kind)?;
        self.check("ends", "[e]", bias.ends_e, &[e], Kind::Int)?;
        Ok(ExpertBias { num_experts: size_of_dim(e), bias: address(bias.bias_eo), ends: address(bias.ends_e) })
    }

    fn rms_norm(&self, hidden_td: &Tensor, reciprocal_t1: &Tensor, (t, d): (i64, i64)) -> RmsNorm {
        RmsNorm {
            element: self.element,
            rows: size_of_dim(t),
            width: size_of_dim(d),
            hidden: address(hidden_td),
            reciprocals: address(reciprocal_t1),
        }
    }

    fn combine(&self, rows_nd: &Tensor, row_of_slot_ta: &Tensor, weights_ta: Option<&Tensor>) -> Result<Combine> {
        let (n, d) = dims2(self.operation, "rows", rows_nd)?;
        let (t, a) = dims2(self.operation, "row_of_slot", row_of_slot_ta)?;
        self.check("row_of_slot", "[t, a]", row_of_slot_ta, &[t, a], Kind::Int)?;
        let types = match (self.element, weights_ta.map(Tensor::kind)) {
            (ElementType::F32, _) => CombineTypes::F32,
            (ElementType::Bf16, Some(Kind::Float)) => CombineTypes::Bf16WithF32Weights,
            (ElementType::Bf16, _) => CombineTypes::Bf16,
        };
        if let Some(weights_ta) = weights_ta {
            let kind = if types.elements().1 == ElementType::F32 { Kind::Float } else { Kind::BFloat16 };
            self.check("weights", "[t, a]", weights_ta, &[t, a], kind)?;
        }
        Ok(Combine {
            types,
            num_rows: size_of_dim(n),
            tokens: size_of_dim(t),
            active: size_of_dim(a),
            width: size_of_dim(d),
            rows: address(rows_nd),
            row_of_slot: address(row_of_slot_ta),
            weights: weights_ta.map(address),
        })
    }
}

/// The size of a dim, which is no less than 0.
fn size_of_dim(dim: i64) -> usize {
    usize::try_from(dim).unwrap_or(0)
}

/// A size as a dim; it came from one, or is smaller.
fn count_of(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
