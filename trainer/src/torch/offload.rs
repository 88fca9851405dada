//! Activations in host memory until backward needs them.

use tch::{Device, Tensor};

use super::ops::Named;
use crate::error::Result;

/// A tensor that was moved to host memory; one that is there already stays where it is.
#[derive(Debug)]
pub struct Offloaded {
    host: Tensor,
    device: Device,
}

impl Offloaded {
    /// Starts the copy, for which nobody waits: libtorch takes pinned memory for it, and keeps the original until the device has read it.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when the host is out of memory.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let host = tensor.detach().f_to_device_(Device::Cpu, tensor.kind(), true, false).named("offload", &[tensor])?;
        Ok(Self { host, device: tensor.device() })
    }

    /// The tensor, on its device again.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when the device is out of memory.
    pub fn restore(&self) -> Result<Tensor> {
        self.host.f_to_device_(self.device, self.host.kind(), true, false).named("offload", &[&self.host])
    }
}
