//! Loops on libtorch's own threads: a pool of ours would fight with them for the cores.

use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

unsafe extern "C" {
    fn ft_parallel_for(count: i64, grain: i64, context: *mut c_void, work: unsafe extern "C" fn(*mut c_void, i64, i64));
}

/// Calls `work` with disjoint ranges that cover `0..count`, each of at least `grain` where there are several.
///
/// # Panics
/// When `work` does.
pub(super) fn for_each_range(count: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
    struct Context<Work> {
        work: Work,
        panicked: AtomicBool,
    }

    unsafe extern "C" fn call<Work: Fn(Range<usize>) + Sync>(context: *mut c_void, begin: i64, end: i64) {
        // SAFETY: the context below, which outlives the loop and is only shared.
        let context = unsafe { &*context.cast::<Context<Work>>() };
        let range = usize::try_from(begin).unwrap_or(0)..usize::try_from(end).unwrap_or(0);
        if catch_unwind(AssertUnwindSafe(|| (context.work)(range))).is_err() {
            context.panicked.store(true, Ordering::Relaxed);
        }
    }

    fn run<Work: Fn(Range<usize>) + Sync>(context: &Context<Work>, count: usize, grain: usize) {
        let [count, grain] = [count, grain].map(|size| i64::try_from(size).unwrap_or(i64::MAX));
        // SAFETY: `call` does not unwind, and `context` lives until the loop has ended.
        unsafe { ft_parallel_for(count, grain, std::ptr::from_ref(context).cast_mut().cast(), call::<Work>) };
    }

    let context = Context { work, panicked: AtomicBool::new(false) };
    run(&context, count, grain);
    assert!(!context.panicked.load(Ordering::Relaxed), "a loop body panicked");
}

/// `work` of every index below `count`, in order.
///
/// # Panics
/// When `work` does.
pub fn map_indices<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    let shared = Shared::new(&mut results);
    for_each_range(count, 1, |range| {
        for index in range {
            // SAFETY: each index is visited once.
            let place = unsafe { shared.part(index..index + 1) };
            place[0] = Some(work(index));
        }
    });
    results.into_iter().flatten().collect()
}

/// A slice whose disjoint parts several threads may write to.
pub(super) struct Shared<T> {
    start: *mut T,
    length: usize,
}

// SAFETY: it hands out only what `part`'s caller promises to be disjoint.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len() }
    }

    /// # Safety
    /// No two parts that are in use at a time may overlap, and the slice must outlive them.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.length, "part {range:?} of {}", self.length);
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_visited_once() {
        let mut counts = vec![0u8; 100_003];
        let length = counts.len();
        let shared = Shared::new(&mut counts);
        for_each_range(length, 1000, |range| {
            // SAFETY: ranges are disjoint.
            for count in unsafe { shared.part(range) } {
                *count += 1;
            }
        });
        assert!(counts.iter().all(|&count| count == 1));
    }

    #[test]
    fn results_stand_in_the_order_of_their_indices() {
        assert_eq!(map_indices(1000, |index| index * 2), (0..1000).map(|index| index * 2).collect::<Vec<_>>());
        assert!(map_indices(0, |index| index).is_empty());
    }

    #[test]
    #[should_panic(expected = "a loop body panicked")]
    fn a_panic_comes_through() {
        for_each_range(10, 1, |range| assert!(range.start > 100));
    }
}
