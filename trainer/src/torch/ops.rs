//! Tensor operations that return errors: the fallible twins of `tch`, each naming itself and the shapes that it was given.

use tch::{Kind, TchError, Tensor};

use crate::error::{Error, Result};

/// Turns what libtorch said into an [`Error::Torch`] with the operation's name and shapes.
pub(crate) trait Named<T> {
    fn named(self, operation: &'static str, tensors: &[&Tensor]) -> Result<T>;
}

impl<T> Named<T> for Result<T, TchError> {
    fn named(self, operation: &'static str, tensors: &[&Tensor]) -> Result<T> {
        self.map_err(|source| Error::Torch { operation, shapes: tensors.iter().map(|tensor| tensor.size()).collect(), source })
    }
}

/// Dims of a matrix.
///
/// # Errors
/// [`Error::Shape`] when `tensor` has other than two dims.
pub fn dims2(operation: &'static str, name: &'static str, tensor: &Tensor) -> Result<(i64, i64)> {
    match tensor.size()[..] {
        [a, b] => Ok((a, b)),
        _ => Err(Error::Shape { operation, tensor: name, expected: "two dims", found: tensor.size() }),
    }
}

/// Dims of a tensor of rank 3.
///
/// # Errors
/// [`Error::Shape`] when `tensor` has other than three dims.
pub fn dims3(operation: &'static str, name: &'static str, tensor: &Tensor) -> Result<(i64, i64, i64)> {
    match tensor.size()[..] {
        [a, b, c] => Ok((a, b, c)),
        _ => Err(Error::Shape { operation, tensor: name, expected: "three dims", found: tensor.size() }),
    }
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident($first:ident $(, $other:ident: $type:ty)*) = $method:ident($($argument:expr),*);)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Error::Torch`] on shapes or types that do not fit, or out of memory.
        pub fn $name($first: &Tensor $(, $other: $type)*) -> Result<Tensor> {
            $first.$method($($argument),*).named(stringify!($name), &[$first])
        }
    )*};
}

operations! {
    /// Elementwise sum, with broadcasting.
    add(left, right: &Tensor) = f_add(right);
    /// Elementwise difference, with broadcasting.
    sub(left, right: &Tensor) = f_sub(right);
    /// Elementwise product, with broadcasting.
    mul(left, right: &Tensor) = f_mul(right);
    /// Product with a number.
    scale(tensor, factor: f64) = f_mul_scalar(factor);
    /// Matrix product, batched over leading dims.
    matmul(left, right: &Tensor) = f_matmul(right);
    /// Elementwise exponential.
    exp(tensor) = f_exp();
    /// `tensor` in another element type; shares storage when it has that type already.
    cast(tensor, kind: Kind) = f_to_kind(kind);
    /// The same elements under another shape, copied when the strides ask for it.
    reshape(tensor, shape: &[i64]) = f_reshape(shape);
    /// Dims in another order, without a copy.
    permute(tensor, order: &[i64]) = f_permute(order);
    /// Two dims exchanged, without a copy.
    transpose(tensor, first_dim: i64, second_dim: i64) = f_transpose(first_dim, second_dim);
    /// `length` entries of `dim` from `start`, without a copy.
    narrow(tensor, dim: i64, start: i64, length: i64) = f_narrow(dim, start, length);
    /// Entry `index` of `dim`, without a copy.
    select(tensor, dim: i64, index: i64) = f_select(dim, index);
    /// Rows (entries of `dim`) gathered by an i64 vector of indices.
    index_select(tensor, dim: i64, index: &Tensor) = f_index_select(dim, index);
    /// Zeros before and after the last dims, a pair of counts for each, the last dim first.
    pad(tensor, counts: &[i64]) = f_constant_pad_nd(counts);
    /// Sum over `dims`.
    sum(tensor, dims: &[i64], keep_dims: bool) = f_sum_dim_intlist(dims, keep_dims, None::<Kind>);
    /// Sum of all elements, as a scalar tensor.
    sum_all(tensor) = f_sum(None::<Kind>);
    /// Largest entry along `dim`, which stays as a dim of 1.
    max_keep(tensor, dim: i64) = f_amax([dim], true);
    /// Softmax along `dim`, in the element type of `tensor`.
    softmax(tensor, dim: i64) = f_softmax(dim, None::<Kind>);
    /// A dim of 1 inserted at `dim`.
    unsqueeze(tensor, dim: i64) = f_unsqueeze(dim);
    /// A tensor of the same shape with its own, contiguous storage where it had none.
    contiguous(tensor) = f_contiguous();
}

/// `input` times `weight` transposed, plus `bias`.
///
/// # Shapes
/// `input` [t, in], `weight` [out, in], `bias` [out]; gives [t, out].
///
/// # Errors
/// [`Error::Torch`] on shapes or types that do not fit, or out of memory.
pub fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    input.f_linear(weight, bias).named("linear", &[input, weight])
}

/// Tensors joined along `dim`.
///
/// # Errors
/// [`Error::Torch`] on shapes or types that do not fit, or out of memory.
pub fn concatenate(tensors: &[&Tensor], dim: i64) -> Result<Tensor> {
    Tensor::f_cat(tensors, dim).named("concatenate", tensors)
}

/// Tensors of one shape joined along a new dim.
///
/// # Errors
/// [`Error::Torch`] on shapes or types that do not fit, or out of memory.
pub fn stack(tensors: &[&Tensor], dim: i64) -> Result<Tensor> {
    Tensor::f_stack(tensors, dim).named("stack", tensors)
}

/// The `count` largest entries of each row and their indices, largest first.
///
/// # Errors
/// [`Error::Torch`] when `count` exceeds the row.
pub fn top_k(tensor: &Tensor, count: i64) -> Result<(Tensor, Tensor)> {
    tensor.f_topk(count, -1, true, true).named("top_k", &[tensor])
}

/// A tensor of host values on `like`'s device.
///
/// # Errors
/// [`Error::Torch`] when the device is out of memory.
pub fn from_slice<T: tch::kind::Element>(values: &[T], device: tch::Device) -> Result<Tensor> {
    Tensor::f_from_slice(values).and_then(|tensor| tensor.f_to_device(device)).named("from_slice", &[])
}

/// `tensor` on another device; shares storage when it is there already.
///
/// # Errors
/// [`Error::Torch`] when the device is out of memory.
pub fn to_device(tensor: &Tensor, device: tch::Device) -> Result<Tensor> {
    tensor.f_to_device(device).named("to_device", &[tensor])
}

/// Zeros of `shape`.
///
/// # Errors
/// [`Error::Torch`] out of memory.
pub fn zeros(shape: &[i64], kind: Kind, device: tch::Device) -> Result<Tensor> {
    Tensor::f_zeros(shape, (kind, device)).named("zeros", &[])
}

/// Uninitialised storage of `shape`; every element must be written before it is read.
///
/// # Errors
/// [`Error::Torch`] out of memory.
pub fn empty(shape: &[i64], kind: Kind, device: tch::Device) -> Result<Tensor> {
    Tensor::f_empty(shape, (kind, device)).named("empty", &[])
}

/// The value of a scalar tensor.
///
/// # Errors
/// [`Error::Torch`] when `tensor` has more than one element.
pub fn scalar(tensor: &Tensor) -> Result<f64> {
    tensor.f_double_value(&[]).named("scalar", &[tensor])
}

/// The elements of a tensor as f32 on the host, in row-major order.
///
/// # Errors
/// [`Error::Torch`] when the copy fails.
pub fn to_f32_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.detach();
    let host = tensor
        .f_to_device(tch::Device::Cpu)
        .and_then(|host| host.f_to_kind(Kind::Float))
        .and_then(|host| host.f_contiguous())
        .named("to_f32_vec", &[&tensor])?;
    let mut values = vec![0f32; host.numel()];
    host.f_copy_data(&mut values, host.numel()).named("to_f32_vec", &[&tensor])?;
    Ok(values)
}

/// The elements of a tensor as f64 on the host, in row-major order.
///
/// # Errors
/// [`Error::Torch`] when the copy fails.
pub fn to_f64_vec(tensor: &Tensor) -> Result<Vec<f64>> {
    let host = tensor
        .f_to_device(tch::Device::Cpu)
        .and_then(|host| host.f_to_kind(Kind::Double))
        .and_then(|host| host.f_contiguous())
        .named("to_f64_vec", &[tensor])?;
    let mut values = vec![0f64; host.numel()];
    host.f_copy_data(&mut values, host.numel()).named("to_f64_vec", &[tensor])?;
    Ok(values)
}

/// The elements of an integer tensor on the host, in row-major order.
///
/// # Errors
/// [`Error::Torch`] when the copy fails.
pub fn to_i64_vec(tensor: &Tensor) -> Result<Vec<i64>> {
    let host = tensor
        .f_to_device(tch::Device::Cpu)
        .and_then(|host| host.f_to_kind(Kind::Int64))
        .and_then(|host| host.f_contiguous())
        .named("to_i64_vec", &[tensor])?;
    let mut values = vec![0i64; host.numel()];
    host.f_copy_data(&mut values, host.numel()).named("to_i64_vec", &[tensor])?;
    Ok(values)
}

/// The elements of a u8 tensor on the host, in row-major order.
///
/// # Errors
/// [`Error::Torch`] when the copy fails.
pub fn to_u8_vec(tensor: &Tensor) -> Result<Vec<u8>> {
    let host = tensor.f_to_device(tch::Device::Cpu).and_then(|host| host.f_contiguous()).named("to_u8_vec", &[tensor])?;
    let mut values = vec![0u8; host.numel()];
    host.f_copy_data(&mut values, host.numel()).named("to_u8_vec", &[tensor])?;
    Ok(values)
}

/// Runs `work` without recording a graph.
///
/// # Errors
/// Those of `work`.
pub fn without_graph<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    tch::no_grad(work)
}
