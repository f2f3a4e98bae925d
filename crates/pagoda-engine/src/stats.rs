//! Counters and gauges of the engine: plain numbers inside the engine, published through atomics for everyone else.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bounds of [`EngineStats::num_steps_by_size`], in tokens.
pub const STEP_SIZES: [u64; 13] = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

macro_rules! engine_stats {
    ($($(#[$doc:meta])* $field:ident,)+) => {
        /// A snapshot of the engine's counters (`num_…`, since start) and gauges.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct EngineStats {
            $($(#[$doc])* pub $field: u64,)+
            /// Steps by the tokens they computed: of at most `STEP_SIZES[i]`, but more than the bound before it; the last
            /// entry counts those beyond the last bound.
            pub num_steps_by_size: [u64; STEP_SIZES.len() + 1],
        }

        /// Single numbers of [`EngineStats`].
        const NUM_SINGLE: usize = [$(stringify!($field)),+].len();

        /// Numbers of [`EngineStats`].
        pub const NUM_STATS: usize = NUM_SINGLE + STEP_SIZES.len() + 1;

        impl EngineStats {
            fn to_words(self) -> [u64; NUM_STATS] {
                let mut words = [0; NUM_STATS];
                words[..NUM_SINGLE].copy_from_slice(&[$(self.$field),+]);
                words[NUM_SINGLE..].copy_from_slice(&self.num_steps_by_size);
                words
            }

            fn from_words(words: [u64; NUM_STATS]) -> Self {
                let mut words = words.into_iter();
                let mut next = || words.next().expect("as many words as numbers");
                $(let $field = next();)+
                EngineStats { $($field,)+ num_steps_by_size: std::array::from_fn(|_| next()) }
            }
        }
    };
}

engine_stats! {
    /// Gauge: requests with a sequence that holds blocks.
    num_requests_running,
    /// Gauge: requests accepted, none of whose sequences holds blocks.
    num_requests_waiting,
    /// Blocks that can be handed out: the pool without block 0.
    kv_blocks_total,
    /// Gauge: blocks held by a sequence or by a launched copy.
    kv_blocks_referenced,
    /// Gauge: blocks that nobody holds but that can be matched.
    kv_blocks_cached,
    /// Gauge: blocks that nobody holds and that hold nothing.
    kv_blocks_free,
    /// Sequences whose blocks were taken away.
    num_preemptions,
    /// Sequences admitted with blocks set aside for their whole length, because they are no victims any more.
    num_protected_admissions,
    /// Prompt tokens looked up in the prefix cache, once per request.
    prefix_cache_queries,
    /// Of these, tokens found.
    prefix_cache_hits,
    /// Requests that found all of their prompt but the token that is always computed.
    prefix_cache_complete,
    /// Requests that did not look: no cache, or prompt logprobs.
    prefix_cache_not_asked,
    /// Requests whose match ended where everything known ended.
    prefix_cache_first_use,
    /// Requests whose match ended at an evicted block.
    prefix_cache_evicted,
    /// Requests whose match ended where what is known goes on otherwise.
    prefix_cache_diverged,
    /// Requests that would have found more under another salt of their tenant.
    prefix_cache_other_salt,
    /// Prompt tokens that would have been found, had nothing been evicted.
    prefix_cache_evicted_tokens,
    /// Gauge: evicted blocks that are remembered.
    kv_ghost_blocks,
    /// Steps launched.
    num_steps,
    /// Tokens computed, recomputed ones included.
    num_scheduled_tokens,
    /// Prompt tokens computed, recomputed ones included.
    num_prompt_tokens,
    /// Output tokens handed to clients.
    num_output_tokens,
    /// Block copies (copy-on-write and partial prefix hits).
    num_copies,
    /// Requests ended before they had finished (dropped streams).
    num_aborted_requests,
    /// Steps that the executor failed.
    num_failed_steps,
    /// Sum over steps of the slots in unshared blocks that held no token.
    waste_slot_steps,
    /// Sum over steps of the slots of all held blocks.
    allocated_slot_steps,
}

impl EngineStats {
    /// The share of the pool that is held, 0 to 1.
    pub fn kv_cache_usage(&self) -> f64 {
        ratio(self.kv_blocks_referenced, self.kv_blocks_total)
    }

    /// The share of held slots that hold no token, time-weighted over all steps, 0 to 1.
    pub fn kv_waste(&self) -> f64 {
        ratio(self.waste_slot_steps, self.allocated_slot_steps)
    }
}

impl EngineStats {
    /// One more step of this many tokens.
    pub(crate) fn count_step(&mut self, num_tokens: u64) {
        self.num_steps += 1;
        self.num_scheduled_tokens += num_tokens;
        self.num_steps_by_size[STEP_SIZES.partition_point(|&bound| bound < num_tokens)] += 1;
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Snapshots that are kept: a reader is disturbed only if it takes longer than the writer does for three of them.
const NUM_SLOTS: u64 = 4;
/// How often a reader tries. The second try is rare: a step takes a thousand times as long as a read.
const MAX_READS: usize = 1_000;

/// One writer, many readers, no lock: a ring of snapshots in atomics, of which the newest is read and the oldest written,
/// so that the fields of a snapshot belong together.
pub(crate) struct StatsCell {
    /// Snapshots written so far. The newest is in slot `num_written % NUM_SLOTS`, the next goes into the one behind it.
    num_written: AtomicU64,
    slots: [[AtomicU64; NUM_STATS]; NUM_SLOTS as usize],
}

impl StatsCell {
    pub(crate) fn new() -> Self {
        StatsCell {
            num_written: AtomicU64::new(0),
            slots: [const { [const { AtomicU64::new(0) }; NUM_STATS] }; NUM_SLOTS as usize],
        }
    }

    fn slot(&self, number: u64) -> &[AtomicU64; NUM_STATS] {
        &self.slots[(number % NUM_SLOTS) as usize]
    }

    /// Called by the engine thread only.
    pub(crate) fn publish(&self, stats: EngineStats) {
        let number = self.num_written.load(Ordering::Relaxed) + 1;
        // Whoever sees one of the words below also sees that the snapshot before this one was finished.
        fence(Ordering::Release);
        for (word, value) in self.slot(number).iter().zip(stats.to_words()) {
            word.store(value, Ordering::Relaxed);
        }
        self.num_written.store(number, Ordering::Release);
    }

    /// The newest snapshot.
    pub(crate) fn read(&self) -> EngineStats {
        let mut words = [0; NUM_STATS];
        for _ in 0..MAX_READS {
            let number = self.num_written.load(Ordering::Acquire);
            for (value, word) in words.iter_mut().zip(self.slot(number)) {
                *value = word.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            // The writer comes back to this slot only when all others have been written.
            if self.num_written.load(Ordering::Relaxed) - number < NUM_SLOTS - 1 {
                break;
            }
            std::hint::spin_loop();
        }
        EngineStats::from_words(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_never_mixes_two_steps() {
        let cell = StatsCell::new();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for step in 1..=100_000 {
                    cell.publish(EngineStats::from_words([step; NUM_STATS]));
                }
            });
            while !writer.is_finished() {
                let words = cell.read().to_words();
                assert!(words.iter().all(|word| *word == words[0]), "{words:?}");
            }
        });
        assert_eq!(cell.read().num_steps, 100_000);
    }
}
