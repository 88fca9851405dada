//! One matrix product for each group of rows: the experts' work on tokens sorted by expert.
//!
//! Letters: e experts, r rows (a token for each of its experts), i input width, o output width.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::ops::{Named, dims2, dims3, without_graph};

/// The rows of each expert: expert `e` owns rows `ends[e - 1]..ends[e]` (from 0 for the first), and the last end is the row count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    ends: Vec<i64>,
}

impl Groups {
    /// Groups of these many rows each.
    #[must_use]
    pub fn from_counts(counts: &[i64]) -> Self {
        let ends = counts
            .iter()
            .scan(0, |end, count| {
                *end += count;
                Some(*end)
            })
            .collect();
        Self { ends }
    }

    /// (group, first row, rows) of every group that has rows.
    fn occupied(&self) -> impl Iterator<Item = (i64, i64, i64)> + '_ {
        (0i64..)
            .zip(&self.ends)
            .scan(0, |start, (group, &end)| {
                let first = std::mem::replace(start, end);
                Some((group, first, end - first))
            })
            .filter(|&(_, _, rows)| rows > 0)
    }
}

/// `input[rows of e] @ weight[e] + bias[e]` for every expert e.
///
/// # Shapes
/// `input_ri` [r, i], `weight_eio` [e, i, o] with any strides, `bias_eo` [e, o], all of one type; gives [r, o]. `groups` covers r rows.
///
/// # Errors
/// [`crate::Error::Torch`] or [`crate::Error::Shape`] on shapes or types that do not fit.
pub fn grouped_matmul(input_ri: &Tensor, weight_eio: &Tensor, bias_eo: Option<&Tensor>, groups: &Groups) -> Result<Tensor> {
    let output = without_graph(|| product(input_ri, weight_eio, bias_eo, groups))?;
    let saved = GroupedMatmul {
        input_ri: input_ri.detach(),
        weight_eio: weight_eio.detach(),
        bias_shape: bias_eo.map(Tensor::size),
        groups: groups.clone(),
    };
    let mut inputs = vec![input_ri, weight_eio];
    inputs.extend(bias_eo);
    Ok(attach(saved, &inputs, vec![output])?.remove(0))
}

fn product(input_ri: &Tensor, weight_eio: &Tensor, bias_eo: Option<&Tensor>, groups: &Groups) -> Result<Tensor> {
    let (rows, _) = dims2("grouped_matmul", "input", input_ri)?;
    let (_, _, output_width) = dims3("grouped_matmul", "weight", weight_eio)?;
    let whole = || -> Result<Tensor, tch::TchError> {
        if let Device::Cuda(_) = input_ri.device()
            && has_fast_strides(input_ri)
            && has_fast_strides(weight_eio)
        {
            return product_on_device(input_ri, weight_eio, bias_eo, groups);
        }
        let output_ro = Tensor::f_empty([rows, output_width], (input_ri.kind(), input_ri.device()))?;
        for (group, first, count) in groups.occupied() {
            // Rows of the next groups come out wrong here and are written again when their turn comes.
            let padded = if first + rounded_up(count) <= rows { rounded_up(count) } else { count };
            let input = input_ri.f_narrow(0, first, padded)?;
            let output = output_ro.f_narrow(0, first, padded)?;
            let weight = weight_eio.f_select(0, group)?;
            let _ = match bias_eo {
                Some(bias) => bias.f_select(0, group)?.f_addmm_out(&output, &input, &weight)?,
                None => input.f_mm_out(&output, &weight)?,
            };
        }
        Ok(output_ro)
    };
    whole().named("grouped_matmul", &[input_ri, weight_eio])
}

/// Rows of a product on the CPU are a multiple of this: oneDNN compiles a kernel for each shape that it meets, which takes as long as a
/// small product itself, and the rows of an expert are another number each time.
const ROW_MULTIPLE: i64 = 32;

fn rounded_up(rows: i64) -> i64 {
    (rows + ROW_MULTIPLE - 1) / ROW_MULTIPLE * ROW_MULTIPLE
}

/// libtorch's grouped product takes any dims whose strides are multiples of 16 bytes.
///
/// Source: `aten/src/ATen/native/GroupedMMUtils.h` of torch 2.11.
fn has_fast_strides(tensor: &Tensor) -> bool {
    let element_bytes: i64 = if tensor.kind() == Kind::Float { 4 } else { 2 };
    let strides = tensor.stride();
    let unit = strides.iter().rev().take(2).any(|&stride| stride == 1);
    unit && strides.iter().all(|stride| *stride == 1 || stride * element_bytes % 16 == 0)
}

fn product_on_device(input_ri: &Tensor, weight_eio: &Tensor, bias_eo: Option<&Tensor>, groups: &Groups) -> Result<Tensor, tch::TchError> {
    let ends: Vec<i32> = groups.ends.iter().map(|&end| i32::try_from(end).unwrap_or(i32::MAX)).collect();
    let ends = Tensor::f_from_slice(&ends)?.f_to_device(input_ri.device())?;
    let output_ro = input_ri.f_internal_grouped_mm(weight_eio, Some(&ends), None, None::<Kind>)?;
    match bias_eo {
        Some(bias) => output_ro.f_add(&bias.f_index_select(0, &group_of_rows(groups, input_ri.device())?)?),
        None => Ok(output_ro),
    }
}

fn group_of_rows(groups: &Groups, device: Device) -> Result<Tensor, tch::TchError> {
    let mut group_of_row = Vec::new();
    for (group, _, rows) in groups.occupied() {
        group_of_row.resize(group_of_row.len() + usize::try_from(rows).unwrap_or(0), group);
    }
    Tensor::f_from_slice(&group_of_row)?.f_to_device(device)
}

struct GroupedMatmul {
    input_ri: Tensor,
    weight_eio: Tensor,
    bias_shape: Option<Vec<i64>>,
    groups: Groups,
}

impl Function for GroupedMatmul {
    /// dinput = dy weight^T; dweight[e] = input[e]^T dy[e]; dbias[e] = sum of dy over the rows of e.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], needs_gradient: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let num_inputs = needs_gradient.len();
        let Some(gradient_ro) = &output_gradients[0] else { return Ok((0..num_inputs).map(|_| None).collect()) };
        let gradient_ro = gradient_ro.f_contiguous().named("grouped_matmul backward", &[gradient_ro])?;
        let input_gradient = match needs_gradient[0] {
            true => {
                let transposed = self.weight_eio.f_transpose(1, 2).named("grouped_matmul backward", &[&self.weight_eio])?;
                Some(product(&gradient_ro, &transposed, None, &self.groups)?)
            }
            false => None,
        };
        let weight_gradient = match needs_gradient[1] {
            true => Some(self.weight_gradient(&gradient_ro).named("grouped_matmul backward", &[&self.input_ri, &gradient_ro])?),
            false => None,
        };
        let mut gradients = vec![input_gradient, weight_gradient];
        if let Some(shape) = &self.bias_shape {
            let wanted = needs_gradient.get(2).copied().unwrap_or(false);
            gradients.push(match wanted {
                true => Some(self.bias_gradient(&gradient_ro, shape).named("grouped_matmul backward", &[&gradient_ro])?),
                false => None,
            });
        }
        Ok(gradients)
    }
}

impl GroupedMatmul {
    fn weight_gradient(&self, gradient_ro: &Tensor) -> Result<Tensor, tch::TchError> {
        let gradient_eio = Tensor::f_zeros(self.weight_eio.size(), (gradient_ro.kind(), gradient_ro.device()))?;
        let (all_rows, width) = (self.input_ri.size()[0], self.input_ri.size()[1]);
        for (group, first, rows) in self.groups.occupied() {
            let mut input = self.input_ri.f_narrow(0, first, rows)?;
            let mut padded = rows;
            if first + rounded_up(rows) <= all_rows && rounded_up(rows) != rows {
                // Rows of zeros take the gradients of the next groups out of the sum.
                padded = rounded_up(rows);
                input = Tensor::f_cat(&[input, Tensor::f_zeros([padded - rows, width], (gradient_ro.kind(), gradient_ro.device()))?], 0)?;
            }
            let gradient = gradient_ro.f_narrow(0, first, padded)?;
            let _ = input.f_transpose(0, 1)?.f_mm_out(&gradient_eio.f_select(0, group)?, &gradient)?;
        }
        Ok(gradient_eio)
    }

    fn bias_gradient(&self, gradient_ro: &Tensor, shape: &[i64]) -> Result<Tensor, tch::TchError> {
        let gradient_eo = Tensor::f_zeros(shape, (gradient_ro.kind(), gradient_ro.device()))?;
        for (group, first, rows) in self.groups.occupied() {
            let sum = gradient_ro.f_narrow(0, first, rows)?.f_sum_dim_intlist(0, false, None::<Kind>)?;
            gradient_eo.f_select(0, group)?.f_copy_(&sum)?;
        }
        Ok(gradient_eo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::functions::testing::{assert_same_gradients, random};

    /// Experts without rows at the start, in the middle and at the end.
    const COUNTS: [i64; 6] = [0, 3, 1, 0, 40, 0];

    fn reference(inputs: &[Tensor]) -> Tensor {
        let mut first = 0;
        let rows = COUNTS.iter().zip(0i64..).map(|(&count, group)| {
            let rows = inputs[0].narrow(0, first, count);
            first += count;
            rows.matmul(&inputs[1].get(group)) + inputs[2].get(group)
        });
        Tensor::cat(&rows.collect::<Vec<_>>(), 0)
    }

    #[test]
    fn gradients_are_those_of_a_product_for_each_group() {
        let groups = Groups::from_counts(&COUNTS);
        assert_same_gradients(
            &[random(&[44, 5]), random(&[6, 5, 3]), random(&[6, 3])],
            |inputs| grouped_matmul(&inputs[0], &inputs[1], Some(&inputs[2]), &groups).unwrap(),
            reference,
        );
    }

    #[test]
    fn the_grouped_product_of_libtorch_gives_the_same() {
        let groups = Groups::from_counts(&COUNTS);
        let inputs = [random(&[44, 8]), random(&[6, 8, 4]), random(&[6, 4])].map(|input| input.detach().to_kind(Kind::Float));
        assert!(has_fast_strides(&inputs[0]) && has_fast_strides(&inputs[1]));
        let fast = product_on_device(&inputs[0], &inputs[1], Some(&inputs[2]), &groups).unwrap();
        let slow = grouped_matmul(&inputs[0], &inputs[1], Some(&inputs[2]), &groups).unwrap();
        assert!((fast - slow).abs().max().double_value(&[]) < 1e-5);
    }
}
