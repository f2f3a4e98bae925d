//! Captured forward passes: a decode step is some hundred launches, which a graph turns into one.
//!
//! A capture replays its launches with the parameters they had. So everything that a parameter depends on decides which capture
//! is replayed: rows, splits and the places of the batch's lists are its key, and when memory that a forward pass uses has moved, all captures
//! are dropped. What changes from step to step (tokens, positions, slots, tables, the work list) is read by the kernels from the
//! batch's memory.

use std::collections::HashMap;

use pagoda_backend::{BackendError, GraphKey};

use crate::backend::CudaBackend;
use crate::batch::BatchPlaces;
use crate::clock::StepPath;
use crate::device::Device;
use crate::params::Pointer;

/// Keys in all. Rows and splits are powers of two or multiples of 16: twenty kinds of the one, some twenty of the other.
const MAX_KEYS: usize = 512;

/// What decides the launches of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CaptureKey {
    pub(crate) key: GraphKey,
    /// Where the batch's lists lie.
    pub(crate) batch: BatchPlaces,
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

impl<G> Default for Graphs<G> {
    fn default() -> Self {
        Graphs { captures: HashMap::new(), scratch: [0; 5], max_keys: MAX_KEYS }
    }
}

impl<G> Graphs<G> {
    /// How the body of this key is run, while scratch memory lies there: the first time kernel by kernel, so that its kernels are
    /// loaded and its memory is there (most keys come once); the second time it is captured; from then on replayed.
    fn next(&mut self, key: CaptureKey, scratch: ScratchPlaces) -> StepPath {
        if self.scratch != scratch {
            self.captures.clear();
            self.scratch = scratch;
        }
        match self.captures.get(&key) {
            Some(Some(_)) => StepPath::Replayed,
            Some(None) => StepPath::Captured,
            None => {
                if self.captures.len() < self.max_keys {
                    self.captures.insert(key, None);
                }
                StepPath::Launched
            }
        }
    }

    fn insert(&mut self, key: CaptureKey, graph: G) {
        self.captures.insert(key, Some(graph));
    }

    fn get(&self, key: &CaptureKey) -> Option<&G> {
        self.captures.get(key)?.as_ref()
    }
}

impl<D: Device> CudaBackend<D> {
    /// Runs a body by the way that is due, between two moments of the clock if there is one.
    pub(crate) fn run_body(
        &mut self,
        key: GraphKey,
        mut body: impl FnMut(&mut Self) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let key = self.capture_key(key);
        let scratch = self.scratch_places();
        let path = key.map_or(StepPath::Launched, |key| self.graphs.next(key, scratch));
        self.begin_step(path)?;
        match (path, key) {
            (StepPath::Captured, Some(key)) => self.capture_and_replay(key, &mut body)?,
            (StepPath::Replayed, Some(key)) => {
                let graph = self.graphs.get(&key).expect("what is to be replayed was captured");
                self.device.replay(graph)?;
            }
            _ => body(self)?,
        }
        self.end_step_part()
    }

    /// What a capture of this body would be found by; `None` if it is not to be captured.
    fn capture_key(&self, key: GraphKey) -> Option<CaptureKey> {
        let (batch, num_splits) = self.capturable.filter(|_| self.has_graphs && key.num_rows > 0)?;
        Some(CaptureKey { key, batch, num_splits })
    }

    fn capture_and_replay(
        &mut self,
        key: CaptureKey,
        body: &mut impl FnMut(&mut Self) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        match self.capture(body) {
            Ok(graph) => {
                self.device.replay(&graph)?;
                self.graphs.insert(key, graph);
                Ok(())
            }
            Err(why @ (BackendError::Refused(_) | BackendError::OutOfMemory { .. })) => {
                // Nothing has run. Steps go on as single launches, which is slower and nothing else; said once, for no step is
                // captured after this.
                tracing::warn!("no CUDA graphs from now on, every kernel is launched by itself: {why}");
                self.has_graphs = false;
                body(self)
            }
            Err(error) => Err(error),
        }
    }

    /// The launches of a body, none of which has run.
    fn capture(
        &mut self,
        body: &mut impl FnMut(&mut Self) -> Result<(), BackendError>,
    ) -> Result<D::Graph, BackendError> {
        self.device.begin_capture()?;
        let captured = body(self);
        // Always, so that the stream is not left capturing.
        let graph = self.device.end_capture();
        captured.and(graph)
    }

    fn scratch_places(&self) -> ScratchPlaces {
        [
            self.partial_out.address(),
            self.partial_stats.address(),
            self.arrivals.address(),
            self.panel.address(),
            self.samples.last_samples.address(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(num_rows: usize, num_splits: usize) -> CaptureKey {
        CaptureKey { key: GraphKey { name: "forward", num_rows }, batch: BatchPlaces::default(), num_splits }
    }

    #[test]
    fn a_body_is_run_then_captured_then_replayed() {
        let mut graphs = Graphs::<u32>::default();
        assert_eq!(graphs.next(key(4, 8), [2; 5]), StepPath::Launched);
        assert_eq!(graphs.next(key(4, 8), [2; 5]), StepPath::Captured);
        // A capture that failed is tried again.
        assert_eq!(graphs.next(key(4, 8), [2; 5]), StepPath::Captured);
        graphs.insert(key(4, 8), 9);
        assert_eq!(graphs.next(key(4, 8), [2; 5]), StepPath::Replayed);
        assert_eq!(graphs.next(key(4, 16), [2; 5]), StepPath::Launched);
    }

    #[test]
    fn memory_that_moves_drops_every_capture() {
        let mut graphs = Graphs::<u32>::default();
        graphs.next(key(4, 8), [2; 5]);
        graphs.insert(key(4, 8), 9);
        assert_eq!(graphs.next(key(1, 1), [2, 2, 2, 3, 2]), StepPath::Launched);
        assert_eq!(graphs.next(key(4, 8), [2, 2, 2, 3, 2]), StepPath::Launched);
        // Not even if it comes back to its old place: it may have been something else's.
        graphs.next(key(4, 8), [2; 5]);
        assert_eq!(graphs.next(key(4, 8), [2; 5]), StepPath::Captured);
    }

    #[test]
    fn keys_beyond_the_limit_are_run() {
        let mut graphs = Graphs::<u32> { max_keys: 1, ..Graphs::default() };
        graphs.next(key(1, 1), [2; 5]);
        for _ in 0..3 {
            assert_eq!(graphs.next(key(2, 1), [2; 5]), StepPath::Launched);
        }
        assert_eq!(graphs.next(key(1, 1), [2; 5]), StepPath::Captured);
    }
}
