//! Planning a step: the budget is granted, the running sequences get their blocks (at the cost of the worst-ranked, if
//! need be), then new ones are admitted.

use super::Scheduler;
use super::rank::Rank;
use super::sequence::Sequence;
use crate::StepPlan;
use crate::kv::{Disposal, KvCacheManager};

/// Whether a running sequence got its blocks.
enum Grown {
    Yes,
    /// It had to give its own blocks back.
    Preempted,
    /// It waits for blocks that come back when the steps in flight have ended.
    Stalled,
}

impl<X> Scheduler<X> {
    /// Plans the next step, or says that there is nothing to plan now. What is planned counts as computed from here on;
    /// it becomes valid in `commit`.
    pub(crate) fn schedule(&mut self, kv: &mut KvCacheManager) -> Option<StepPlan> {
        self.is_stalled = false;
        let mut plan = self.spare_plans.pop().unwrap_or_default();
        plan.clear(self.next_step_id);
        loop {
            let num_preemptions = self.stats.num_preemptions;
            let num_left = self.grant_budget();
            self.schedule_running(&mut plan, kv);
            let has_preempted = self.stats.num_preemptions > num_preemptions;
            if !has_preempted && !self.is_stalled {
                self.admit_waiting(&mut plan, num_left, kv);
            }
            // If the one sequence with a grant had to give way, another one may use the step.
            if !plan.sequences.is_empty() || !has_preempted {
                break;
            }
        }
        if plan.sequences.is_empty() {
            self.spare_plans.push(plan);
            return None;
        }
        self.next_step_id += 1;
        kv.launch_step(plan.step_id, &mut plan.copies);
        self.count_step(&plan, kv);
        Some(plan)
    }

    /// Fills `grants`: one token for each sequence that wants one, the rest of the budget to the others in the order of
    /// admission. Returns what is left of the budget.
    fn grant_budget(&mut self) -> usize {
        let mut num_left = self.limits.max_num_batched_tokens;
        let mut prefilling = Vec::new();
        self.grants.clear();
        self.has_protected = false;
        for (place, rank) in self.running.iter().enumerate() {
            let sequence = &self.sequences[&rank.sequence];
            let num_wanted = sequence.num_wanted_tokens();
            self.has_protected |= sequence.num_preemptions >= self.limits.max_preemptions;
            if num_wanted > 1 {
                prefilling.push((sequence.admission, place, num_wanted));
            }
            self.grants.push(num_wanted.min(1));
            num_left -= num_wanted.min(1);
        }
        // The first of them is never displaced by later arrivals, so that it ends within ceil(prompt / budget) steps
        // or others have produced output meanwhile (law 11).
        prefilling.sort_unstable();
        for (_, place, num_wanted) in prefilling {
            let num_more = (num_wanted - 1).min(num_left);
            self.grants[place] += num_more;
            num_left -= num_more;
        }
        num_left
    }

    fn schedule_running(&mut self, plan: &mut StepPlan, kv: &mut KvCacheManager) {
        let mut place = 0;
        while place < self.running.len() {
            let num_new = self.grants[place];
            if num_new == 0 {
                place += 1;
                continue;
            }
            match self.grow(place, num_new, kv) {
                Grown::Yes => {
                    self.plan_rows(self.running[place], num_new, plan, kv);
                    // Newborn siblings stand behind, without a grant in this step.
                    place += 1;
                }
                Grown::Preempted => {}
                Grown::Stalled => {
                    self.is_stalled = true;
                    return;
                }
            }
        }
    }

    /// Gets blocks for `num_new` more tokens, by preemption if nothing else helps.
    fn grow(&mut self, place: usize, num_new: usize, kv: &mut KvCacheManager) -> Grown {
        let rank = self.running[place];
        loop {
            let sequence = &self.sequences[&rank.sequence];
            let num_computed = sequence.num_computed_tokens;
            let num_needed = kv.num_blocks_to_append(&sequence.table, num_computed, num_new);
            let is_there =
                num_needed == 0 || num_needed + self.num_blocks_reserved_from(rank, kv) <= kv.num_available();
            if is_there {
                let sequence =
                    self.sequences.get_mut(&rank.sequence).expect("a running sequence is in the map");
                kv.append(&mut sequence.table, num_computed, num_new).expect("the blocks have been counted");
                return Grown::Yes;
            }
            // Only with nothing in flight are a victim's tokens known and its blocks free at once.
            if kv.num_steps_in_flight() > 0 {
                return Grown::Stalled;
            }
            match self.victim_behind(place) {
                Some(victim) => self.preempt(victim, kv),
                None => {
                    let num_available = kv.num_available();
                    assert!(
                        !self.is_protected(rank),
                        "law 11: {} is no victim any more and has blocks set aside, but needs {num_needed} \
                         of {num_available}",
                        rank.sequence
                    );
                    self.preempt(place, kv);
                    return Grown::Preempted;
                }
            }
        }
    }

    /// The worst-ranked running sequence behind `place` that may be preempted. Those before it are in the plan already.
    fn victim_behind(&self, place: usize) -> Option<usize> {
        (place + 1..self.running.len()).rev().find(|&other| !self.is_protected(self.running[other]))
    }

    /// Takes a sequence's blocks. Its tokens stay; what the cache keeps of them is matched when it comes back.
    fn preempt(&mut self, place: usize, kv: &mut KvCacheManager) {
        let rank = self.running.remove(place);
        self.grants.remove(place);
        let sequence = self.sequences.get_mut(&rank.sequence).expect("a running sequence is in the map");
        assert_eq!(sequence.num_tokens_in_flight, 0, "{} is preempted with a token in flight", rank.sequence);
        kv.free(&mut sequence.table, &sequence.tokens, sequence.num_committed_tokens, Disposal::Reusable);
        sequence.num_computed_tokens = 0;
        sequence.num_committed_tokens = 0;
        sequence.num_preemptions += 1;
        self.stats.num_preemptions += 1;
        self.waiting.insert(rank);
    }

    /// Whether the sequence has been preempted so often that it is no victim any more.
    pub(super) fn is_protected(&self, rank: Rank) -> bool {
        self.is_no_victim(&self.sequences[&rank.sequence])
    }

    fn is_no_victim(&self, sequence: &Sequence) -> bool {
        sequence.num_preemptions >= self.limits.max_preemptions
    }

    /// Blocks that a sequence must leave untouched: those set aside for the protected ones, for which it is nothing.
    fn num_blocks_reserved_from(&self, rank: Rank, kv: &KvCacheManager) -> usize {
        if !self.has_protected || self.is_protected(rank) { 0 } else { self.num_blocks_reserved(kv) }
    }

    /// Blocks that the protected running sequences may still need.
    pub(super) fn num_blocks_reserved(&self, kv: &KvCacheManager) -> usize {
        let protected = self.running.iter().map(|rank| &self.sequences[&rank.sequence]);
        let protected = protected.filter(|sequence| self.is_no_victim(sequence));
        protected
            .map(|sequence| {
                let num_more = self.max_num_blocks(sequence) - sequence.table.len();
                let is_tail_shared = kv.must_copy_tail(&sequence.table, sequence.num_computed_tokens);
                num_more + usize::from(is_tail_shared || self.may_share_tail(sequence))
            })
            .sum()
    }

    fn count_step(&mut self, plan: &StepPlan, kv: &KvCacheManager) {
        self.stats.count_step(plan.batch.num_tokens() as u64);
        self.stats.num_copies += plan.copies.len() as u64;
        self.stats.allocated_slot_steps += (kv.num_referenced() * kv.block_size()) as u64;
        let sequences = self.running.iter().map(|rank| &self.sequences[&rank.sequence]);
        let wasted =
            sequences.map(|sequence| kv.num_wasted_slots(&sequence.table, sequence.num_computed_tokens));
        self.stats.waste_slot_steps += wasted.sum::<usize>() as u64;
    }
}
