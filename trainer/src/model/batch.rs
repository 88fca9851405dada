//! Sequences laid end to end, without padding.

use tch::{Device, Tensor};

use crate::error::Result;
use crate::torch::functions::AttentionSpan;
use crate::torch::ops::from_slice;

/// Token ids of several sequences, one after the other, with the position of each and where each sequence lies.
#[derive(Debug)]
pub struct PackedTokens {
    /// Ids, i64 [t].
    pub ids_t: Tensor,
    /// Positions within the sequence, i64 [t].
    pub positions_t: Tensor,
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
        let mut start = 0;
        for sequence in sequences {
            ids.extend(sequence.iter().map(|&id| i64::from(id)));
            positions.extend((0i64..).take(sequence.len()));
            let end = i64::try_from(ids.len()).unwrap_or(i64::MAX);
            spans.push(AttentionSpan { queries: start..end, keys: start..end });
            start = end;
        }
        Ok(Self { ids_t: from_slice(&ids, device)?, positions_t: from_slice(&positions, device)?, spans })
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
        Ok(Self { ids_t: from_slice(&values, device)?, positions_t: from_slice(&positions, device)?, spans })
    }
}
