//! What there is of CUDA on this machine, and whether a kernel computes what it should.

use std::path::PathBuf;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use half::bf16;

use super::cache::Cache;
use super::error::{CudaError, Unavailable};
use super::gpu::Gpu;
use super::libraries;
use crate::mxfp4::{self, BLOCK_BYTES, BLOCK_ELEMENTS, ScaleRule};

/// The NVIDIA driver, and what it drives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Major and minor version of the newest CUDA that it serves.
    pub cuda_version: (i32, i32),
    /// The visible devices, in their order.
    pub devices: Vec<DeviceFacts>,
}

/// A CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The driver's name of it.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Its memory in bytes.
    pub total_bytes: usize,
}

/// Asks the driver, without opening a device.
///
/// # Errors
/// [`Unavailable::NoDriver`], or [`Unavailable::Driver`] with the call that it refused.
pub fn driver() -> Result<Driver, Unavailable> {
    if !libraries::has_driver() {
        return Err(Unavailable::NoDriver);
    }
    let refused = |call| move |source| Unavailable::Driver { call, source };
    let mut version = 0;
    // SAFETY: writes one number; it may be called before `cuInit`.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(refused("cuDriverGetVersion"))?;
    let cuda_version = (version / 1000, version % 1000 / 10);
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Driver { cuda_version, devices: Vec::new() }),
        other => other.map_err(refused("cuInit"))?,
    }
    let count = result::device::get_count().map_err(refused("cuDeviceGetCount"))?;
    let device = |ordinal| {
        let device = result::device::get(ordinal).map_err(refused("cuDeviceGet"))?;
        // SAFETY: the device is one of the driver's.
        let attribute = |name| unsafe { result::device::get_attribute(device, name) }.map_err(refused("cuDeviceGetAttribute"));
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(DeviceFacts {
            name: result::device::get_name(device).map_err(refused("cuDeviceGetName"))?,
            compute_capability: (major, minor),
            // SAFETY: the device is one of the driver's.
            total_bytes: unsafe { result::device::total_mem(device) }.map_err(refused("cuDeviceTotalMem"))?,
        })
    };
    Ok(Driver { cuda_version, devices: (0..count).map(device).collect::<Result<_, _>>()? })
}

/// The folder in which compiled kernels are kept; `None` where there is no home to keep them in.
#[must_use]
pub fn kernel_cache() -> Option<PathBuf> {
    Cache::of_this_person().folder()
}

/// Whether `gpu` packs and unpacks some blocks to the bytes that the CPU does.
///
/// # Errors
/// What compiling, launching or the device refuse.
pub fn codec_agrees(gpu: &Gpu) -> Result<bool, CudaError> {
    const NUM_BLOCKS: usize = 300;
    // Numbers of several binades, of which no two neighbours are alike.
    let number = |index: usize| bf16::from_f32(((index * 7919 % 4099) as f32 - 2049.0) / (1 << (index % 9)) as f32);
    let values: Vec<bf16> = (0..NUM_BLOCKS * BLOCK_ELEMENTS).map(number).collect();
    let packing = ScaleRule::Even.into();
    let empty = || (vec![0u8; NUM_BLOCKS * BLOCK_BYTES], vec![0u8; NUM_BLOCKS]);
    let ((mut blocks, mut scales), (mut device_blocks, mut device_scales)) = (empty(), empty());
    mxfp4::pack(&values, packing, None, &mut blocks, &mut scales)?;
    gpu.pack(&values, packing, None, &mut device_blocks, &mut device_scales)?;
    let (mut unpacked, mut device_unpacked) = (values.clone(), values);
    mxfp4::unpack(&blocks, &scales, &mut unpacked)?;
    gpu.unpack(&blocks, &scales, &mut device_unpacked)?;
    let bits = |values: &[bf16]| values.iter().map(|value| value.to_bits()).collect::<Vec<u16>>();
    Ok(blocks == device_blocks && scales == device_scales && bits(&unpacked) == bits(&device_unpacked))
}
