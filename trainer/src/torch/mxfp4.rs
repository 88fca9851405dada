//! Tensors from and to MXFP4, where they lie: by CUDA kernels on a GPU, by the CPU codec in host memory, to the same bits.
//!
//! Letters: e experts, s blocks of a row, out outputs.

use ft_quant::cuda::{Gpu, Layout, PackedPointers};
use ft_quant::mxfp4::{self, BLOCK_BYTES, BLOCK_ELEMENTS, Packing};
use half::bf16;
use tch::{Device, Kind, Tensor};

use super::gpu::{InOperation, address, check_tensor, gpu, shape_error, stream};
use super::host::{elements, elements_mut, unpack_matrix};
use super::ops::{self, Named};
use crate::error::{Error, Result};

/// How values lie to their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the blocks do: values [..., 32 s], blocks [..., s, 16], scales [..., s].
    Rows,
    /// Transposed, as plain checkpoints store experts: values [e, 32 s, out], blocks [e, out, s, 16], scales [e, out, s].
    Columns,
}

/// Whether to look for scales that stand for no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Wait for the device, and return the first one as an error.
    Now,
    /// They were looked for before, by [`Check::Now`]; nothing waits for a GPU.
    Done,
}

/// Unpacks to bf16.
///
/// # Shapes
/// `blocks` and `scales` (u8, contiguous, on one device) as `order` says; gives the values, bf16, on that device.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Torch`] on tensors that do not fit, or out of memory; [`Error::Codec`] for a scale that is refused, with its
/// index in `scales`, and for a GPU on which our kernels cannot run.
pub fn unpack(order: Order, blocks: &Tensor, scales: &Tensor, check: Check) -> Result<Tensor> {
    let dims = Dims::new(order, scales)?;
    let mut values = ops::empty(&dims.values, Kind::BFloat16, scales.device())?;
    unpack_into(order, blocks, scales, &mut values, check)?;
    Ok(values)
}

/// As [`unpack`], into a tensor that is there.
///
/// # Shapes
/// As [`unpack`]; `values` bf16, contiguous.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_into(order: Order, blocks: &Tensor, scales: &Tensor, values: &mut Tensor, check: Check) -> Result<()> {
    const OPERATION: &str = "mxfp4::unpack";
    let dims = Dims::new(order, scales)?;
    let device = scales.device();
    dims.check(OPERATION, device, blocks, scales, values)?;
    if let Device::Cuda(ordinal) = device {
        let status = new_status(OPERATION, device)?;
        let (gpu, stream) = (gpu(OPERATION, ordinal)?, stream(OPERATION, ordinal)?);
        // SAFETY: `dims.check` proved contiguous tensors of these sizes on this device. They are used on the stream on which libtorch, too,
        // uses and frees them, so that they stay until the kernel has run; `values` is borrowed exclusively.
        unsafe { gpu.unpack_on(stream, dims.layout, packed(blocks, scales), address(values), address(&status)) }.in_operation(OPERATION)?;
        return if check == Check::Now { Gpu::unpack_error(read(&status)?).in_operation(OPERATION) } else { Ok(()) };
    }
    let (blocks, scales) = (bytes(blocks), bytes(scales));
    let values = elements_mut::<bf16>(values).map_err(|source| Error::Torch { operation: OPERATION, shapes: vec![], source })?;
    dims.for_each_expert(|expert, outputs| {
        let (blocks, scales) = (&blocks[expert.start * BLOCK_BYTES..expert.end * BLOCK_BYTES], &scales[expert.clone()]);
        let values = &mut values[expert.start * BLOCK_ELEMENTS..expert.end * BLOCK_ELEMENTS];
        match outputs {
            None => mxfp4::unpack(blocks, scales, values),
            Some(outputs) => unpack_matrix(blocks, scales, outputs, values),
        }
    })
    .in_operation(OPERATION)
}

/// Packs bf16; gives blocks and scales. `hints` are the scales to start from under the rule `Hint`; the other rules do not look at them.
///
/// # Shapes
/// `values` (bf16, contiguous) as `order` says, `hints` as the scales (u8, contiguous, on the same device); gives both u8, on that device.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Torch`] on tensors that do not fit, or out of memory; [`Error::Codec`] for a value or a hint that is refused,
/// with its index in the tensor, and for a GPU on which our kernels cannot run. It waits for the device.
pub fn pack(order: Order, values: &Tensor, packing: Packing, hints: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    const OPERATION: &str = "mxfp4::pack";
    let (device, size) = (values.device(), values.size());
    let block = BLOCK_ELEMENTS as i64;
    let shape = match (order, &size[..]) {
        (Order::Rows, [rows @ .., row]) if row % block == 0 => [rows, &[row / block]].concat(),
        (Order::Columns, [e, inputs, out]) if inputs % block == 0 => vec![*e, *out, inputs / block],
        (Order::Rows, _) => return Err(shape_error(OPERATION, "values", "[..., 32 s]", values)),
        (Order::Columns, _) => return Err(shape_error(OPERATION, "values", "[e, 32 s, out]", values)),
    };
    let mut scales = ops::empty(&shape, Kind::Uint8, device)?;
    let mut blocks = ops::empty(&[&shape[..], &[BLOCK_BYTES as i64]].concat(), Kind::Uint8, device)?;
    let dims = Dims::new(order, &scales)?;
    dims.check(OPERATION, device, &blocks, &scales, values)?;
    if let Some(hints) = hints {
        check_tensor(OPERATION, "hints", "the shape of the scales", hints, &shape, Kind::Uint8, device)?;
    }
    if let Device::Cuda(ordinal) = device {
        let status = new_status(OPERATION, device)?;
        let (gpu, stream) = (gpu(OPERATION, ordinal)?, stream(OPERATION, ordinal)?);
        let (to, hints) = (packed(&blocks, &scales), hints.map(address));
        // SAFETY: as in `unpack_into`; blocks and scales are ours alone.
        unsafe { gpu.pack_on(stream, dims.layout, packing, address(values), hints, to, address(&status)) }.in_operation(OPERATION)?;
        Gpu::pack_error(read(&status)?).in_operation(OPERATION)?;
        return Ok((blocks, scales));
    }
    {
        let values = elements::<bf16>(values).named(OPERATION, &[values])?;
        let (blocks, scales, hints) = (bytes_mut(&mut blocks), bytes_mut(&mut scales), hints.map(bytes));
        dims.for_each_expert(|expert, outputs| {
            let values = &values[expert.start * BLOCK_ELEMENTS..expert.end * BLOCK_ELEMENTS];
            let hints = hints.map(|hints| &hints[expert.clone()]);
            let blocks = &mut blocks[expert.start * BLOCK_BYTES..expert.end * BLOCK_BYTES];
            match outputs {
                None => mxfp4::pack(values, packing, hints, blocks, &mut scales[expert]),
                Some(outputs) => mxfp4::pack_transposed(values, outputs, packing, hints, blocks, &mut scales[expert]),
            }
        })
        .in_operation(OPERATION)?;
    }
    Ok((blocks, scales))
}

/// What the scales say about the other tensors.
struct Dims {
    layout: Layout,
    scales: Vec<i64>,
    values: Vec<i64>,
}

impl Dims {
    fn new(order: Order, scales: &Tensor) -> Result<Self> {
        let size = scales.size();
        let block = BLOCK_ELEMENTS as i64;
        let (layout, values) = match (order, &size[..]) {
            (Order::Rows, [rows @ .., s]) => (Layout::Rows { num_blocks: scales.numel() }, [rows, &[s * block]].concat()),
            (Order::Columns, &[e, out, s]) => {
                // Sizes of tensors are no less than 0.
                let [num_experts, outputs, row_blocks] = [e, out, s].map(i64::unsigned_abs).map(|size| size as usize);
                (Layout::Columns { num_experts, outputs, row_blocks }, vec![e, s * block, out])
            }
            (Order::Rows, _) => return Err(shape_error("mxfp4", "scales", "[..., s]", scales)),
            (Order::Columns, _) => return Err(shape_error("mxfp4", "scales", "[e, out, s]", scales)),
        };
        Ok(Self { layout, values, scales: size })
    }

    fn check(&self, operation: &'static str, device: Device, blocks: &Tensor, scales: &Tensor, values: &Tensor) -> Result<()> {
        let of_blocks = [&self.scales[..], &[BLOCK_BYTES as i64]].concat();
        check_tensor(operation, "scales", "its own shape", scales, &self.scales, Kind::Uint8, device)?;
        check_tensor(operation, "blocks", "the shape of the scales, and 16", blocks, &of_blocks, Kind::Uint8, device)?;
        check_tensor(operation, "values", "32 for each scale", values, &self.values, Kind::BFloat16, device)
    }

    /// Does `work` on the blocks of each expert, with its outputs where they lie transposed; indices of errors become those of the whole.
    fn for_each_expert(
        &self,
        mut work: impl FnMut(std::ops::Range<usize>, Option<usize>) -> Result<(), ft_quant::Error>,
    ) -> Result<(), ft_quant::Error> {
        use ft_quant::Error::{NotFinite, Overflow, ReservedScale};
        let Layout::Columns { num_experts, outputs, row_blocks } = self.layout else {
            return work(0..self.layout.num_blocks(), None);
        };
        let count = outputs * row_blocks;
        (0..num_experts).try_for_each(|expert| {
            let first = expert * count;
            work(first..first + count, Some(outputs)).map_err(|error| match error {
                ReservedScale { index } => ReservedScale { index: first + index },
                Overflow { index, scale } => Overflow { index: first + index, scale },
                NotFinite { index } => NotFinite { index: first * BLOCK_ELEMENTS + index },
                other => other,
            })
        })
    }
}

/// Two words of ones for the kernels to report to.
fn new_status(operation: &'static str, device: Device) -> Result<Tensor> {
    Tensor::f_full([2], -1, (Kind::Int64, device)).named(operation, &[])
}

fn read(status: &Tensor) -> Result<[u64; 2]> {
    let words = ops::to_i64_vec(status)?;
    Ok([words[0].cast_unsigned(), words[1].cast_unsigned()])
}

fn packed(blocks: &Tensor, scales: &Tensor) -> PackedPointers {
    PackedPointers { blocks: address(blocks), scales: address(scales) }
}

/// The bytes of a tensor that was checked to be contiguous u8 in host memory.
fn bytes(tensor: &Tensor) -> &[u8] {
    // SAFETY: as the caller checked; the storage lives as long as the borrow.
    if tensor.numel() == 0 { &[] } else { unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) } }
}

fn bytes_mut(tensor: &mut Tensor) -> &mut [u8] {
    // SAFETY: as above; the exclusive borrow keeps this handle from being used elsewhere meanwhile.
    if tensor.numel() == 0 { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) } }
}

#[cfg(test)]
mod tests {
    use ft_quant::cuda::CudaError;
    use ft_quant::mxfp4::ScaleRule;

    use super::*;

    /// The devices of this machine; what is not there is said.
    fn devices() -> Vec<Device> {
        match super::super::device::best() {
            Device::Cpu => {
                use std::io::Write;
                let mut stderr = std::io::stderr();
                writeln!(stderr, "SKIPPED torch::mxfp4 on CUDA: libtorch finds no device").unwrap();
                vec![Device::Cpu]
            }
            cuda => vec![Device::Cpu, cuda],
        }
    }

    fn values(device: Device, shape: [i64; 3]) -> Tensor {
        let count = shape.iter().product::<i64>();
        let numbers = (Tensor::arange(count, (Kind::Int64, Device::Cpu)) * 7919).remainder(1013);
        ((numbers - 506).to_kind(Kind::Float) / 8.0).to_kind(Kind::BFloat16).view(shape).to_device(device)
    }

    fn host(tensor: &Tensor) -> Vec<u8> {
        bytes(&tensor.to_device(Device::Cpu).contiguous().view_dtype(Kind::Uint8)).to_vec()
    }

    #[test]
    fn columns_are_the_transposed_rows() {
        for device in devices() {
            for rule in [ScaleRule::Even, ScaleRule::Mse, ScaleRule::Hint] {
                let values = values(device, [3, 96, 40]);
                let (blocks, scales) = pack(Order::Columns, &values, rule.into(), None).unwrap();
                assert_eq!((blocks.size(), scales.size()), (vec![3, 40, 3, 16], vec![3, 40, 3]));
                let rows = values.transpose(1, 2).contiguous();
                let (row_blocks, row_scales) = pack(Order::Rows, &rows, rule.into(), None).unwrap();
                assert!(host(&blocks) == host(&row_blocks) && host(&scales) == host(&row_scales), "{device:?}, {rule:?}");

                let columns = unpack(Order::Columns, &blocks, &scales, Check::Now).unwrap();
                let rows = unpack(Order::Rows, &blocks, &scales, Check::Done).unwrap();
                assert_eq!((columns.size(), rows.size()), (vec![3, 96, 40], vec![3, 40, 96]));
                assert!(host(&columns.transpose(1, 2)) == host(&rows), "{device:?}, {rule:?}");
                let (again, hinted) = pack(Order::Columns, &columns, ScaleRule::Hint.into(), Some(&scales)).unwrap();
                assert!(host(&again) == host(&blocks) && host(&hinted) == host(&scales), "{device:?}, {rule:?}");
            }
        }
    }

    #[test]
    fn what_is_refused_is_named_by_its_index_in_the_whole_tensor() {
        for device in devices() {
            let values = values(device, [3, 64, 5]);
            let (blocks, mut scales) = pack(Order::Columns, &values, ScaleRule::Even.into(), None).unwrap();
            let _ = scales.get(2).get(4).get(1).fill_(255);
            let index = 29;
            for order in [Order::Columns, Order::Rows] {
                let error = unpack(order, &blocks, &scales, Check::Now).unwrap_err();
                let expected = CudaError::Codec(ft_quant::Error::ReservedScale { index });
                assert!(matches!(&error, Error::Codec { source, .. } if *source == expected), "{error:?}");
            }
            let _ = values.get(1).get(2).get(3).fill_(f64::NAN);
            let error = pack(Order::Columns, &values, ScaleRule::Even.into(), None).unwrap_err();
            let expected = CudaError::Codec(ft_quant::Error::NotFinite { index: 64 * 5 + 2 * 5 + 3 });
            assert!(matches!(&error, Error::Codec { source, .. } if *source == expected), "{error:?}");
            let _ = scales.fill_(127);
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_refused() {
        let byte = |shape: &[i64]| Tensor::zeros(shape, (Kind::Uint8, Device::Cpu));
        let float = Tensor::zeros([1, 64, 2], (Kind::Float, Device::Cpu));
        let unpacked = |blocks: &[i64], scales: &[i64]| unpack(Order::Columns, &byte(blocks), &byte(scales), Check::Now);
        assert!(matches!(unpacked(&[1, 2, 2, 16], &[2, 2]), Err(Error::Shape { tensor: "scales", .. })));
        assert!(matches!(unpacked(&[1, 2, 2, 8], &[1, 2, 2]), Err(Error::Shape { tensor: "blocks", .. })));
        assert_eq!(unpacked(&[1, 2, 2, 16], &[1, 2, 2]).unwrap().size(), [1, 64, 2]);
        assert_eq!(unpacked(&[0, 2, 2, 16], &[0, 2, 2]).unwrap().size(), [0, 64, 2]);
        let even = ScaleRule::Even.into();
        assert!(matches!(pack(Order::Columns, &float, even, None), Err(Error::Torch { .. })), "not bf16");
        let half = float.to_kind(Kind::BFloat16);
        assert!(matches!(pack(Order::Rows, &half, even, None), Err(Error::Shape { tensor: "values", .. })), "rows of 2");
        assert!(matches!(pack(Order::Columns, &half.transpose(0, 1), even, None), Err(Error::Shape { .. } | Error::Torch { .. })));
        let hints = byte(&[1, 2]);
        assert!(matches!(pack(Order::Columns, &half, even, Some(&hints)), Err(Error::Shape { tensor: "hints", .. })));
    }
}
