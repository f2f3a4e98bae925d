//! The laws that concern sequences, checked by looking at every one of them.

use super::Scheduler;
use crate::IntegrityError;
use crate::integrity::hold;
use crate::kv::KvCacheManager;

impl<X> Scheduler<X> {
    /// Checks the sequences and, with their tables, the block manager.
    pub(crate) fn check_integrity(&self, kv: &KvCacheManager) -> Result<(), IntegrityError> {
        let is_sorted = self.running.windows(2).all(|pair| pair[0] < pair[1]);
        hold!(11, is_sorted, "the running sequences are not in order");
        let (num_running, num_waiting) = self.num_sequences();
        let num_sequences = self.sequences.len();
        hold!(
            11,
            num_running + num_waiting == num_sequences,
            "{num_running} + {num_waiting} != {num_sequences}"
        );
        for rank in &self.waiting {
            let sequence = &self.sequences[&rank.sequence];
            let id = rank.sequence;
            hold!(6, sequence.table.is_empty(), "{id} waits with {} blocks", sequence.table.len());
            hold!(6, sequence.num_computed_tokens == 0, "{id} waits with computed tokens");
            hold!(6, sequence.num_tokens_in_flight == 0, "{id} waits with a token in flight");
        }
        for rank in &self.running {
            let sequence = &self.sequences[&rank.sequence];
            let (committed, computed) = (sequence.num_committed_tokens, sequence.num_computed_tokens);
            let (id, len) = (rank.sequence, sequence.num_tokens());
            hold!(6, committed <= computed && computed <= len, "{id}: {committed} <= {computed} <= {len}");
            let (num_preemptions, most) = (sequence.num_preemptions, self.limits.max_preemptions);
            hold!(11, num_preemptions <= most, "{id} was preempted {num_preemptions} times");
            hold!(10, computed > 0, "{id} runs without a computed token");
        }
        self.check_seats()?;
        let num_reserved = self.num_blocks_reserved(kv);
        let num_available = kv.num_available();
        hold!(11, num_reserved <= num_available, "{num_reserved} blocks set aside, {num_available} there");
        kv.check_integrity(
            self.sequences.values().map(|sequence| (&sequence.table, sequence.num_computed_tokens)),
        )
    }

    fn check_seats(&self) -> Result<(), IntegrityError> {
        let seats = self.running.iter().map(|rank| self.requests[&rank.request].num_seats(rank.sequence));
        let (num_taken, max) = (seats.sum::<usize>(), self.limits.max_num_seqs);
        hold!(11, num_taken <= max, "{num_taken} seats of {max} are taken");
        let live = self.requests.values().map(|request| request.live_sequences().count());
        let (num_live, num_known) = (live.sum::<usize>(), self.sequences.len());
        hold!(11, num_live == num_known, "the requests have {num_live} sequences, {num_known} are known");
        Ok(())
    }
}
