//! Experts whose weights stay MXFP4: unpacked for each pass into one buffer that all layers share, and again for the gradient.
//!
//! Nothing but the packed weights is kept for backward, where only the input gets a gradient. Unpacking is exact. On the CPU the unpacked
//! matrix lies as one that is held as numbers, so that values and gradients are the same to the bit; grouped products may sum in another
//! order.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ft_quant::mxfp4::BLOCK_ELEMENTS;
use tch::{Device, Kind, TchError, Tensor};

use super::groups::Groups;
use super::plain::{add_bias, of_expert, product_of_expert};
use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::mxfp4::{Check, Order, unpack_into};
use crate::torch::ops::{Named, cast, contiguous, dims2, empty, narrow, select};

/// Bytes that unpacked weights take on a GPU at most: as many outputs of all experts as fit are unpacked at a time. 20b's wider projection
/// has four such pieces, 120b's sixteen.
pub const PIECE_BYTES: i64 = 256 << 20;

/// Outputs of a piece are a multiple of this, for the strides of grouped products.
const OUTPUT_MULTIPLE: i64 = 8;

/// The buffer for unpacked weights; clones are the same buffer.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    buffer: Arc<Mutex<Option<Tensor>>>,
}

impl Workspace {
    /// Calls `work` with `shape` of the buffer, bf16 on `device`, uninitialised. It grows to the largest that was asked for.
    fn with<T>(&self, shape: &[i64], device: Device, work: impl FnOnce(&mut Tensor) -> Result<T>) -> Result<T> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let count = shape.iter().product::<i64>();
        let held = match buffer.take() {
            Some(held) if held.size()[0] >= count && held.device() == device => held,
            _ => empty(&[count], Kind::BFloat16, device)?,
        };
        let held = buffer.insert(held);
        let mut part = held.f_narrow(0, 0, count).and_then(|part| part.f_view(shape)).named("workspace", &[held])?;
        work(&mut part)
    }
}

/// One projection of all experts as MXFP4.
#[derive(Debug)]
pub struct PackedWeight {
    blocks_eosb: Tensor,
    scales_eos: Tensor,
    workspace: Workspace,
}

impl PackedWeight {
    /// # Shapes
    /// `blocks_eosb` u8 [e, o, s, 16], `scales_eos` u8 [e, o, s], contiguous, on one device: i = 32 s inputs. Every scale must stand for
    /// numbers; nobody looks at them again.
    #[must_use]
    pub fn new(blocks_eosb: Tensor, scales_eos: Tensor, workspace: Workspace) -> Self {
        Self { blocks_eosb, scales_eos, workspace }
    }

    /// Experts, inputs, outputs.
    #[must_use]
    pub fn dims(&self) -> [i64; 3] {
        let size = self.scales_eos.size();
        [size[0], size[2] * BLOCK_ELEMENTS as i64, size[1]]
    }

    fn share(&self) -> Self {
        Self {
            blocks_eosb: self.blocks_eosb.shallow_clone(),
            scales_eos: self.scales_eos.shallow_clone(),
            workspace: self.workspace.clone(),
        }
    }

    /// Calls `work` with the weight of one expert, [i, o] in `kind`.
    fn with_expert<T>(&self, expert: i64, kind: Kind, work: impl FnOnce(&Tensor) -> Result<T>) -> Result<T> {
        let [_, inputs, outputs] = self.dims();
        let of_expert = |tensor| narrow(tensor, 0, expert, 1);
        let (blocks, scales) = (of_expert(&self.blocks_eosb)?, of_expert(&self.scales_eos)?);
        self.workspace.with(&[1, inputs, outputs], self.scales_eos.device(), |weight_1io| {
            unpack_into(Order::Columns, &blocks, &scales, weight_1io, Check::Done)?;
            work(&select(&cast(weight_1io, kind)?, 0, 0)?)
        })
    }

    /// Calls `work` with some outputs of all experts, [e, outputs, i] in `kind`.
    fn with_outputs<T>(&self, outputs: &Range<i64>, kind: Kind, work: impl FnOnce(&Tensor) -> Result<T>) -> Result<T> {
        let [experts, inputs, _] = self.dims();
        let count = outputs.end - outputs.start;
        let part = |tensor| contiguous(&narrow(tensor, 1, outputs.start, count)?);
        let (blocks, scales) = (part(&self.blocks_eosb)?, part(&self.scales_eos)?);
        self.workspace.with(&[experts, count, inputs], self.scales_eos.device(), |weight_eoi| {
            unpack_into(Order::Rows, &blocks, &scales, weight_eoi, Check::Done)?;
            work(&cast(weight_eoi, kind)?)
        })
    }

    /// The outputs in pieces whose weights take no more than `piece_bytes` in bf16, but for a piece of the fewest outputs.
    fn pieces(&self, piece_bytes: i64) -> Vec<Range<i64>> {
        let [experts, inputs, outputs] = self.dims();
        let fitting = piece_bytes / (experts * inputs * 2).max(1) / OUTPUT_MULTIPLE * OUTPUT_MULTIPLE;
        // Pieces of one size, rather than full ones and a rest.
        let count = (outputs + fitting.max(OUTPUT_MULTIPLE) - 1) / fitting.max(OUTPUT_MULTIPLE);
        let size = ((outputs + count - 1) / count.max(1) + OUTPUT_MULTIPLE - 1) / OUTPUT_MULTIPLE * OUTPUT_MULTIPLE;
        (0..count).map(|piece| piece * size..((piece + 1) * size).min(outputs)).filter(|piece| !piece.is_empty()).collect()
    }
}

/// `input[rows of e] @ weight[e] + bias[e]` for every expert e, differentiable in the input alone.
///
/// # Shapes
/// `input_ri` [r, i], `weight` of [e, i, o], `bias_eo` [e, o] in the type of the input; gives [r, o]. `groups` covers r rows.
///
/// # Errors
/// [`crate::Error::Torch`] or [`crate::Error::Shape`] on shapes or types that do not fit; [`crate::Error::Codec`] for a GPU on which our
/// kernels cannot run.
pub fn packed_matmul(input_ri: &Tensor, weight: &PackedWeight, bias_eo: Option<&Tensor>, groups: &Groups) -> Result<Tensor> {
    let output_ro = crate::torch::ops::without_graph(|| match input_ri.device() {
        Device::Cuda(_) => forward_by_pieces(input_ri, weight, bias_eo, groups, PIECE_BYTES),
        _ => forward_by_experts(input_ri, weight, bias_eo, groups),
    })?;
    Ok(attach(PackedMatmul { weight: weight.share(), groups: groups.share() }, &[input_ri], vec![output_ro])?.remove(0))
}

fn forward_by_experts(input_ri: &Tensor, weight: &PackedWeight, bias_eo: Option<&Tensor>, groups: &Groups) -> Result<Tensor> {
    let (rows, _) = dims2("packed_matmul", "input", input_ri)?;
    let output_ro = empty(&[rows, weight.dims()[2]], input_ri.kind(), input_ri.device())?;
    for occupied in groups.occupied()? {
        weight.with_expert(occupied.group, input_ri.kind(), |weight_io| {
            of_expert(bias_eo, occupied.group)
                .and_then(|bias_o| product_of_expert(input_ri, weight_io, bias_o.as_ref(), occupied, &output_ro))
                .named("packed_matmul", &[input_ri, weight_io])
        })?;
    }
    Ok(output_ro)
}

fn backward_by_experts(gradient_ro: &Tensor, weight: &PackedWeight, groups: &Groups) -> Result<Tensor> {
    let (rows, _) = dims2("packed_matmul backward", "gradient", gradient_ro)?;
    let gradient_ri = empty(&[rows, weight.dims()[1]], gradient_ro.kind(), gradient_ro.device())?;
    for occupied in groups.occupied()? {
        weight.with_expert(occupied.group, gradient_ro.kind(), |weight_io| {
            weight_io
                .f_transpose(0, 1)
                .and_then(|weight_oi| product_of_expert(gradient_ro, &weight_oi, None, occupied, &gradient_ri))
                .named("packed_matmul backward", &[gradient_ro, weight_io])
        })?;
    }
    Ok(gradient_ri)
}

/// Some outputs of all experts at a time, by the grouped product of libtorch: the host need not know how many rows an expert has.
fn forward_by_pieces(
    input_ri: &Tensor,
    weight: &PackedWeight,
    bias_eo: Option<&Tensor>,
    groups: &Groups,
    piece_bytes: i64,
) -> Result<Tensor> {
    let (rows, _) = dims2("packed_matmul", "input", input_ri)?;
    let ends = groups.ends(input_ri.device())?;
    let output_ro = empty(&[rows, weight.dims()[2]], input_ri.kind(), input_ri.device())?;
    for outputs in weight.pieces(piece_bytes) {
        weight.with_outputs(&outputs, input_ri.kind(), |weight_eoi| {
            let product = || -> Result<(), TchError> {
                let part = input_ri.f_internal_grouped_mm(&weight_eoi.f_transpose(1, 2)?, Some(&ends), None, None::<Kind>)?;
                output_ro.f_narrow(1, outputs.start, part.size()[1])?.f_copy_(&part)
            };
            product().named("packed_matmul", &[input_ri, weight_eoi])
        })?;
    }
    add_bias(output_ro, bias_eo, groups)
}

/// The gradient is a sum over pieces, taken in f32 where there are several.
fn backward_by_pieces(gradient_ro: &Tensor, weight: &PackedWeight, groups: &Groups, piece_bytes: i64) -> Result<Tensor> {
    let (device, kind) = (gradient_ro.device(), gradient_ro.kind());
    let ends = groups.ends(device)?;
    let mut sum: Option<Tensor> = None;
    for outputs in weight.pieces(piece_bytes) {
        let gradient = narrow(gradient_ro, 1, outputs.start, outputs.end - outputs.start)?;
        let part = weight.with_outputs(&outputs, kind, |weight_eoi| {
            let part = gradient.f_internal_grouped_mm(weight_eoi, Some(&ends), None, None::<Kind>);
            part.named("packed_matmul backward", &[&gradient, weight_eoi])
        })?;
        sum = Some(match sum {
            None => part,
            Some(sum) => cast(&sum, Kind::Float)?.f_add_(&part).named("packed_matmul backward", &[&part])?,
        });
    }
    match sum {
        Some(sum) => cast(&sum, kind),
        None => empty(&[gradient_ro.size()[0], weight.dims()[1]], kind, device),
    }
}

struct PackedMatmul {
    weight: PackedWeight,
    groups: Groups,
}

impl Function for PackedMatmul {
    /// dx = dy W^T, with the weight unpacked once more.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], needs_gradient: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient_ro) = output_gradients[0].as_ref().filter(|_| needs_gradient[0]) else { return Ok(vec![None]) };
        let gradient_ro = contiguous(gradient_ro)?;
        let gradient_ri = match gradient_ro.device() {
            Device::Cuda(_) => backward_by_pieces(&gradient_ro, &self.weight, &self.groups, PIECE_BYTES)?,
            _ => backward_by_experts(&gradient_ro, &self.weight, &self.groups)?,
        };
        Ok(vec![Some(gradient_ri)])
    }
}

#[cfg(test)]
mod tests {
    use ft_quant::mxfp4::ScaleRule;

    use super::*;
    use crate::torch::functions::grouped_matmul;
    use crate::torch::mxfp4::{pack, unpack};

    /// Experts without rows at the start, in the middle and at the end.
    const COUNTS: [i64; 6] = [0, 3, 1, 0, 40, 0];

    /// 6 experts of 64 inputs and 40 outputs, packed, and the same as numbers [e, i, o].
    fn weights() -> (PackedWeight, Tensor) {
        tch::manual_seed(11);
        let values = Tensor::randn([6, 40, 64], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let (blocks, scales) = pack(Order::Rows, &values, ScaleRule::Even.into(), None).unwrap();
        let numbers = unpack(Order::Columns, &blocks, &scales, Check::Now).unwrap();
        (PackedWeight::new(blocks, scales, Workspace::default()), numbers)
    }

    fn inputs(kind: Kind) -> [Tensor; 3] {
        tch::manual_seed(12);
        [[44, 64], [6, 40], [44, 40]].map(|shape| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind))
    }

    fn largest_difference(left: &Tensor, right: &Tensor) -> f64 {
        (left.to_kind(Kind::Double) - right.to_kind(Kind::Double)).abs().max().double_value(&[])
    }

    #[test]
    fn values_and_gradients_are_those_of_the_unpacked_weights_to_the_bit() {
        let (packed, numbers) = weights();
        let groups = Groups::from_counts(&COUNTS);
        for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
            let [input, bias, direction] = inputs(kind);
            let [left, right] = [(); 2].map(|()| input.copy().set_requires_grad(true));
            let found = packed_matmul(&left, &packed, Some(&bias), &groups).unwrap();
            let expected = grouped_matmul(&right, &numbers.to_kind(kind), Some(&bias), &groups).unwrap();
            assert_eq!(largest_difference(&found, &expected), 0.0, "{kind:?}");
            (found * &direction).sum(None::<Kind>).backward();
            (expected * &direction).sum(None::<Kind>).backward();
            assert_eq!(largest_difference(&left.grad(), &right.grad()), 0.0, "{kind:?}");
        }
    }

    #[test]
    fn grouped_products_of_pieces_give_the_same_as_expert_by_expert() {
        let (packed, _) = weights();
        let groups = Groups::from_counts(&COUNTS);
        let [input, bias, gradient] = inputs(Kind::Float);
        // 6 experts of 64 inputs take 768 bytes an output: all 40 at once, 16 at a time, and the fewest there can be.
        for (piece_bytes, count) in [(40 * 768, 1), (20 * 768, 3), (1, 5)] {
            assert_eq!(packed.pieces(piece_bytes).len(), count);
            let forward = forward_by_pieces(&input, &packed, Some(&bias), &groups, piece_bytes).unwrap();
            assert!(largest_difference(&forward, &forward_by_experts(&input, &packed, Some(&bias), &groups).unwrap()) < 1e-4);
            let backward = backward_by_pieces(&gradient, &packed, &groups, piece_bytes).unwrap();
            assert!(largest_difference(&backward, &backward_by_experts(&gradient, &packed, &groups).unwrap()) < 1e-4);
        }
    }

    #[test]
    fn pieces_cover_every_output_once_and_fit() {
        let packed = |experts: i64, outputs: i64, blocks: i64| {
            let zeros = |shape: &[i64]| Tensor::empty(shape, (Kind::Uint8, Device::Cpu));
            PackedWeight::new(zeros(&[experts, outputs, blocks, 0]), zeros(&[experts, outputs, blocks]), Workspace::default())
        };
        for (experts, outputs, blocks, count) in [(32, 5760, 90, 4), (32, 2880, 90, 2), (128, 5760, 90, 16), (3, 1, 1, 1), (5, 77, 3, 1)] {
            let weight = packed(experts, outputs, blocks);
            let pieces = weight.pieces(PIECE_BYTES);
            assert_eq!(pieces.len(), count, "{experts} experts, {outputs} outputs");
            assert_eq!(pieces.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..outputs).collect::<Vec<_>>());
            assert!(
                pieces.iter().all(|piece| (piece.end - piece.start) * experts * blocks * 64 <= PIECE_BYTES.max(8 * experts * blocks * 64))
            );
        }
    }
}
