//! Byte-pair merging of one piece.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Longest piece, in bytes, that is merged without a heap.
const SHORT: usize = 48;

/// Appends to `ids` the tokens of `piece`: starting from single bytes, the pair of neighbours with the lowest rank is
/// joined (the leftmost among equals) until no pair has a rank.
pub(super) fn merge(piece: &[u8], rank_of: impl Fn(&[u8]) -> Option<u32>, ids: &mut Vec<u32>) {
    if piece.len() <= SHORT { merge_short(piece, rank_of, ids) } else { merge_long(piece, rank_of, ids) }
}

/// The same for a short piece, where looking at every pair takes less time than a heap.
fn merge_short(piece: &[u8], rank_of: impl Fn(&[u8]) -> Option<u32>, ids: &mut Vec<u32>) {
    const NONE: u32 = u32::MAX;
    // Part `i` is `piece[starts[i]..starts[i + 1]]`; joined with the next it has the rank `ranks[i]`.
    let mut starts: [usize; SHORT + 1] = std::array::from_fn(|index| index);
    let mut ranks = [NONE; SHORT];
    let mut count = piece.len();
    let joined = |starts: &[usize], part: usize, count: usize| {
        if part + 2 > count { NONE } else { rank_of(&piece[starts[part]..starts[part + 2]]).unwrap_or(NONE) }
    };
    for (part, rank) in ranks[..count].iter_mut().enumerate() {
        *rank = joined(&starts, part, count);
    }
    loop {
        let mut best = (NONE, 0);
        for (part, &rank) in ranks[..count].iter().enumerate() {
            if rank < best.0 {
                best = (rank, part);
            }
        }
        let (rank, part) = best;
        if rank == NONE {
            break;
        }
        starts.copy_within(part + 2..=count, part + 1);
        ranks.copy_within(part + 1..count, part);
        count -= 1;
        ranks[part] = joined(&starts, part, count);
        if part > 0 {
            ranks[part - 1] = joined(&starts, part - 1, count);
        }
    }
    for part in 0..count {
        // Every part is a token: it is a single byte, or was joined because its bytes have a rank.
        ids.extend(rank_of(&piece[starts[part]..starts[part + 1]]));
    }
}

/// The same for a piece of any length.
///
/// A heap of candidate pairs makes it O(n log n). A candidate is (rank, start, end): it still stands when a part begins
/// at `start` and the part after it ends at `end`, wherever the border between them has moved, since the rank belongs to
/// the joined bytes.
fn merge_long(piece: &[u8], rank_of: impl Fn(&[u8]) -> Option<u32>, ids: &mut Vec<u32>) {
    let length = piece.len();
    // The part that starts at `i` ends at `ends[i]`; the part that ends at `i` starts at `starts[i]`. 0 in `ends` means
    // that no part starts there.
    let mut ends: Vec<usize> = (1..=length).collect();
    let mut starts: Vec<usize> = (0..=length).map(|i| i.saturating_sub(1)).collect();
    let mut candidates: BinaryHeap<Reverse<(u32, usize, usize)>> =
        (0..length.saturating_sub(1)).filter_map(|start| Some(Reverse((rank_of(&piece[start..start + 2])?, start, start + 2)))).collect();
    while let Some(Reverse((_, start, end))) = candidates.pop() {
        let middle = ends[start];
        if middle == 0 || middle == end || middle >= length || ends[middle] != end {
            continue;
        }
        ends[start] = end;
        ends[middle] = 0;
        starts[end] = start;
        if end < length {
            let next_end = ends[end];
            if let Some(rank) = rank_of(&piece[start..next_end]) {
                candidates.push(Reverse((rank, start, next_end)));
            }
        }
        if start > 0 {
            let previous = starts[start];
            if let Some(rank) = rank_of(&piece[previous..end]) {
                candidates.push(Reverse((rank, previous, end)));
            }
        }
    }
    let mut start = 0;
    while start < length {
        let end = ends[start];
        // Every part is a token: it is a single byte, or was joined because its bytes have a rank.
        ids.extend(rank_of(&piece[start..end]));
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(piece: &[u8], pairs: &[(&[u8], u32)]) -> Vec<u32> {
        let rank_of = |bytes: &[u8]| match bytes {
            [byte] => Some(1000 + u32::from(*byte)),
            _ => pairs.iter().find(|(token, _)| *token == bytes).map(|(_, rank)| *rank),
        };
        let (mut short, mut long) = (Vec::new(), Vec::new());
        merge_short(piece, rank_of, &mut short);
        merge_long(piece, rank_of, &mut long);
        assert_eq!(short, long);
        short
    }

    #[test]
    fn lowest_rank_joins_first() {
        assert_eq!(merged(b"abc", &[(b"ab", 2), (b"bc", 1)]), [1000 + 97, 1]);
        assert_eq!(merged(b"abc", &[(b"ab", 1), (b"bc", 2), (b"abc", 3)]), [3]);
    }

    #[test]
    fn equal_ranks_join_from_the_left() {
        assert_eq!(merged(b"aaa", &[(b"aa", 1)]), [1, 1097]);
        assert_eq!(merged(b"aaaaa", &[(b"aa", 1), (b"aaaa", 2)]), [2, 1097]);
    }

    #[test]
    fn one_byte_and_none() {
        assert_eq!(merged(b"a", &[]), [1097]);
        assert_eq!(merged(b"", &[]), Vec::<u32>::new());
    }
}
