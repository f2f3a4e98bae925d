//! Writing a sequence's share of a step into the plan: its tokens, where their KV goes, what is sampled. Also the birth of
//! a request's other sequences, which share the prompt's blocks from the moment its last token is planned.

use std::sync::Arc;

use super::Scheduler;
use super::constraints::MaskTerms;
use super::rank::Rank;
use super::sequence::Sequence;
use crate::kv::{BlockTable, KvCacheManager};
use crate::{InputId, PromptLogprobRow, SampleRow, ScheduledSequence, SequenceId, StepPlan, TokenHistory};

impl<X> Scheduler<X> {
    /// Plans `num_new` tokens, for which the table has room.
    pub(super) fn plan_rows(
        &mut self,
        rank: Rank,
        num_new: usize,
        plan: &mut StepPlan,
        kv: &mut KvCacheManager,
    ) {
        let first_row = plan.batch.num_tokens();
        let sequence = self.sequences.get_mut(&rank.sequence).expect("a running sequence is in the map");
        push_batch_rows(sequence, num_new, plan, self.limits.block_size);
        let start = sequence.num_computed_tokens;
        sequence.num_computed_tokens += num_new;
        let num_prompt_rows = sequence.num_prompt_tokens.saturating_sub(start).min(num_new);
        self.stats.num_prompt_tokens += num_prompt_rows as u64;
        let reaches_end = sequence.num_computed_tokens == sequence.num_tokens();
        self.plan_prompt_logprobs(rank, start, first_row, plan);
        if reaches_end && self.sequences[&rank.sequence].wants_output() {
            let row = plan.batch.num_tokens() as u32 - 1;
            if self.requests[&rank.request].carrier == Some(rank.sequence) {
                self.give_birth(rank, row, plan, kv);
            } else {
                self.plan_sample(rank.sequence, row, plan);
            }
        }
    }

    /// Rows of the prompt whose next token's logprob is wanted and has not been planned before.
    fn plan_prompt_logprobs(&mut self, rank: Rank, start: usize, first_row: usize, plan: &mut StepPlan) {
        let request = self.requests.get_mut(&rank.request).expect("a sequence has a request");
        let Some(num_logprobs) = request.prompt_logprobs else { return };
        let sequence = &self.sequences[&rank.sequence];
        // The row of position p predicts the token at p + 1.
        let end = sequence.num_computed_tokens.min(sequence.num_prompt_tokens - 1);
        for position in start.max(request.num_prompt_logprobs_planned)..end {
            plan.prompt_logprobs.push(PromptLogprobRow {
                row: (first_row + position - start) as u32,
                sequence: rank.sequence,
                target: sequence.tokens.tokens()[position + 1],
                num_logprobs,
            });
            request.num_prompt_logprobs_planned = position + 1;
        }
    }

    /// The prompt's last row is planned: every sample gets a sequence that shares the blocks, and chooses its first token
    /// from the same row.
    fn give_birth(&mut self, rank: Rank, row: u32, plan: &mut StepPlan, kv: &mut KvCacheManager) {
        let request = self.requests.get_mut(&rank.request).expect("a sequence has a request");
        for (sample_index, id) in request.give_birth() {
            let carrier = self.sequences.get_mut(&rank.sequence).expect("the carrier is in the map");
            if id == rank.sequence {
                carrier.sample_index = sample_index;
            } else {
                let table = kv.fork(&carrier.table);
                let sibling = carrier.sibling(id, sample_index, table);
                let place =
                    self.running.binary_search(&sibling.rank).expect_err("a newborn does not run yet");
                self.running.insert(place, sibling.rank);
                // Its first token is in flight; there is nothing to grant.
                self.grants.insert(place, 0);
                self.sequences.insert(id, sibling);
            }
            self.plan_sample(id, row, plan);
        }
    }

    fn plan_sample(&mut self, id: SequenceId, row: u32, plan: &mut StepPlan) {
        let sequence = self.sequences.get_mut(&id).expect("a sequence that samples is in the map");
        let request = self.requests.get_mut(&sequence.rank.request).expect("a sequence has a request");
        let stop = &request.stop;
        let may_not_stop = sequence.num_output_tokens() < stop.min_tokens as usize;
        let history = request.sampling.needs_history().then(|| TokenHistory {
            tokens: sequence.tokens.tokens().to_vec(),
            num_prompt_tokens: sequence.num_prompt_tokens as u32,
            last_in_flight: (sequence.num_tokens_in_flight > 0).then_some(sequence.last_sample),
        });
        let banned = if may_not_stop { &stop.stop_token_ids } else { &self.nothing_banned };
        let terms = MaskTerms {
            vocab_size: self.limits.vocab_size,
            banned: Arc::clone(banned),
            time_limit: self.limits.mask_time_limit,
        };
        let mask = request.constraints.lend(sequence.sample_index, terms);
        let banned = Arc::clone(if mask.is_some() { &self.nothing_banned } else { banned });
        sequence.last_sample = plan.samples.len() as u32;
        plan.samples.push(SampleRow {
            row,
            sequence: id,
            sample_index: sequence.sample_index,
            position: sequence.num_tokens() as u32,
            params: Arc::clone(&request.sampling),
            banned,
            mask,
            history,
        });
        sequence.num_tokens_in_flight += 1;
    }
}

impl Sequence {
    /// A sequence with the same past, the prompt, and its own future.
    fn sibling(&self, id: SequenceId, sample_index: u32, table: BlockTable) -> Self {
        Sequence {
            rank: self.rank.sibling(id),
            sample_index,
            tokens: self.tokens.clone(),
            num_prompt_tokens: self.num_prompt_tokens,
            max_num_tokens: self.max_num_tokens,
            is_constrained: self.is_constrained,
            num_tokens_in_flight: 0,
            last_sample: 0,
            num_computed_tokens: self.num_computed_tokens,
            num_committed_tokens: self.num_committed_tokens,
            table,
            num_preemptions: 0,
            admission: self.admission,
        }
    }
}

fn push_batch_rows(sequence: &Sequence, num_new: usize, plan: &mut StepPlan, block_size: usize) {
    let start = sequence.num_computed_tokens;
    let end = start + num_new;
    let batch = &mut plan.batch;
    let tokens = sequence.tokens.tokens();
    batch.input_ids.extend(tokens[start..end.min(tokens.len())].iter().map(|&token| InputId::Known(token)));
    if end > tokens.len() {
        // The one token in flight; everything before it is computed.
        assert!(start == tokens.len() && num_new == 1, "only the last token can be in flight");
        batch.input_ids.push(InputId::LastSampled(sequence.last_sample));
    }
    batch.positions.extend(start as u32..end as u32);
    batch.slot_mapping.extend((start..end).map(|position| sequence.table.slot(position, block_size)));
    batch.query_start_loc.push(batch.positions.len() as u32);
    batch.context_lens.push(end as u32);
    batch.block_tables.extend_from_slice(sequence.table.blocks());
    batch.block_table_starts.push(batch.block_tables.len() as u32);
    plan.sequences.push(ScheduledSequence {
        sequence: sequence.rank.sequence,
        num_computed_tokens: start as u32,
        num_scheduled_tokens: num_new as u32,
        num_tokens: sequence.num_tokens() as u32,
    });
}
