//! Autograd functions written in Rust: a forward result, and a [`Function`] that gives its gradient.

use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{TchError, Tensor};

use crate::error::{Error, Result};

/// The backward half of a differentiable operation; it owns whatever it keeps from the forward pass.
///
/// For tensors on a GPU libtorch calls it from a thread of its own, one call at a time, while the thread that asked for gradients
/// waits; so it may hold what is shared with that thread (tensors are not `Sync`), but no thread-local state.
pub trait Function: 'static {
    /// Gradients of the inputs, in the order given to [`attach`].
    ///
    /// `output_gradients[i]` is `None` where nothing flows into output `i`. `needs_gradient[j]` says whether input `j` wants a
    /// gradient; where it is false, `None` saves the work. Runs without recording a graph.
    ///
    /// # Errors
    /// Any failure of the computation; it ends the whole backward pass.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], needs_gradient: &[bool]) -> Result<Vec<Option<Tensor>>>;
}

type Handle = *mut torch_sys::C_tensor;
type Context = Box<dyn Function>;

unsafe extern "C" {
    fn ft_autograd_attach(
        context: *mut c_void,
        backward: unsafe extern "C" fn(*mut c_void, *const Handle, usize, *const bool, *mut Handle, usize) -> *mut c_char,
        drop: unsafe extern "C" fn(*mut c_void),
        free_message: unsafe extern "C" fn(*mut c_char),
        inputs: *const Handle,
        num_inputs: usize,
        outputs: *const Handle,
        num_outputs: usize,
        message: *mut *mut c_char,
    ) -> i32;
    fn ft_autograd_backward(tensor: Handle, gradient: Handle, message: *mut *mut c_char) -> i32;
    fn ft_autograd_clear_gradient(tensor: Handle, message: *mut *mut c_char) -> i32;
    fn ft_autograd_is_recording() -> bool;
    fn ft_autograd_free_message(message: *mut c_char);
}

/// Gives `outputs`, computed without a graph, a history: their gradients reach `inputs` through `function`.
///
/// Outputs come back unchanged, and `function` is dropped at once, when no graph is being recorded or no input requires a gradient.
///
/// # Errors
/// [`Error::Torch`] when libtorch refuses, for instance an output of an integer type.
pub fn attach(function: impl Function, inputs: &[&Tensor], mut outputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
    if !records_graph(inputs) {
        return Ok(outputs);
    }
    let context = Box::into_raw(Box::new(Box::new(function) as Context));
    let input_handles: Vec<Handle> = inputs.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect();
    let output_handles: Vec<Handle> = outputs.iter_mut().map(Tensor::as_mut_ptr).collect();
    let mut message = std::ptr::null_mut();
    // SAFETY: the handles point to live tensors for the length of the call. The shim takes the context only when it returns 0.
    let status = unsafe {
        ft_autograd_attach(
            context.cast(),
            backward_callback,
            drop_callback,
            free_message_callback,
            input_handles.as_ptr(),
            input_handles.len(),
            output_handles.as_ptr(),
            output_handles.len(),
            &raw mut message,
        )
    };
    if status != 0 {
        // SAFETY: the shim left the context to us.
        drop(unsafe { Box::from_raw(context) });
        return Err(native_error("autograd attach", message));
    }
    Ok(outputs)
}

/// True when a graph is being recorded and some input takes part in it.
#[must_use]
pub fn records_graph(inputs: &[&Tensor]) -> bool {
    // SAFETY: reads a thread-local flag.
    let is_recording = unsafe { ft_autograd_is_recording() };
    is_recording && inputs.iter().any(|tensor| tensor.requires_grad())
}

/// Adds to the `.grad` of every leaf below `tensor` what follows from `gradient`, which has the shape of `tensor`.
///
/// # Errors
/// [`Error::Torch`] with the message of the function that failed.
pub fn backward(tensor: &Tensor, gradient: &Tensor) -> Result<()> {
    let mut message = std::ptr::null_mut();
    // SAFETY: both handles are live; the shim copies the tensors (reference counts) before it starts.
    let status = unsafe { ft_autograd_backward(tensor.as_ptr().cast_mut(), gradient.as_ptr().cast_mut(), &raw mut message) };
    if status == 0 { Ok(()) } else { Err(native_error("backward", message)) }
}

/// Leaves `leaf` without a gradient; a handle taken before stays as it is.
///
/// # Errors
/// [`Error::Torch`] when `leaf` cannot hold one.
pub fn clear_gradient(leaf: &Tensor) -> Result<()> {
    let mut message = std::ptr::null_mut();
    // SAFETY: the handle is live.
    let status = unsafe { ft_autograd_clear_gradient(leaf.as_ptr().cast_mut(), &raw mut message) };
    if status == 0 { Ok(()) } else { Err(native_error("clear_gradient", message)) }
}

/// The error of a function of the shim that gave `message`, which this releases.
pub(super) fn native_error(operation: &'static str, message: *mut c_char) -> Error {
    let text = if message.is_null() {
        "out of memory".to_owned()
    } else {
        // SAFETY: a message of the shim is a C string that it allocated and that we release exactly once.
        unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            ft_autograd_free_message(message);
            text
        }
    };
    Error::Torch { operation, shapes: Vec::new(), source: TchError::Torch(text) }
}

unsafe extern "C" fn backward_callback(
    context: *mut c_void,
    output_gradients: *const Handle,
    num_outputs: usize,
    needs_gradient: *const bool,
    input_gradients: *mut Handle,
    num_inputs: usize,
) -> *mut c_char {
    // SAFETY: the shim passes arrays of these lengths and the context of `attach`; handles are live for the length of the call.
    let (function, outputs, needs, slots) = unsafe {
        (
            &mut *context.cast::<Context>(),
            std::slice::from_raw_parts(output_gradients, num_outputs),
            std::slice::from_raw_parts(needs_gradient, num_inputs),
            std::slice::from_raw_parts_mut(input_gradients, num_inputs),
        )
    };
    let work = AssertUnwindSafe(|| {
        // SAFETY: a handle that is not null is a live tensor; the clone shares it and drops with this frame.
        let outputs: Vec<Option<Tensor>> =
            outputs.iter().map(|&handle| (!handle.is_null()).then(|| unsafe { Tensor::clone_from_ptr(handle) })).collect();
        let gradients = function.backward(&outputs, needs)?;
        assert_eq!(gradients.len(), slots.len(), "a function gives one gradient for each input");
        for (slot, gradient) in slots.iter_mut().zip(gradients) {
            if let Some(gradient) = gradient {
                *slot = std::mem::ManuallyDrop::new(gradient).as_mut_ptr();
            }
        }
        Ok::<(), Error>(())
    });
    let text = match catch_unwind(work) {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(error)) => crate::error::chain(&error),
        Err(_) => "a backward function panicked".to_owned(),
    };
    CString::new(text.replace('\0', " ")).unwrap_or_default().into_raw()
}

unsafe extern "C" fn drop_callback(context: *mut c_void) {
    // SAFETY: the pointer of `attach`, handed back once. A panic in a destructor must not cross into C++.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(context.cast::<Context>()) })));
}

unsafe extern "C" fn free_message_callback(message: *mut c_char) {
    // SAFETY: made by `CString::into_raw` in `backward_callback`.
    drop(unsafe { CString::from_raw(message) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    struct Square {
        input: Tensor,
    }

    impl Function for Square {
        fn backward(&mut self, output_gradients: &[Option<Tensor>], _: &[bool]) -> Result<Vec<Option<Tensor>>> {
            Ok(vec![output_gradients[0].as_ref().map(|gradient| gradient * &self.input * 2.0)])
        }
    }

    struct Fails;

    impl Function for Fails {
        fn backward(&mut self, _: &[Option<Tensor>], _: &[bool]) -> Result<Vec<Option<Tensor>>> {
            Err(Error::NotFinite { what: "the gradient".into(), step: 3, samples: String::new() })
        }
    }

    fn leaf() -> Tensor {
        Tensor::from_slice(&[1.0, -2.0, 3.0]).set_requires_grad(true)
    }

    #[test]
    fn gradient_of_a_rust_function_reaches_the_leaf() {
        let x = leaf();
        let y = tch::no_grad(|| &x * &x);
        let y = attach(Square { input: x.detach() }, &[&x], vec![y]).unwrap().remove(0);
        backward(&y, &Tensor::ones([3], (Kind::Double, Device::Cpu))).unwrap();
        assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [2.0, -4.0, 6.0]);
    }

    #[test]
    fn an_error_in_backward_is_returned_with_its_words() {
        let x = leaf();
        let y = tch::no_grad(|| &x * 1.0);
        let y = attach(Fails, &[&x], vec![y]).unwrap().remove(0);
        let error = backward(&y, &Tensor::ones([3], (Kind::Double, Device::Cpu))).unwrap_err();
        assert!(crate::error::chain(&error).contains("step 3"), "{error}");
    }

    #[test]
    fn no_history_without_a_graph() {
        let x = leaf();
        let y = tch::no_grad(|| attach(Fails, &[&x], vec![&x * 2.0]).unwrap().remove(0));
        assert!(!y.requires_grad());
    }
}
