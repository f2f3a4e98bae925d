//! What the prefix cache knew of the last requests' prompts: numbers and ids only, for whoever wonders why a prompt was
//! computed again. Bounded.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::generation::CacheUsage;

/// How many prompts are remembered.
pub(crate) const MAX_ENTRIES: usize = 256;

/// One prompt of an answered request.
#[derive(Clone, Debug)]
pub(crate) struct PrefixEntry {
    /// The random part of the answer's id.
    pub(crate) answer_id: String,
    pub(crate) usage: CacheUsage,
}

/// The last ones, newest first.
#[derive(Debug, Default)]
pub(crate) struct PrefixLog(Mutex<VecDeque<PrefixEntry>>);

impl PrefixLog {
    pub(crate) fn push(&self, answer_id: &str, usage: CacheUsage) {
        // The lock is held for a few assignments, which cannot panic.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.truncate(MAX_ENTRIES - 1);
        entries.push_front(PrefixEntry { answer_id: answer_id.to_owned(), usage });
    }

    pub(crate) fn entries(&self) -> Vec<PrefixEntry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
