//! Readers of other people's making, which panic on some damaged files where they should give an error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread will become an error about the file that is being read; a panic hook need not speak of it.
pub fn is_guarded() -> bool {
    IS_GUARDED.get()
}

/// What `read` returns, or `None` if it panicked. It must not be used again after that.
pub(super) fn guarded<T>(read: impl FnOnce() -> T) -> Option<T> {
    IS_GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    IS_GUARDED.set(false);
    result.ok()
}
