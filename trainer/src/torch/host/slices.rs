//! Contiguous tensors in host memory as slices.

use tch::{Device, TchError, Tensor};

use super::element::Stored;

/// True for a contiguous tensor in host memory.
#[must_use]
pub fn is_host(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.is_contiguous()
}

/// The elements of a contiguous tensor on the CPU.
///
/// # Errors
/// [`TchError::Torch`] for any other tensor, or another element type.
pub fn elements<T: Stored>(tensor: &Tensor) -> Result<&[T], TchError> {
    check::<T>(tensor)?;
    // SAFETY: `check` proved a contiguous tensor of T in host memory; the storage lives as long as the borrow.
    Ok(if tensor.numel() == 0 { &[] } else { unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) } })
}

/// The same, to be written to; no other handle on the storage may be in use meanwhile.
///
/// # Errors
/// [`TchError::Torch`] for any other tensor, or another element type.
pub fn elements_mut<T: Stored>(tensor: &mut Tensor) -> Result<&mut [T], TchError> {
    check::<T>(tensor)?;
    // SAFETY: as above; the exclusive borrow keeps this handle from being used elsewhere meanwhile.
    Ok(if tensor.numel() == 0 { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) } })
}

/// [`elements`] of an f32 tensor.
///
/// # Errors
/// [`TchError::Torch`] for any other tensor.
pub fn floats(tensor: &Tensor) -> Result<&[f32], TchError> {
    elements(tensor)
}

/// [`elements_mut`] of an f32 tensor.
///
/// # Errors
/// [`TchError::Torch`] for any other tensor.
pub fn floats_mut(tensor: &mut Tensor) -> Result<&mut [f32], TchError> {
    elements_mut(tensor)
}

fn check<T: Stored>(tensor: &Tensor) -> Result<(), TchError> {
    if is_host(tensor) && tensor.kind() == T::KIND {
        return Ok(());
    }
    let found = format!("a {:?} tensor on {:?} is not contiguous {:?} host memory", tensor.kind(), tensor.device(), T::KIND);
    Err(TchError::Torch(found))
}
