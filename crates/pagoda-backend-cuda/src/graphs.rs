//! Captured forward passes: a decode step is some hundred launches, which a graph turns into one.
//!
//! A capture replays its launches with the parameters they had. So everything that a parameter depends on decides which capture
//! is replayed: rows, splits and the batch's place are its key, and when memory that a forward pass uses has moved, all captures
//! are dropped. What changes from step to step (tokens, positions, slots, tables, the work list) is read by the kernels from the
//! batch's memory.

use std::collections::HashMap;

use pagoda_backend::GraphKey;

use crate::params::Pointer;

/// Keys in all. Rows and splits are powers of two or multiples of 16: twenty kinds of the one, some twenty of the other.
const MAX_KEYS: usize = 512;

/// What decides the launches of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CaptureKey {
    pub(crate) key: GraphKey,
    /// Where the batch lies.
    pub(crate) batch: Pointer,
    /// Splits of the decode launch.
    pub(crate) num_splits: usize,
}

/// Places of memory that a forward pass uses and that may move when it grows.
pub(crate) type ScratchPlaces = [Pointer; 5];

/// Captures by key.
pub(crate) struct Graphs<G> {
    /// A key without a capture has been run once.
    captures: HashMap<CaptureKey, Option<G>>,
    /// Where scratch memory lay for all of them.
    scratch: ScratchPlaces,
    max_keys: usize,
}

/// What to do with a body.
pub(crate) enum Turn<'a, G> {
    /// The first time: run it, so that its kernels are loaded and its memory is there. Most keys come once.
    Run,
    /// The second time.
    Capture,
    /// From then on.
    Replay(&'a G),
}

impl<G> Default for Graphs<G> {
    fn default() -> Self {
        Graphs { captures: HashMap::new(), scratch: [0; 5], max_keys: MAX_KEYS }
    }
}

impl<G> Graphs<G> {
    /// What to do with the body of this key, while scratch memory lies there.
    pub(crate) fn next(&mut self, key: CaptureKey, scratch: ScratchPlaces) -> Turn<'_, G> {
        if self.scratch != scratch {
            self.captures.clear();
            self.scratch = scratch;
        }
        // Looked up twice, because the entry of a first look would be borrowed to the end.
        if !self.captures.contains_key(&key) {
            if self.captures.len() < self.max_keys {
                self.captures.insert(key, None);
            }
            return Turn::Run;
        }
        match &self.captures[&key] {
            None => Turn::Capture,
            Some(graph) => Turn::Replay(graph),
        }
    }

    /// Keeps a capture.
    pub(crate) fn insert(&mut self, key: CaptureKey, graph: G) {
        self.captures.insert(key, Some(graph));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(num_rows: usize, num_splits: usize) -> CaptureKey {
        CaptureKey { key: GraphKey { name: "forward", num_rows }, batch: 1, num_splits }
    }

    #[test]
    fn a_body_is_run_then_captured_then_replayed() {
        let mut graphs = Graphs::<u32>::default();
        assert!(matches!(graphs.next(key(4, 8), [2; 5]), Turn::Run));
        assert!(matches!(graphs.next(key(4, 8), [2; 5]), Turn::Capture));
        // A capture that failed is tried again.
        assert!(matches!(graphs.next(key(4, 8), [2; 5]), Turn::Capture));
        graphs.insert(key(4, 8), 9);
        assert!(matches!(graphs.next(key(4, 8), [2; 5]), Turn::Replay(9)));
        assert!(matches!(graphs.next(key(4, 16), [2; 5]), Turn::Run));
    }

    #[test]
    fn memory_that_moves_drops_every_capture() {
        let mut graphs = Graphs::<u32>::default();
        graphs.next(key(4, 8), [2; 5]);
        graphs.insert(key(4, 8), 9);
        assert!(matches!(graphs.next(key(1, 1), [2, 2, 2, 3, 2]), Turn::Run));
        assert!(matches!(graphs.next(key(4, 8), [2, 2, 2, 3, 2]), Turn::Run));
        // Not even if it comes back to its old place: it may have been something else's.
        graphs.next(key(4, 8), [2; 5]);
        assert!(matches!(graphs.next(key(4, 8), [2; 5]), Turn::Capture));
    }

    #[test]
    fn keys_beyond_the_limit_are_run() {
        let mut graphs = Graphs::<u32> { max_keys: 1, ..Graphs::default() };
        graphs.next(key(1, 1), [2; 5]);
        for _ in 0..3 {
            assert!(matches!(graphs.next(key(2, 1), [2; 5]), Turn::Run));
        }
        assert!(matches!(graphs.next(key(1, 1), [2; 5]), Turn::Capture));
    }
}
