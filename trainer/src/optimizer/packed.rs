//! A step of AdamW with moments of 8 bits from tensor operators, for devices that the host kernel does not reach.
//!
//! It goes over a parameter in chunks, so that never more than a chunk's moments stand as f32. Letters: s blocks of a chunk, b elements of a
//! block.

use tch::{Device, Kind, TchError, Tensor};

use super::moments::Packed;
use crate::error::Result;
use crate::torch::host::{AdamWFactors, BLOCK_ELEMENTS, CodeMap};
use crate::torch::ops::from_slice;

/// Blocks that are unpacked at a time: 4,194,304 elements, 16 MiB for each f32 temporary, of which there are up to eight.
pub(super) const CHUNK_BLOCKS: usize = 1 << 14;

/// The maps of both moments on a device.
#[derive(Debug)]
pub(super) struct DeviceMaps {
    first: DeviceMap,
    second: DeviceMap,
    chunk_blocks: usize,
}

#[derive(Debug)]
struct DeviceMap {
    /// [256]
    values: Tensor,
    /// [255]
    boundaries: Tensor,
}

impl DeviceMaps {
    /// For steps that unpack `chunk_blocks` blocks at a time.
    pub(super) fn new(device: Device, chunk_blocks: usize) -> Result<Self> {
        let [first, second] = [CodeMap::signed(), CodeMap::unsigned()].map(|map| DeviceMap::new(map, device));
        Ok(Self { first: first?, second: second?, chunk_blocks })
    }

    /// As [`crate::torch::host::adamw_8bit`], operator by operator, in the same order.
    ///
    /// # Shapes
    /// `parameter` and `gradient` f32, contiguous, of one shape.
    pub(super) fn step(
        &self,
        parameter: &Tensor,
        gradient: &Tensor,
        [first, second]: [&mut Packed; 2],
        factors: AdamWFactors,
    ) -> Result<(), TchError> {
        let flat = [parameter, gradient, &first.codes, &second.codes].map(|tensor| tensor.f_view(-1));
        let [parameter, gradient, first_codes, second_codes] = flat;
        let (parameter, gradient, first_codes, second_codes) = (parameter?, gradient?, first_codes?, second_codes?);
        tch::no_grad(|| {
            for Chunk { block, blocks, width } in chunks(parameter.numel(), self.chunk_blocks) {
                let start = index(block * BLOCK_ELEMENTS);
                let elements = |tensor: &Tensor| tensor.f_narrow(0, start, index(blocks * width))?.f_view([index(blocks), index(width)]);
                let scales = |packed: &Packed| packed.scales.f_narrow(0, index(block), index(blocks))?.f_unsqueeze(1);
                let (mut parameter_sb, gradient_sb) = (elements(&parameter)?, elements(&gradient)?);
                let mut firsts = View { codes_sb: elements(&first_codes)?, scales_s1: scales(first)? };
                let mut seconds = View { codes_sb: elements(&second_codes)?, scales_s1: scales(second)? };

                let mut first_sb = self.first.unpack(&firsts)?;
                let _ = first_sb.f_add_(&gradient_sb.f_sub(&first_sb)?.f_mul_scalar_(f64::from(factors.rest1))?)?;
                let mut second_sb = self.second.unpack(&seconds)?;
                let squares_sb = gradient_sb.f_mul_scalar(f64::from(factors.rest2))?.f_mul_(&gradient_sb)?;
                let _ = second_sb.f_mul_scalar_(f64::from(factors.beta2))?.f_add_(&squares_sb)?;
                drop(squares_sb);
                let mut denominator_sb = second_sb.f_sqrt()?;
                let _ = denominator_sb.f_div_scalar_(f64::from(factors.root_correction))?.f_add_scalar_(f64::from(factors.epsilon))?;
                let _ = parameter_sb.f_mul_scalar_(f64::from(factors.decay))?;
                let _ = parameter_sb.f_sub_(&first_sb.f_div(&denominator_sb)?.f_mul_scalar_(f64::from(factors.step_size))?)?;
                drop(denominator_sb);
                self.first.pack(&first_sb, &mut firsts)?;
                self.second.pack(&second_sb, &mut seconds)?;
            }
            Ok(())
        })
    }
}

/// A chunk of one packed moment, to be written to.
struct View {
    codes_sb: Tensor,
    scales_s1: Tensor,
}

impl DeviceMap {
    fn new(map: &CodeMap, device: Device) -> Result<Self> {
        Ok(Self { values: from_slice(map.values(), device)?, boundaries: from_slice(map.boundaries(), device)? })
    }

    fn unpack(&self, packed: &View) -> Result<Tensor, TchError> {
        let indices = packed.codes_sb.f_to_kind(Kind::Int)?.f_view(-1)?;
        self.values.f_index_select(0, &indices)?.f_view_as(&packed.codes_sb)?.f_mul_(&packed.scales_s1)
    }

    fn pack(&self, values_sb: &Tensor, packed: &mut View) -> Result<(), TchError> {
        let scales_s1 = values_sb.f_abs()?.f_amax([1], true)?;
        // 1 where the scale is 0: all of the block is.
        let divisors_s1 = scales_s1.f_add(&scales_s1.f_eq(0.0)?)?;
        let codes_sb = values_sb.f_div(&divisors_s1)?.f_bucketize(&self.boundaries, true, false)?;
        packed.codes_sb.f_copy_(&codes_sb)?;
        packed.scales_s1.f_copy_(&scales_s1)?;
        Ok(())
    }
}

/// `blocks` blocks of `width` elements from `block` on.
struct Chunk {
    block: usize,
    blocks: usize,
    width: usize,
}

/// The whole blocks of `count` elements, `chunk_blocks` at a time, then the short one.
fn chunks(count: usize, chunk_blocks: usize) -> impl Iterator<Item = Chunk> {
    let (whole, rest) = (count / BLOCK_ELEMENTS, count % BLOCK_ELEMENTS);
    let full = move |block: usize| Chunk { block, blocks: chunk_blocks.min(whole - block), width: BLOCK_ELEMENTS };
    let short = (rest > 0).then_some(Chunk { block: whole, blocks: 1, width: rest });
    (0..whole).step_by(chunk_blocks).map(full).chain(short)
}

/// A count as libtorch takes it; no tensor has more than `i64::MAX` elements.
fn index(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Moments;
    use crate::recipe::OptimizerKind;
    use crate::torch::host::{PackedSlices, adamw_8bit, elements_mut, floats, floats_mut};

    fn factors(step: i32) -> AdamWFactors {
        AdamWFactors {
            rest1: 0.1,
            beta2: 0.99,
            rest2: 0.01,
            decay: 0.999,
            step_size: 0.01 / (1.0 - 0.9f32.powi(step)),
            root_correction: (1.0 - 0.99f32.powi(step)).sqrt(),
            epsilon: 1e-8,
        }
    }

    fn packed_moments(parameter: &Tensor) -> [Packed; 2] {
        match Moments::zeros(OptimizerKind::Adamw8bit, parameter).unwrap() {
            Moments::Packed { first, second } => [first, second],
            Moments::Float { .. } => unreachable!("the parameter is large enough"),
        }
    }

    fn slices(packed: &mut Packed) -> PackedSlices<'_> {
        PackedSlices { codes: elements_mut(&mut packed.codes).unwrap(), scales: floats_mut(&mut packed.scales).unwrap() }
    }

    /// No operator that makes the moments fuses or reorders anything on the CPU, so not a bit of them may differ. The root is MKL's, which may
    /// miss the nearest number by one place.
    #[test]
    fn the_operators_give_the_moments_of_the_host_kernel_to_the_bit() {
        tch::manual_seed(4);
        // 37 whole blocks, in chunks of 8, and one of 32 elements.
        let shape = [93, 102];
        let random = || Tensor::randn(shape, (Kind::Float, Device::Cpu)).pow_tensor_scalar(5.0);
        let start = random();
        let (mut on_host, on_device) = (start.copy(), start.copy());
        let (mut host, mut device) = (packed_moments(&start), packed_moments(&start));
        let maps = DeviceMaps::new(Device::Cpu, 8).unwrap();
        for step in 1..=8 {
            let gradient = random();
            let _ = gradient.narrow(0, 4, 9).zero_();
            let [first, second] = &mut host;
            adamw_8bit(floats_mut(&mut on_host).unwrap(), floats(&gradient).unwrap(), slices(first), slices(second), factors(step));
            let [first, second] = &mut device;
            maps.step(&on_device, &gradient, [first, second], factors(step)).unwrap();
            for (host, device) in host.iter().zip(&device) {
                assert!(host.scales.equal(&device.scales), "scales of step {step}");
                assert!(host.codes.equal(&device.codes), "codes of step {step}");
            }
            // In each step one place of the root, of which at most 0.1 is added, and one of the rounding of the parameter.
            let allowed = (on_host.abs() + 1.0) * f64::from(step) * f64::from(f32::EPSILON);
            assert_eq!((&on_host - &on_device).abs().gt_tensor(&allowed).sum(Kind::Int64).int64_value(&[]), 0, "parameter of step {step}");
        }
        assert!(host.iter().all(|packed| packed.codes.f_internal_unique(false, false).unwrap().0.numel() > 100), "many codes were met");
    }

    #[test]
    fn chunks_cover_every_element_once() {
        for (count, chunk_blocks) in [(0, 4), (1, 4), (256, 4), (257, 1), (2560, 4), (2561, 10), (3000, 100)] {
            let mut next = 0;
            for Chunk { block, blocks, width } in chunks(count, chunk_blocks) {
                assert_eq!(block * BLOCK_ELEMENTS, next);
                assert!(blocks <= chunk_blocks && (width == BLOCK_ELEMENTS || blocks == 1));
                next += blocks * width;
            }
            assert_eq!(next, count);
        }
    }
}
