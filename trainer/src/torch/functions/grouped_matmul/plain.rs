//! Experts whose weights are numbers: forward, and the gradients of input, weight and bias.

use tch::{Device, Kind, TchError, Tensor};

use super::groups::{Groups, Occupied};
use super::has_fast_strides;
use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::kernels::{self, BiasByExpert};
use crate::torch::ops::{Named, dims2, dims3, without_graph};

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
        groups: groups.share(),
    };
    let mut inputs = vec![input_ri, weight_eio];
    inputs.extend(bias_eo);
    Ok(attach(saved, &inputs, vec![output])?.remove(0))
}

fn product(input_ri: &Tensor, weight_eio: &Tensor, bias_eo: Option<&Tensor>, groups: &Groups) -> Result<Tensor> {
    let (rows, _) = dims2("grouped_matmul", "input", input_ri)?;
    let (_, _, output_width) = dims3("grouped_matmul", "weight", weight_eio)?;
    if let Device::Cuda(_) = input_ri.device()
        && has_fast_strides(input_ri)
        && has_fast_strides(weight_eio)
    {
        return product_on_device(input_ri, weight_eio, bias_eo, groups);
    }
    let experts = groups.occupied()?;
    let by_expert = || -> Result<Tensor, TchError> {
        let output_ro = Tensor::f_empty([rows, output_width], (input_ri.kind(), input_ri.device()))?;
        for occupied in experts {
            let (weight_io, bias_o) = (weight_eio.f_select(0, occupied.group)?, of_expert(bias_eo, occupied.group)?);
            product_of_expert(input_ri, &weight_io, bias_o.as_ref(), occupied, &output_ro)?;
        }
        Ok(output_ro)
    };
    by_expert().named("grouped_matmul", &[input_ri, weight_eio])
}

/// Rows of a product on the CPU are a multiple of this: oneDNN compiles a kernel for each shape that it meets, which takes as long as a
/// small product itself, and the rows of an expert are another number each time.
const ROW_MULTIPLE: i64 = 32;

fn rounded_up(rows: i64) -> i64 {
    (rows + ROW_MULTIPLE - 1) / ROW_MULTIPLE * ROW_MULTIPLE
}

/// The vector of one expert.
pub(super) fn of_expert(bias_eo: Option<&Tensor>, expert: i64) -> Result<Option<Tensor>, TchError> {
    bias_eo.map(|bias| bias.f_select(0, expert)).transpose()
}

/// Writes the rows of one expert. Rows of the next experts may come out wrong, so experts have to take their turns in order.
pub(super) fn product_of_expert(
    input_ri: &Tensor,
    weight_io: &Tensor,
    bias_o: Option<&Tensor>,
    Occupied { first, rows, .. }: Occupied,
    output_ro: &Tensor,
) -> Result<(), TchError> {
    let padded = if first + rounded_up(rows) <= input_ri.size()[0] { rounded_up(rows) } else { rows };
    let (input, output) = (input_ri.f_narrow(0, first, padded)?, output_ro.f_narrow(0, first, padded)?);
    let _ = match bias_o {
        Some(bias) => bias.f_addmm_out(&output, &input, weight_io)?,
        None => input.f_mm_out(&output, weight_io)?,
    };
    Ok(())
}

/// All experts by the grouped product of libtorch.
fn product_on_device(input_ri: &Tensor, weight_eio: &Tensor, bias_eo: Option<&Tensor>, groups: &Groups) -> Result<Tensor> {
    let ends = groups.ends(input_ri.device())?;
    let output_ro =
        input_ri.f_internal_grouped_mm(weight_eio, Some(&ends), None, None::<Kind>).named("grouped_matmul", &[input_ri, weight_eio])?;
    add_bias(output_ro, bias_eo, groups)
}

/// Adds to each row the bias of its expert, in place.
pub(super) fn add_bias(mut output_ro: Tensor, bias_eo: Option<&Tensor>, groups: &Groups) -> Result<Tensor> {
    let Some(bias_eo) = bias_eo else { return Ok(output_ro) };
    if kernels::can_take(&[&output_ro, bias_eo]) {
        kernels::add_expert_bias(&mut output_ro, BiasByExpert { bias_eo, ends_e: &groups.ends(bias_eo.device())? })?;
        return Ok(output_ro);
    }
    let group_of_row = groups.group_of_row(output_ro.device())?;
    bias_eo.f_index_select(0, &group_of_row).and_then(|bias_ro| output_ro.f_add_(&bias_ro)).named("grouped_matmul", &[bias_eo])
}

struct GroupedMatmul {
    input_ri: Tensor,
    weight_eio: Tensor,
    bias_shape: Option<Vec<i64>>,
    groups: Groups,
}

impl Function for GroupedMatmul {
    /// dx = dy W^T; dW = x^T dy and dbias = sum of dy over the rows of each expert.
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
            true => Some(sums_of_products(&self.input_ri, &gradient_ro, &self.groups)?),
            false => None,
        };
        let mut gradients = vec![input_gradient, weight_gradient];
        if let Some(shape) = &self.bias_shape {
            gradients.push(match needs_gradient.get(2) {
                Some(true) => Some(sums_of_rows(&gradient_ro, shape, &self.groups)?),
                _ => None,
            });
        }
        Ok(gradients)
    }
}

/// For each expert `left[its rows]^T @ right[its rows]`: [r, i] and [r, o] to [e, i, o].
fn sums_of_products(left_ri: &Tensor, right_ro: &Tensor, groups: &Groups) -> Result<Tensor> {
    if let Device::Cuda(_) = left_ri.device()
        && has_fast_strides(left_ri)
        && has_fast_strides(right_ro)
    {
        return sums_on_device(left_ri, right_ro, groups);
    }
    let (device, kind) = (left_ri.device(), left_ri.kind());
    let ([all_rows, width], occupied) = ([left_ri.size()[0], left_ri.size()[1]], groups.occupied()?);
    let by_expert = || -> Result<Tensor, TchError> {
        let sums_eio = Tensor::f_zeros([groups.count(), width, right_ro.size()[1]], (kind, device))?;
        for Occupied { group, first, rows } in occupied {
            let mut left = left_ri.f_narrow(0, first, rows)?;
            let mut padded = rows;
            if first + rounded_up(rows) <= all_rows && rounded_up(rows) != rows {
                // Rows of zeros take the rows of the next experts out of the sum.
                padded = rounded_up(rows);
                left = Tensor::f_cat(&[left, Tensor::f_zeros([padded - rows, width], (kind, device))?], 0)?;
            }
            let right = right_ro.f_narrow(0, first, padded)?;
            let _ = left.f_transpose(0, 1)?.f_mm_out(&sums_eio.f_select(0, group)?, &right)?;
        }
        Ok(sums_eio)
    };
    by_expert().named("grouped_matmul backward", &[left_ri, right_ro])
}

/// The same by the grouped product of libtorch, whose sums over no rows are nothing to rely on.
fn sums_on_device(left_ri: &Tensor, right_ro: &Tensor, groups: &Groups) -> Result<Tensor> {
    let device = left_ri.device();
    let (ends, empty_e11) = (groups.ends(device)?, groups.empty(device)?);
    let sums = left_ri
        .f_transpose(0, 1)
        .and_then(|transposed| transposed.f_internal_grouped_mm(right_ro, Some(&ends), None, None::<Kind>))
        .and_then(|mut sums| sums.f_masked_fill_(&empty_e11.f_view([-1, 1, 1])?, 0.0));
    sums.named("grouped_matmul backward", &[left_ri, right_ro])
}

/// For each expert the sum of its rows: [r, o] to [e, o].
fn sums_of_rows(gradient_ro: &Tensor, shape: &[i64], groups: &Groups) -> Result<Tensor> {
    if let Device::Cuda(_) = gradient_ro.device()
        && has_fast_strides(gradient_ro)
    {
        // As the product with a matrix of ones, as wide as the grouped product asks for: without atomic additions.
        let ones = Tensor::f_ones([gradient_ro.size()[0], 8], (gradient_ro.kind(), gradient_ro.device()));
        let sums = sums_on_device(&ones.named("grouped_matmul backward", &[])?, gradient_ro, groups)?;
        return sums.f_select(1, 0).named("grouped_matmul backward", &[&sums]);
    }
    let occupied = groups.occupied()?;
    let by_expert = || -> Result<Tensor, TchError> {
        let gradient_eo = Tensor::f_zeros(shape, (gradient_ro.kind(), gradient_ro.device()))?;
        for Occupied { group, first, rows } in occupied {
            let sum = gradient_ro.f_narrow(0, first, rows)?.f_sum_dim_intlist(0, false, None::<Kind>)?;
            gradient_eo.f_select(0, group)?.f_copy_(&sum)?;
        }
        Ok(gradient_eo)
    };
    by_expert().named("grouped_matmul backward", &[gradient_ro])
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
    fn the_grouped_products_of_libtorch_give_the_same() {
        let groups = Groups::from_counts(&COUNTS);
        let [input, weight, bias, gradient] =
            [random(&[44, 8]), random(&[6, 8, 4]), random(&[6, 4]), random(&[44, 4])].map(|tensor| tensor.detach().to_kind(Kind::Float));
        assert!(has_fast_strides(&input) && has_fast_strides(&weight));
        let close = |fast: Tensor, slow: Tensor| assert!((fast - slow).abs().max().double_value(&[]) < 1e-5);
        close(
            product_on_device(&input, &weight, Some(&bias), &groups).unwrap(),
            grouped_matmul(&input, &weight, Some(&bias), &groups).unwrap(),
        );
        close(sums_on_device(&input, &gradient, &groups).unwrap(), sums_of_products(&input, &gradient, &groups).unwrap());
    }
}
