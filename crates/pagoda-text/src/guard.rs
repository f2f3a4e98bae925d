//! The panic boundary around library code that runs on hostile input.
//!
//! The tokenizer library unwraps on some crafted files and the regex engine on some patterns. Such a panic must cost one
//! request its answer, never the process: it ends here and becomes the caller's typed error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

thread_local! {
    /// How many boundaries the thread is within.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether the calling thread works on hostile input behind a panic boundary. For the process's panic hook: such a panic
/// is handled, and its message may quote a prompt, so that it should not be printed.
pub fn is_within_panic_boundary() -> bool {
    DEPTH.get() > 0
}

/// `body` panicked. The payload is dropped: it may quote the text that was being worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panicked;

/// Runs `body`, turning a panic into [`Panicked`].
///
/// `AssertUnwindSafe` holds because every caller either drops what `body` was building or shares only data that `body`
/// cannot leave half-written (the tokenizer is read-only, its caches are inserted into in one step).
pub(crate) fn guarded<T>(body: impl FnOnce() -> T) -> Result<T, Panicked> {
    DEPTH.set(DEPTH.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    DEPTH.set(DEPTH.get() - 1);
    outcome.map_err(|_| Panicked)
}

/// Runs `body` on a thread of its own with a stack of `stack_bytes`, which must hold any recursion that the caps on its
/// input allow: an overflow would abort the process, no boundary can catch it. Only pages that are touched take memory.
pub(crate) fn guarded_with_stack<T: Send>(
    stack_bytes: usize,
    body: impl FnOnce() -> T + Send,
) -> Result<T, Panicked> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("pagoda-template".into()).stack_size(stack_bytes);
        let worker = worker.spawn_scoped(scope, || guarded(body)).map_err(|_| Panicked)?;
        worker.join().unwrap_or(Err(Panicked))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_at_the_boundary_and_the_thread_goes_on() {
        assert_eq!(guarded(is_within_panic_boundary), Ok(true));
        assert_eq!(guarded(|| -> u32 { panic!("handled") }), Err(Panicked));
        assert_eq!(guarded_with_stack(1 << 20, || -> u32 { panic!("handled") }), Err(Panicked));
        assert_eq!(guarded_with_stack(1 << 20, is_within_panic_boundary), Ok(true));
        assert!(!is_within_panic_boundary());
    }
}
