//! Admission: the best-ranked waiting sequence gets a seat and its first blocks, if everything it needs for its prompt
//! fits beside what the others were promised.

use super::Scheduler;
use super::rank::Rank;
use super::sequence::Sequence;
use crate::kv::{CacheMiss, KvCacheManager, PrefixMatch, PrefixReport};
use crate::{EngineEvent, RequestEvent, StepPlan};

impl<X> Scheduler<X> {
    /// Admits waiting sequences in order, until one does not fit or the budget is used up.
    pub(super) fn admit_waiting(
        &mut self,
        plan: &mut StepPlan,
        mut num_left: usize,
        kv: &mut KvCacheManager,
    ) {
        while num_left > 0 {
            let Some(&rank) = self.waiting.first() else { return };
            if !self.has_seats(rank) {
                return;
            }
            let Some(found) = self.match_if_it_fits(rank, kv) else { return };
            let num_new = self.admit(rank, &found, num_left, kv);
            self.plan_rows(rank, num_new, plan, kv);
            num_left -= num_new;
        }
    }

    /// All of a request's sequences get their seats together, before the prompt is computed for them.
    fn has_seats(&self, rank: Rank) -> bool {
        let seats = |rank: &Rank| self.requests[&rank.request].num_seats(rank.sequence);
        let num_taken: usize = self.running.iter().map(seats).sum();
        num_taken + seats(&rank) <= self.limits.max_num_seqs
    }

    /// The prefix match of a waiting sequence, if all its tokens fit beside the promises, plus the watermark. When
    /// nothing runs there is nobody to leave blocks for, and what fits is admitted.
    fn match_if_it_fits(&self, rank: Rank, kv: &KvCacheManager) -> Option<PrefixMatch> {
        let sequence = &self.sequences[&rank.sequence];
        let is_protected = self.is_protected(rank);
        let mut found = PrefixMatch::default();
        if self.requests[&rank.request].may_match() {
            // One token is always computed: its logits are what the sequence is admitted for.
            found = kv.match_prefix(&sequence.tokens, sequence.num_tokens() - 1);
        }
        let mut num_tokens = sequence.num_tokens();
        let mut num_extra = 0;
        if is_protected {
            // Everything is set aside that it can ever need; the copied source would come on top.
            found = found.without_partial();
            num_tokens = self.max_num_blocks(sequence) * self.limits.block_size;
            num_extra = usize::from(self.may_share_tail(sequence));
        }
        let watermark = if self.running.is_empty() { 0 } else { self.limits.watermark_blocks };
        let num_needed = kv.num_blocks_to_allocate(&found, num_tokens) + num_extra;
        (num_needed + self.num_blocks_promised(kv) + watermark <= kv.num_available()).then_some(found)
    }

    /// Blocks that the running sequences need for the tokens they have, and the reserve of the protected ones.
    fn num_blocks_promised(&self, kv: &KvCacheManager) -> usize {
        let unprotected = self.running.iter().filter(|&&rank| !self.is_protected(rank));
        let for_prompts: usize = unprotected
            .map(|rank| &self.sequences[&rank.sequence])
            .map(|sequence| {
                sequence.num_tokens().div_ceil(self.limits.block_size).saturating_sub(sequence.table.len())
            })
            .sum();
        for_prompts + self.num_blocks_reserved(kv)
    }

    /// Gives the sequence a seat and blocks for its first tokens of the step; returns how many tokens.
    fn admit(&mut self, rank: Rank, found: &PrefixMatch, num_left: usize, kv: &mut KvCacheManager) -> usize {
        self.announce(rank, found, kv);
        self.waiting.remove(&rank);
        let place = self.running.binary_search(&rank).expect_err("a waiting sequence does not run");
        self.running.insert(place, rank);
        self.grants.insert(place, 0);
        let sequence = self.sequences.get_mut(&rank.sequence).expect("a waiting sequence is in the map");
        let num_new = (sequence.num_tokens() - found.num_tokens).min(num_left);
        kv.allocate(&mut sequence.table, found, found.num_tokens + num_new)
            .expect("the blocks have been counted");
        sequence.num_computed_tokens = found.num_tokens;
        sequence.num_committed_tokens = found.num_tokens;
        sequence.admission = self.num_admissions;
        self.num_admissions += 1;
        let is_protected = self.is_protected(rank);
        self.has_protected |= is_protected;
        self.stats.num_protected_admissions += u64::from(is_protected);
        num_new
    }

    /// Tells the client once that its request runs, and what the cache had of it. Before the blocks are taken, which may
    /// evict what the report is about.
    fn announce(&mut self, rank: Rank, found: &PrefixMatch, kv: &mut KvCacheManager) {
        let request = self.requests.get_mut(&rank.request).expect("a sequence has a request");
        if std::mem::replace(&mut request.is_announced, true) {
            return;
        }
        let mut prefix = PrefixReport::NOT_ASKED;
        if request.may_match() {
            let tokens = &self.sequences[&rank.sequence].tokens;
            prefix = kv.report(tokens, found, tokens.len() - 1);
            self.stats.prefix_cache_queries += request.num_prompt_tokens as u64;
            self.stats.prefix_cache_hits += found.num_tokens as u64;
        }
        self.count_miss(prefix);
        self.events.push(EngineEvent::Request(rank.request, RequestEvent::Scheduled { prefix }));
    }

    fn count_miss(&mut self, prefix: PrefixReport) {
        let stats = &mut self.stats;
        let count = match prefix.miss {
            _ if prefix.num_tokens_under_other_salt > 0 => &mut stats.prefix_cache_other_salt,
            CacheMiss::Nothing => &mut stats.prefix_cache_complete,
            CacheMiss::NotAsked => &mut stats.prefix_cache_not_asked,
            CacheMiss::FirstUse => &mut stats.prefix_cache_first_use,
            CacheMiss::Evicted => &mut stats.prefix_cache_evicted,
            CacheMiss::Diverged => &mut stats.prefix_cache_diverged,
        };
        *count += 1;
        if prefix.miss == CacheMiss::Evicted {
            stats.prefix_cache_evicted_tokens +=
                u64::from(prefix.num_known_tokens - prefix.num_cached_tokens);
        }
    }

    /// Blocks of the sequence at its greatest length.
    pub(super) fn max_num_blocks(&self, sequence: &Sequence) -> usize {
        sequence.max_num_tokens.div_ceil(self.limits.block_size)
    }

    /// Whether siblings will be born that share the sequence's tail, which costs it a copy.
    pub(super) fn may_share_tail(&self, sequence: &Sequence) -> bool {
        self.requests[&sequence.rank.request].num_seats(sequence.rank.sequence) > 1
    }
}
