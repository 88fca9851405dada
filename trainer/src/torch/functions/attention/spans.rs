//! Where packed samples lie, and the same as cumulative lengths on a device.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use tch::Device;

use crate::error::{Error, Result};
use crate::torch::flash::PackedLengths;
use crate::torch::ops::from_slice;

/// Tokens that attend to one another: queries `queries` of the query tensor, which are the last of the keys `keys`.
///
/// When training both ranges are one packed sample; with a key/value cache the queries are the newest tokens of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionSpan {
    /// Rows of the query tensor.
    pub queries: Range<i64>,
    /// Rows of the key and value tensors; at least as many as queries.
    pub keys: Range<i64>,
}

/// Proves that the spans lie end to end over all rows of queries and keys, and that each query has its own key.
///
/// # Errors
/// [`Error::AttentionSpan`] for the first that does not; [`Error::AttentionRows`] for rows without a span.
pub(super) fn check(spans: &[AttentionSpan], queries: i64, keys: i64) -> Result<()> {
    let mut ends = (0, 0);
    for (index, span) in spans.iter().enumerate() {
        let problem = if span.queries.start != ends.0 || span.keys.start != ends.1 {
            "begins elsewhere than the one before ends"
        } else if span.queries.end < span.queries.start || span.keys.end < span.keys.start {
            "ends before it begins"
        } else if span.queries.end - span.queries.start > span.keys.end - span.keys.start {
            "has more queries than keys"
        } else {
            ends = (span.queries.end, span.keys.end);
            continue;
        };
        return Err(Error::AttentionSpan { index, queries: span.queries.clone(), keys: span.keys.clone(), problem });
    }
    for (what, end, rows) in [("queries", ends.0, queries), ("keys", ends.1, keys)] {
        if end != rows {
            return Err(Error::AttentionRows { what, expected: rows, found: end });
        }
    }
    Ok(())
}

/// Cumulative lengths of the last few batches: the layers of a model ask for the same ones, but with a cache those with a window for others.
static RECENT: Mutex<Vec<Recent>> = Mutex::new(Vec::new());
/// Batches that are remembered.
const RECENT_BATCHES: usize = 4;

struct Recent {
    spans: Vec<AttentionSpan>,
    device: Device,
    lengths: PackedLengths,
}

/// Cumulative lengths of `spans`, which were checked, on `device`; copied there once for all layers of a batch.
///
/// # Errors
/// [`Error::AttentionSpan`] for rows beyond 2^31; [`Error::Torch`] out of memory.
pub(super) fn packed_lengths(spans: &[AttentionSpan], device: Device) -> Result<PackedLengths> {
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(index) = recent.iter().position(|recent| recent.device == device && recent.spans == spans) {
        let found = recent.remove(index);
        let lengths = found.lengths.share();
        recent.push(found);
        return Ok(lengths);
    }
    let lengths = new_lengths(spans, device)?;
    if recent.len() == RECENT_BATCHES {
        recent.remove(0);
    }
    recent.push(Recent { spans: spans.to_vec(), device, lengths: lengths.share() });
    Ok(lengths)
}

fn new_lengths(spans: &[AttentionSpan], device: Device) -> Result<PackedLengths> {
    let mut starts = [vec![0i32], vec![0i32]];
    let (mut max_queries, mut max_keys) = (0, 0);
    for (index, span) in spans.iter().enumerate() {
        // The kernels ask for at least one sequence, and have nothing to do for an empty one.
        if span.keys.is_empty() {
            continue;
        }
        for (starts, end) in starts.iter_mut().zip([span.queries.end, span.keys.end]) {
            starts.push(i32::try_from(end).map_err(|_| Error::AttentionSpan {
                index,
                queries: span.queries.clone(),
                keys: span.keys.clone(),
                problem: "ends beyond what 32 bits count",
            })?);
        }
        max_queries = max_queries.max(span.queries.end - span.queries.start);
        max_keys = max_keys.max(span.keys.end - span.keys.start);
    }
    let [query_starts, key_starts] = [from_slice(&starts[0], device)?, from_slice(&starts[1], device)?];
    Ok(PackedLengths { query_starts, key_starts, max_queries, max_keys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::ops::to_i64_vec;

    fn span(queries: Range<i64>, keys: Range<i64>) -> AttentionSpan {
        AttentionSpan { queries, keys }
    }

    #[test]
    fn spans_that_do_not_tile_their_rows_are_refused() {
        let good = [span(0..3, 0..5), span(3..3, 5..5), span(3..4, 5..6)];
        check(&good, 4, 6).unwrap();
        check(&[], 0, 0).unwrap();
        let refused = |spans: &[AttentionSpan]| match check(spans, 4, 6) {
            Err(Error::AttentionSpan { index, problem, .. }) => (index, problem),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&[span(0..3, 0..5), span(2..4, 5..6)]), (1, "begins elsewhere than the one before ends"));
        assert_eq!(refused(&[span(0..3, 0..5), span(3..4, 4..6)]), (1, "begins elsewhere than the one before ends"));
        assert_eq!(refused(&[span(0..4, 0..3)]), (0, "has more queries than keys"));
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        let reversed = span(0..-1, 0..2);
        assert_eq!(refused(&[reversed]), (0, "ends before it begins"));
        assert!(matches!(check(&good, 5, 6), Err(Error::AttentionRows { what: "queries", expected: 5, found: 4 })));
        assert!(matches!(check(&good, 4, 7), Err(Error::AttentionRows { what: "keys", expected: 7, found: 6 })));
    }

    #[test]
    fn cumulative_lengths_pass_over_empty_spans() {
        let spans = [span(0..3, 0..5), span(3..3, 5..5), span(3..4, 5..6), span(4..4, 6..9)];
        let lengths = packed_lengths(&spans, Device::Cpu).unwrap();
        assert_eq!(to_i64_vec(&lengths.query_starts).unwrap(), [0, 3, 4, 4]);
        assert_eq!(to_i64_vec(&lengths.key_starts).unwrap(), [0, 5, 6, 9]);
        assert_eq!((lengths.max_queries, lengths.max_keys), (3, 5));
        assert_eq!(lengths.key_starts.kind(), tch::Kind::Int);
    }

    #[test]
    fn layers_of_a_batch_share_one_copy() {
        let spans = [span(0..31, 0..77)];
        let [first, second] = [0, 1].map(|_| packed_lengths(&spans, Device::Cpu).unwrap());
        assert_eq!(first.key_starts.data_ptr(), second.key_starts.data_ptr());
        assert_eq!(to_i64_vec(&packed_lengths(&[span(0..31, 0..78)], Device::Cpu).unwrap().key_starts).unwrap(), [0, 78]);
    }

    #[test]
    fn rows_beyond_32_bits_are_refused() {
        let error = packed_lengths(&[span(0..1, 0..1 << 31)], Device::Cpu).unwrap_err();
        assert!(matches!(error, Error::AttentionSpan { index: 0, problem: "ends beyond what 32 bits count", .. }), "{error:?}");
    }
}
