//! Elements of both types, on the device and back, and what it means that they are close.

use ft_quant::Float;
use ft_quant::cuda::{CudaError, DeviceBuffer, ElementType, Gpu};
use half::bf16;

use crate::codec::Random;

/// Half a unit of an f32 between 1 and 2.
pub(super) const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// bf16 or f32, or the i32 or i64 of an index.
pub(super) trait Stored: Copy {
    fn bytes(self) -> Vec<u8>;
    fn read(bytes: &[u8]) -> Self;
}

impl Stored for bf16 {
    fn bytes(self) -> Vec<u8> {
        self.to_bits().to_le_bytes().to_vec()
    }

    fn read(bytes: &[u8]) -> Self {
        Self::from_bits(u16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

impl Stored for f32 {
    fn bytes(self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }

    fn read(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Stored for i32 {
    fn bytes(self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }

    fn read(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Stored for i64 {
    fn bytes(self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }

    fn read(bytes: &[u8]) -> Self {
        let mut all = [0; 8];
        all.copy_from_slice(bytes);
        Self::from_le_bytes(all)
    }
}

/// What kernels compute with.
pub(super) trait Sample: Stored + Float {
    const ELEMENT: ElementType;
    /// What rounding to this type changes at most, relative.
    const ROUNDING: f64;
    fn of(value: f32) -> Self;
}

impl Sample for bf16 {
    const ELEMENT: ElementType = ElementType::Bf16;
    const ROUNDING: f64 = 1.0 / 256.0;

    fn of(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Sample for f32 {
    const ELEMENT: ElementType = ElementType::F32;
    const ROUNDING: f64 = UNIT;

    fn of(value: f32) -> Self {
        value
    }
}

/// Elements on the device, perhaps not at the beginning of their memory.
pub(super) struct OnDevice {
    buffer: DeviceBuffer,
    skipped_bytes: usize,
}

impl OnDevice {
    /// `values`, after `skipped` elements that nobody may use.
    pub(super) fn new<T: Stored>(gpu: &Gpu, values: &[T], skipped: usize) -> Self {
        let skipped_bytes = skipped * size_of::<T>();
        let mut bytes = vec![0xff; skipped_bytes];
        bytes.extend(values.iter().flat_map(|value| value.bytes()));
        let buffer = gpu.allocate(bytes.len()).expect("the device does what it is told");
        gpu.write(&buffer, &bytes).expect("the device does what it is told");
        Self { buffer, skipped_bytes }
    }

    /// Room for `count` elements, of bytes that are NaN in every type.
    pub(super) fn room<T: Stored>(gpu: &Gpu, count: usize, skipped: usize) -> Self {
        Self::new(gpu, &vec![T::read(&[0xff; 4]); count], skipped)
    }

    pub(super) fn address(&self) -> u64 {
        self.buffer.address() + self.skipped_bytes as u64
    }

    /// What lies there now; what was skipped must be as it was.
    pub(super) fn read<T: Stored>(&self, gpu: &Gpu) -> Vec<T> {
        let mut bytes = vec![0; self.buffer.num_bytes()];
        gpu.read(&self.buffer, &mut bytes).expect("the device does what it is told");
        assert!(bytes[..self.skipped_bytes].iter().all(|&byte| byte == 0xff), "elements before the first were written");
        bytes[self.skipped_bytes..].chunks(size_of::<T>()).map(T::read).collect()
    }
}

/// The result of a launch.
pub(super) fn launched(result: Result<(), CudaError>) {
    result.expect("the device does what it is told");
}

/// Numbers of a normal size, of either sign.
pub(super) fn numbers<T: Sample>(random: &mut Random, count: usize) -> Vec<T> {
    (0..count).map(|_| T::of((f32::from(random.below(4001)) - 2000.0) / 512.0)).collect()
}

/// The magnitudes of numbers.
pub(super) fn magnitudes<T: Sample>(values: &[T]) -> Vec<T> {
    values.iter().map(|value| T::of(value.to_f32().abs())).collect()
}

/// Whether each element is the exact value, but for a bound of its own and the one rounding to T; NaN or infinite where that is.
pub(super) fn assert_close<T: Sample>(found: &[T], exact: &[f64], bound: impl Fn(usize) -> f64, case: &str) {
    assert_eq!(found.len(), exact.len(), "{case}");
    for (index, (found, &exact)) in found.iter().zip(exact).enumerate() {
        // A bound that is no number comes from what does not reach this element.
        let (found, bound) = (f64::from(found.to_f32()), bound(index).max(0.0));
        let is_close = match exact.is_finite() {
            true => (found - exact).abs() <= bound + T::ROUNDING * (exact.abs() + bound),
            false => found == exact || (found.is_nan() && exact.is_nan()),
        };
        assert!(is_close, "{case}, element {index}: {found}, expected {exact} within {bound}");
    }
}

/// How far arguments lie from multiples of 16 bytes, in elements.
pub(super) const OFFSETS: [usize; 2] = [0, 1];
