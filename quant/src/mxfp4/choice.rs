//! Which scale has the smallest error, for 32 blocks at a time, a block to a lane.

use super::lanes::{LANES, Rule, can_win};
use super::scale;

/// 32 blocks whose errors can be summed up exactly.
pub(super) trait Measured {
    type Error: Copy + PartialOrd;

    /// For each block, the squared error under its scale less that of packing zeros, in units of `start` squared.
    fn errors<R: Rule>(&self, scales: &[u8; LANES], start: &[u8; LANES]) -> [Self::Error; LANES];
}

/// For each block, of its hint, `start` and the scale above it the first with the smallest error.
#[inline(always)]
pub(super) fn chosen_scales<R: Rule, M: Measured>(tile: &M, start: &[u8; LANES], hints: Option<&[u8; LANES]>) -> [u8; LANES] {
    let mut next = *start;
    for next in &mut next {
        *next = (*next + 1).min(scale::LARGEST);
    }
    let (of_start, of_next) = (tile.errors::<R>(start, start), tile.errors::<R>(&next, start));
    let (mut best, mut least) = (*start, of_start);
    for lane in 0..LANES {
        if of_next[lane] < of_start[lane] {
            (best[lane], least[lane]) = (next[lane], of_next[lane]);
        }
    }
    let Some(hints) = hints else { return best };
    // After a small update nearly all hints are one of the two that were tried.
    let mut others = *start;
    for lane in 0..LANES {
        if hints[lane] == next[lane] && of_next[lane] == least[lane] {
            best[lane] = next[lane];
        } else if hints[lane] != next[lane] && can_win(hints[lane], start[lane]) {
            others[lane] = hints[lane];
        }
    }
    if others != *start {
        let of_others = tile.errors::<R>(&others, start);
        for lane in 0..LANES {
            if others[lane] != start[lane] && of_others[lane] <= least[lane] {
                best[lane] = others[lane];
            }
        }
    }
    best
}
