//! The panic boundary around library code that runs on hostile input.
//!
//! The tokenizer library unwraps on some crafted files and the regex engine on some patterns. Such a panic must cost one
//! request its answer, never the process: it ends here and becomes the caller's typed error.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// `body` panicked. The payload is dropped: it may quote the text that was being worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panicked;

/// Runs `body`, turning a panic into [`Panicked`].
///
/// `AssertUnwindSafe` holds because every caller either drops what `body` was building or shares only data that `body`
/// cannot leave half-written (the tokenizer is read-only, its caches are inserted into in one step).
pub(crate) fn guarded<T>(body: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|_| Panicked)
}
