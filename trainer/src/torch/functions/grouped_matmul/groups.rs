//! Which rows belong to which expert: known on the host for the CPU's loops, on the device for its grouped products.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::torch::ops::{Named, from_slice, to_i64_vec};

/// The rows of each expert: expert `e` owns rows `ends[e - 1]..ends[e]` (from 0 for the first), and the last end is the row count.
#[derive(Debug)]
pub struct Groups {
    ends: Ends,
}

#[derive(Debug)]
enum Ends {
    Host(Vec<i64>),
    /// i32 [e] and i64 [r]; the host does not wait for them.
    Device {
        ends_e: Tensor,
        group_of_row_r: Tensor,
    },
}

/// A group that has rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::torch::functions) struct Occupied {
    pub(in crate::torch::functions) group: i64,
    pub(in crate::torch::functions) first: i64,
    pub(in crate::torch::functions) rows: i64,
}

impl Groups {
    /// Groups of these many rows each.
    #[must_use]
    pub fn from_counts(counts: &[i64]) -> Self {
        let ends = counts.iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        });
        Self { ends: Ends::Host(ends.collect()) }
    }

    /// Groups that only the device knows.
    ///
    /// # Shapes
    /// `ends_e` i32 [e], `group_of_row_r` i64 [r].
    #[must_use]
    pub fn on_device(ends_e: Tensor, group_of_row_r: Tensor) -> Self {
        Self { ends: Ends::Device { ends_e, group_of_row_r } }
    }

    /// How many groups there are.
    #[must_use]
    pub fn count(&self) -> i64 {
        match &self.ends {
            Ends::Host(ends) => i64::try_from(ends.len()).unwrap_or(i64::MAX),
            Ends::Device { ends_e, .. } => ends_e.size()[0],
        }
    }

    /// Another handle on the same groups.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            ends: match &self.ends {
                Ends::Host(ends) => Ends::Host(ends.clone()),
                Ends::Device { ends_e, group_of_row_r } => {
                    Ends::Device { ends_e: ends_e.shallow_clone(), group_of_row_r: group_of_row_r.shallow_clone() }
                }
            },
        }
    }

    /// The groups that have rows. Where only the device knows them, this waits for it.
    pub(in crate::torch::functions) fn occupied(&self) -> Result<Vec<Occupied>> {
        let ends = match &self.ends {
            Ends::Host(ends) => ends,
            Ends::Device { ends_e, .. } => &to_i64_vec(ends_e)?,
        };
        let groups = (0i64..).zip(ends).scan(0, |start, (group, &end)| {
            let first = std::mem::replace(start, end);
            Some(Occupied { group, first, rows: end - first })
        });
        Ok(groups.filter(|occupied| occupied.rows > 0).collect())
    }

    /// The ends, i32 [e], on `device`.
    pub(in crate::torch::functions) fn ends(&self, device: Device) -> Result<Tensor> {
        match &self.ends {
            Ends::Device { ends_e, .. } => Ok(ends_e.shallow_clone()),
            Ends::Host(ends) => {
                let ends: Vec<i32> = ends.iter().map(|&end| i32::try_from(end).unwrap_or(i32::MAX)).collect();
                from_slice(&ends, device)
            }
        }
    }

    /// The group of each row, i64 [r], on `device`.
    pub(in crate::torch::functions) fn group_of_row(&self, device: Device) -> Result<Tensor> {
        if let Ends::Device { group_of_row_r, .. } = &self.ends {
            return Ok(group_of_row_r.shallow_clone());
        }
        let mut group_of_row = Vec::new();
        for Occupied { group, rows, .. } in self.occupied()? {
            group_of_row.resize(group_of_row.len() + usize::try_from(rows).unwrap_or(0), group);
        }
        from_slice(&group_of_row, device)
    }

    /// True for the groups without rows, bool [e], on `device`.
    pub(in crate::torch::functions) fn empty(&self, device: Device) -> Result<Tensor> {
        let ends_e = self.ends(device)?;
        let find = || {
            let zero = Tensor::f_zeros([1], (Kind::Int, device))?;
            let starts_e = Tensor::f_cat(&[&zero, &ends_e.f_narrow(0, 0, ends_e.size()[0] - 1)?], 0)?;
            ends_e.f_eq_tensor(&starts_e)
        };
        find().named("groups", &[&ends_e])
    }
}
