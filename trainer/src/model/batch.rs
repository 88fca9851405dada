//! Sequences laid end to end, without padding.

use tch::{Device, Tensor};

use crate::error::Result;
use crate::torch::functions::AttentionSpan;
use crate::torch::ops::from_slice;

/// Token ids of several sequences, one after the other, with the position of each and where each sequence lies.
#[derive(Debug)]
pub struct PackedTokens {
    /// Ids, i64 [t], in host memory.
    pub ids_t: Tensor,
    /// The largest of them; 0 without any.
    pub largest_id: i64,
    /// Positions within the sequence, i64 [t].
    pub positions_t: Tensor,
    /// One more than the last position.
    pub num_positions: usize,
    /// A span for each sequence.
    pub spans: Vec<AttentionSpan>,
}

impl PackedTokens {
    /// The sequences packed on `device`, each starting at position 0.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] out of memory.
    pub fn from_sequences<'a>(sequences: impl IntoIterator<Item = &'a [u32]>, device: Device) -> Result<Self> {
        let (mut ids, mut positions, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        let (mut start, mut num_positions) = (0, 0);
        for sequence in sequences {
            num_positions = num_positions.max(sequence.len());
            ids.extend(sequence.iter().map(|&id| i64::from(id)));
            positions.extend((0i64..).take(sequence.len()));
            let end = i64::try_from(ids.len()).unwrap_or(i64::MAX);
            spans.push(AttentionSpan { queries: start..end, keys: start..end });
            start = end;
        }
        Self::new(&ids, &positions, num_positions, spans, device)
    }

    /// New tokens of one sequence of which `cached` tokens stand in a cache.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] out of memory.
    pub fn continuing(cached: usize, ids: &[u32], device: Device) -> Result<Self> {
        let first = i64::try_from(cached).unwrap_or(i64::MAX);
        let count = i64::try_from(ids.len()).unwrap_or(i64::MAX);
        let values: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let positions: Vec<i64> = (first..first.saturating_add(count)).collect();
        let spans = vec![AttentionSpan { queries: 0..count, keys: 0..first.saturating_add(count) }];
        Self::new(&values, &positions, cached.saturating_add(ids.len()), spans, device)
    }

    fn new(ids: &[i64], positions: &[i64], num_positions: usize, spans: Vec<AttentionSpan>, device: Device) -> Result<Self> {
        Ok(Self {
            ids_t: from_slice(ids, Device::Cpu)?,
            largest_id: ids.iter().copied().max().unwrap_or(0),
            positions_t: from_slice(positions, device)?,
            num_positions,
            spans,
        })
    }
}
