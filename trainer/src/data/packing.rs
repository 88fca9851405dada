//! Several samples to one pack of bounded length.

use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Indices of samples, pack by pack, so that the lengths of a pack sum to at most `max_tokens`.
///
/// Best fit decreasing: the longest sample first, each into the fullest pack that still has room for it, the earlier one
/// among equals. The same lengths always give the same packs. A sample longer than `max_tokens` stands alone.
pub fn pack(lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| (Reverse(lengths[index]), index));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    // (room left in tokens, pack)
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for index in order {
        let length = lengths[index];
        let (room, pack) = match rooms.range((length, 0)..).next().copied() {
            Some(found) => {
                rooms.remove(&found);
                found
            }
            None => {
                packs.push(Vec::new());
                (max_tokens.max(length), packs.len() - 1)
            }
        };
        packs[pack].push(index);
        rooms.insert((room - length, pack));
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_pack_with_room_is_taken() {
        assert_eq!(pack(&[5, 4, 3, 6, 2], 10), [vec![3, 1], vec![0, 2, 4]]);
        assert_eq!(pack(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(pack(&[12, 1], 10), [vec![0], vec![1]]);
    }

    #[test]
    fn every_sample_is_packed_once_within_the_limit() {
        let mut state = 7_usize;
        let lengths: Vec<usize> = (0..500)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % 4096 + 1
            })
            .collect();
        let packs = pack(&lengths, 4096);
        let mut seen: Vec<usize> = packs.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        assert!(packs.iter().all(|pack| pack.iter().map(|&index| lengths[index]).sum::<usize>() <= 4096));
        let least = lengths.iter().sum::<usize>().div_ceil(4096);
        assert!(packs.len() <= least + least / 20 + 1, "{} packs for at least {least}", packs.len());
    }
}
