//! A row for each of a token's experts, sorted by expert: from tokens to rows and back.
//!
//! Letters: t tokens, a active experts of a token, r rows (t a), d width, e experts. A slot is a token's place for one of its experts.

use half::bf16;
use tch::{Device, Kind, TchError, Tensor};

use super::Groups;
use crate::error::Result;
use crate::torch::autograd::{Function, attach};
use crate::torch::host::{Element, TokenRows, combine_rows, elements, elements_mut, is_host, spread_rows};
use crate::torch::kernels;
use crate::torch::ops::{Named, contiguous, dims2, empty, from_slice, index_select, reshape, to_i64_vec, without_graph};

/// The rows of a batch. They stay in token order within an expert, on every device.
#[derive(Debug)]
pub struct Rows {
    groups: Groups,
    /// i32 [r].
    token_of_row: Tensor,
    /// i32 [r].
    slot_of_row: Tensor,
    /// i32 [t a]: the inverse.
    row_of_slot: Tensor,
    num_active: i64,
}

impl Rows {
    /// # Shapes
    /// `experts_ta` i64 [t, a], each below `num_experts`.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] out of memory.
    pub fn by_expert(experts_ta: &Tensor, num_experts: i64) -> Result<Self> {
        let (_, num_active) = dims2("rows", "experts", experts_ta)?;
        match experts_ta.device() {
            Device::Cuda(_) => Self::sorted_on_device(experts_ta, num_experts, num_active).named("rows", &[experts_ta]),
            _ => Self::counted_on_host(experts_ta, num_experts, num_active),
        }
    }

    /// A counting sort.
    fn counted_on_host(experts_ta: &Tensor, num_experts: i64, num_active: i64) -> Result<Self> {
        let experts = to_i64_vec(experts_ta)?;
        let index = |expert: i64| usize::try_from(expert).unwrap_or(0);
        let mut counts = vec![0i64; index(num_experts)];
        for &expert in &experts {
            counts[index(expert)] += 1;
        }
        let mut next: Vec<i64> = counts.iter().scan(0, |sum, count| Some(std::mem::replace(sum, *sum + count))).collect();
        let (mut slot_of_row, mut row_of_slot) = (vec![0i32; experts.len()], vec![0i32; experts.len()]);
        for ((slot, &expert), row_slot) in (0i32..).zip(&experts).zip(&mut row_of_slot) {
            let row = next[index(expert)];
            next[index(expert)] += 1;
            *row_slot = i32::try_from(row).unwrap_or(i32::MAX);
            slot_of_row[index(row)] = slot;
        }
        let active = i32::try_from(num_active).unwrap_or(i32::MAX).max(1);
        let token_of_row: Vec<i32> = slot_of_row.iter().map(|slot| slot / active).collect();
        let device = experts_ta.device();
        Ok(Self {
            groups: Groups::from_counts(&counts),
            token_of_row: from_slice(&token_of_row, device)?,
            slot_of_row: from_slice(&slot_of_row, device)?,
            row_of_slot: from_slice(&row_of_slot, device)?,
            num_active,
        })
    }

    /// The same by operators for which the host does not wait.
    fn sorted_on_device(experts_ta: &Tensor, num_experts: i64, num_active: i64) -> Result<Self, TchError> {
        let slots = experts_ta.f_reshape([-1])?;
        let (expert_of_row, slot_of_row) = slots.f_sort_stable(true, 0, false)?;
        let experts = Tensor::f_arange(num_experts, (Kind::Int64, experts_ta.device()))?;
        let ends_e = Tensor::f_searchsorted(&experts, &expert_of_row, true, true, "right", None::<Tensor>)?;
        Ok(Self {
            groups: Groups::on_device(ends_e, expert_of_row),
            token_of_row: slot_of_row.f_floor_divide_scalar(num_active)?.f_to_kind(Kind::Int)?,
            row_of_slot: slot_of_row.f_argsort(0, false)?.f_to_kind(Kind::Int)?,
            slot_of_row: slot_of_row.f_to_kind(Kind::Int)?,
            num_active,
        })
    }

    /// Which rows are whose.
    #[must_use]
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Another handle on the same rows.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            groups: self.groups.share(),
            token_of_row: self.token_of_row.shallow_clone(),
            slot_of_row: self.slot_of_row.shallow_clone(),
            row_of_slot: self.row_of_slot.shallow_clone(),
            num_active: self.num_active,
        }
    }

    /// Each token once for each of its experts.
    ///
    /// # Shapes
    /// `hidden_td` [t, d]; gives [r, d].
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn gather(&self, hidden_td: &Tensor) -> Result<Tensor> {
        let rows_rd = without_graph(|| index_select(hidden_td, 0, &self.token_of_row))?;
        Ok(attach(Gather { rows: self.share() }, &[hidden_td], vec![rows_rd])?.remove(0))
    }

    /// For each token, the rows of its experts times their weights, summed in f32 in the order of the router's choice.
    ///
    /// # Shapes
    /// `rows_rd` [r, d], `weights_ta` [t, a] of the same type; gives [t, d].
    ///
    /// # Errors
    /// [`crate::Error::Torch`] on shapes that do not fit.
    pub fn combine(&self, rows_rd: &Tensor, weights_ta: &Tensor) -> Result<Tensor> {
        let hidden_td = without_graph(|| self.sum(rows_rd, Some(weights_ta)))?;
        let saved = Combine { rows: self.share(), rows_rd: rows_rd.detach(), weights_ta: weights_ta.detach() };
        Ok(attach(saved, &[rows_rd, weights_ta], vec![hidden_td])?.remove(0))
    }

    /// [`Rows::combine`] without a graph, with weights of 1 where there are none.
    fn sum(&self, rows_rd: &Tensor, weights_ta: Option<&Tensor>) -> Result<Tensor> {
        let (num_rows, width) = dims2("combine", "rows", rows_rd)?;
        let tokens = num_rows / self.num_active.max(1);
        if is_host(rows_rd) && weights_ta.is_none_or(is_host) {
            let mut hidden_td = empty(&[tokens, width], rows_rd.kind(), rows_rd.device())?;
            let kernel = match rows_rd.kind() {
                Kind::Float => Some(self.sum_on_host::<f32>(rows_rd, weights_ta, &mut hidden_td)),
                Kind::BFloat16 => Some(self.sum_on_host::<bf16>(rows_rd, weights_ta, &mut hidden_td)),
                _ => None,
            };
            if let Some(done) = kernel {
                done.named("combine", &[rows_rd])?;
                return Ok(hidden_td);
            }
        }
        if kernels::can_take(&[rows_rd]) && weights_ta.is_none_or(|weights_ta| kernels::can_take(&[weights_ta])) {
            return kernels::combine(rows_rd, &self.rows_of_tokens()?, weights_ta);
        }
        self.sum_by_operators(rows_rd, weights_ta).named("combine", &[rows_rd])
    }

    /// Row of each slot, i32 [t, a].
    fn rows_of_tokens(&self) -> Result<Tensor> {
        reshape(&self.row_of_slot, &[-1, self.num_active])
    }

    fn sum_by_operators(&self, rows_rd: &Tensor, weights_ta: Option<&Tensor>) -> Result<Tensor, TchError> {
        let (kind, wide) = (rows_rd.kind(), wide(rows_rd.kind()));
        let by_token_tad =
            rows_rd.f_index_select(0, &self.row_of_slot)?.f_view([-1, self.num_active, rows_rd.size()[1]])?.f_to_kind(wide)?;
        let weighted_tad = match weights_ta {
            Some(weights_ta) => by_token_tad.f_mul(&weights_ta.f_unsqueeze(-1)?.f_to_kind(wide)?)?,
            None => by_token_tad,
        };
        weighted_tad.f_sum_dim_intlist(1, false, wide)?.f_to_kind(kind)
    }

    fn sum_on_host<T: Element>(&self, rows_rd: &Tensor, weights_ta: Option<&Tensor>, hidden_td: &mut Tensor) -> Result<(), TchError> {
        let row_of_slot = indices(&self.row_of_slot)?;
        let at = self.token_rows(&row_of_slot, rows_rd);
        combine_rows::<T>(at, elements(rows_rd)?, weights_ta.map(elements).transpose()?, elements_mut(hidden_td)?);
        Ok(())
    }

    /// Gradients of rows and weights.
    fn spread(&self, rows_rd: &Tensor, weights_ta: &Tensor, gradient_td: &Tensor) -> Result<[Tensor; 2]> {
        let gradient_td = contiguous(gradient_td)?;
        if [rows_rd, weights_ta, &gradient_td].into_iter().all(is_host) {
            let like = |tensor: &Tensor| empty(&tensor.size(), tensor.kind(), tensor.device());
            let mut gradients = [like(rows_rd)?, like(weights_ta)?];
            let kernel = match rows_rd.kind() {
                Kind::Float => Some(self.spread_on_host::<f32>(rows_rd, weights_ta, &gradient_td, &mut gradients)),
                Kind::BFloat16 => Some(self.spread_on_host::<bf16>(rows_rd, weights_ta, &gradient_td, &mut gradients)),
                _ => None,
            };
            if let Some(done) = kernel {
                done.named("combine backward", &[rows_rd])?;
                return Ok(gradients);
            }
        }
        if kernels::can_take(&[rows_rd, weights_ta, &gradient_td]) {
            let gradients = kernels::combine_backward(rows_rd, &self.rows_of_tokens()?, Some(weights_ta), &gradient_td, (true, true))?;
            if let (Some(row_gradient), Some(weight_gradient)) = gradients {
                return Ok([row_gradient, weight_gradient]);
            }
        }
        self.spread_by_operators(rows_rd, weights_ta, &gradient_td).named("combine backward", &[rows_rd])
    }

    fn spread_by_operators(&self, rows_rd: &Tensor, weights_ta: &Tensor, gradient_td: &Tensor) -> Result<[Tensor; 2], TchError> {
        let (kind, wide) = (rows_rd.kind(), wide(rows_rd.kind()));
        let weight_r1 = weights_ta.f_reshape([-1, 1])?.f_index_select(0, &self.slot_of_row)?.f_to_kind(wide)?;
        let gradient_rd = gradient_td.f_index_select(0, &self.token_of_row)?.f_to_kind(wide)?;
        let dot_r = gradient_rd.f_mul(&rows_rd.f_to_kind(wide)?)?.f_sum_dim_intlist(-1, false, wide)?;
        let weight_gradient = dot_r.f_index_select(0, &self.row_of_slot)?.f_view(&weights_ta.size()[..])?.f_to_kind(kind)?;
        Ok([gradient_rd.f_mul(&weight_r1)?.f_to_kind(kind)?, weight_gradient])
    }

    fn spread_on_host<T: Element>(
        &self,
        rows_rd: &Tensor,
        weights_ta: &Tensor,
        gradient_td: &Tensor,
        [row_gradient, weight_gradient]: &mut [Tensor; 2],
    ) -> Result<(), TchError> {
        let row_of_slot = indices(&self.row_of_slot)?;
        let at = self.token_rows(&row_of_slot, rows_rd);
        let (rows, weights, gradient) = (elements(rows_rd)?, elements(weights_ta)?, elements(gradient_td)?);
        spread_rows::<T>(at, rows, weights, gradient, elements_mut(row_gradient)?, elements_mut(weight_gradient)?);
        Ok(())
    }

    fn token_rows<'a>(&self, row_of_slot: &'a [i32], rows_rd: &Tensor) -> TokenRows<'a> {
        let size = |size: i64| usize::try_from(size).unwrap_or(0);
        TokenRows { row_of_slot, num_active: size(self.num_active), width: size(rows_rd.size()[1]) }
    }
}

/// The type in which rows are summed.
fn wide(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// The elements of an index tensor on the host.
fn indices(tensor: &Tensor) -> Result<Vec<i32>, TchError> {
    let mut values = vec![0i32; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

struct Gather {
    rows: Rows,
}

impl Function for Gather {
    /// A token's gradient is the sum of its rows'.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient_rd) = &output_gradients[0] else { return Ok(vec![None]) };
        Ok(vec![Some(self.rows.sum(&contiguous(gradient_rd)?, None)?)])
    }
}

struct Combine {
    rows: Rows,
    rows_rd: Tensor,
    weights_ta: Tensor,
}

impl Function for Combine {
    /// A row's gradient is its token's times its weight, a weight's the product of both.
    fn backward(&mut self, output_gradients: &[Option<Tensor>], _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(gradient_td) = &output_gradients[0] else { return Ok(vec![None, None]) };
        Ok(self.rows.spread(&self.rows_rd, &self.weights_ta, gradient_td)?.map(Some).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::functions::testing::{assert_same_gradients, random};

    /// 5 tokens, 2 of 4 experts each, none for expert 2.
    fn experts() -> Tensor {
        Tensor::from_slice(&[3i64, 0, 1, 3, 0, 1, 3, 1, 1, 0]).view([5, 2])
    }

    #[test]
    fn rows_are_sorted_by_expert_and_stay_in_token_order_on_both_ways() {
        let host = Rows::by_expert(&experts(), 4).unwrap();
        let device = Rows::sorted_on_device(&experts(), 4, 2).unwrap();
        for rows in [&host, &device] {
            let values = |tensor: &Tensor| to_i64_vec(tensor).unwrap();
            assert_eq!(values(&rows.token_of_row), [0, 2, 4, 1, 2, 3, 4, 0, 1, 3]);
            assert_eq!(values(&rows.slot_of_row), [1, 4, 9, 2, 5, 7, 8, 0, 3, 6]);
            assert_eq!(values(&rows.row_of_slot), [7, 0, 3, 8, 1, 4, 9, 5, 6, 2]);
            assert_eq!(values(&rows.groups.ends(Device::Cpu).unwrap()), [3, 7, 7, 10]);
            assert_eq!(values(&rows.groups.group_of_row(Device::Cpu).unwrap()), [0, 0, 0, 1, 1, 1, 1, 3, 3, 3]);
            assert_eq!(values(&rows.groups.empty(Device::Cpu).unwrap()), [0, 0, 1, 0]);
            assert_eq!(rows.groups.count(), 4);
        }
    }

    #[test]
    fn gradients_are_those_of_the_definition() {
        let rows = Rows::by_expert(&experts(), 4).unwrap();
        let by_slot = |tensor: &Tensor, index: &Tensor| tensor.index_select(0, index);
        assert_same_gradients(
            &[random(&[5, 3])],
            |inputs| rows.gather(&inputs[0]).unwrap(),
            |inputs| by_slot(&inputs[0], &rows.token_of_row),
        );
        assert_same_gradients(
            &[random(&[10, 3]), random(&[5, 2])],
            |inputs| rows.combine(&inputs[0], &inputs[1]).unwrap(),
            |inputs| {
                (by_slot(&inputs[0], &rows.row_of_slot).view([5, 2, 3]) * inputs[1].unsqueeze(-1)).sum_dim_intlist(1, false, None::<Kind>)
            },
        );
    }

    #[test]
    fn kernels_and_operators_agree() {
        let rows = Rows::by_expert(&experts(), 4).unwrap();
        tch::manual_seed(5);
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
            let [values, weights, gradient] =
                [[10, 77], [5, 2], [5, 77]].map(|shape| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind));
            let close = |left: &Tensor, right: &Tensor| assert!(left.allclose(right, tolerance, tolerance, false), "{kind:?}");
            for weights in [Some(&weights), None] {
                close(&rows.sum(&values, weights).unwrap(), &rows.sum_by_operators(&values, weights).unwrap());
            }
            let found = rows.spread(&values, &weights, &gradient).unwrap();
            let expected = rows.spread_by_operators(&values, &weights, &gradient).unwrap();
            close(&found[0], &expected[0]);
            close(&found[1], &expected[1]);
        }
    }
}
