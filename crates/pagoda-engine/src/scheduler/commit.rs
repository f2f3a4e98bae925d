//! Digesting a step: tokens become known, blocks become matchable, sequences end.

use super::Scheduler;
use super::request_state::Sample;
use crate::kv::{Disposal, KvCacheManager};
use crate::{
    EngineEvent, ExecutorError, FinishReason, RequestError, RequestEvent, RowError, SampledToken, SequenceId,
    StepOutput, StepPlan, TokenEvent,
};

impl<X> Scheduler<X> {
    /// Takes the results of the oldest launched step. Rows of sequences that have ended since are dropped.
    pub(crate) fn commit(&mut self, plan: StepPlan, output: StepOutput<X>, kv: &mut KvCacheManager) {
        assert_eq!(output.samples.len(), plan.samples.len(), "the executor answers every sample");
        assert_eq!(output.prompt_logprobs.len(), plan.prompt_logprobs.len(), "and every prompt logprob");
        kv.end_step(plan.step_id);
        for scheduled in &plan.sequences {
            if let Some(sequence) = self.sequences.get_mut(&scheduled.sequence) {
                let end = scheduled.num_computed_tokens + scheduled.num_scheduled_tokens;
                sequence.num_committed_tokens = end as usize;
            }
        }
        self.commit_prompt_logprobs(&plan, output.prompt_logprobs, kv);
        for (row, sampled) in plan.samples.iter().zip(output.samples) {
            if self.sequences.contains_key(&row.sequence) {
                match sampled {
                    Ok(sampled) => self.commit_token(row.sequence, row.position, sampled, kv),
                    Err(error) => {
                        let error = self.constraint_error(row.sequence).unwrap_or(error);
                        self.fail_sequence(row.sequence, error, kv);
                    }
                }
            }
        }
        for scheduled in &plan.sequences {
            self.commit_blocks(scheduled.sequence, kv);
        }
        self.spare_plans.push(plan);
    }

    /// The step failed: every request that has a part in it ends.
    pub(crate) fn fail_step(&mut self, plan: StepPlan, error: &ExecutorError, kv: &mut KvCacheManager) {
        kv.end_step(plan.step_id);
        self.stats.num_failed_steps += 1;
        let samples = plan.samples.iter().map(|row| row.sequence);
        for id in plan.sequences.iter().map(|scheduled| scheduled.sequence).chain(samples) {
            if let Some(sequence) = self.sequences.get(&id) {
                let request = sequence.rank.request;
                self.fail_request(request, RequestError::Executor(error.clone()), kv);
            }
        }
        self.spare_plans.push(plan);
    }

    /// Reports what was computed for each prompt; one failed row fails the sequence.
    fn commit_prompt_logprobs(
        &mut self,
        plan: &StepPlan,
        results: Vec<Result<X, RowError>>,
        kv: &mut KvCacheManager,
    ) {
        let mut results = results.into_iter();
        for rows in plan.prompt_logprobs.chunk_by(|a, b| a.sequence == b.sequence) {
            let id = rows[0].sequence;
            let logprobs: Result<Vec<X>, RowError> =
                results.by_ref().take(rows.len()).collect::<Vec<_>>().into_iter().collect();
            let Some(sequence) = self.sequences.get(&id) else { continue };
            let request = sequence.rank.request;
            match logprobs {
                Ok(logprobs) => {
                    self.events.push(EngineEvent::Request(request, RequestEvent::PromptLogprobs(logprobs)));
                }
                Err(error) => self.fail_request_rows(id, &error, kv),
            }
        }
    }

    /// A prompt row failed: every sequence that grows from the prompt fails.
    fn fail_request_rows(&mut self, id: SequenceId, error: &RowError, kv: &mut KvCacheManager) {
        let request = self.sequences[&id].rank.request;
        let live: Vec<_> = self.requests[&request].live_sequences().collect();
        for id in live {
            self.fail_sequence(id, error.clone(), kv);
        }
    }

    fn commit_token(
        &mut self,
        id: SequenceId,
        position: u32,
        sampled: SampledToken<X>,
        kv: &mut KvCacheManager,
    ) {
        let sequence = self.sequences.get_mut(&id).expect("the caller has looked the sequence up");
        assert_eq!(sequence.tokens.len(), position as usize, "{id} gets the token of another position");
        let sample_index = sequence.sample_index;
        let request = self.requests.get_mut(&sequence.rank.request).expect("a sequence has a request");
        let num_output_tokens = sequence.tokens.len() + 1 - sequence.num_prompt_tokens;
        let repetition = request.stop.repetition;
        let may_stop = num_output_tokens > request.stop.min_tokens as usize;
        let is_stop = may_stop && request.stop.stop_token_ids.contains(&sampled.token);
        let is_complete = match request.constraints.advance(sample_index, sampled.token, is_stop) {
            Ok(is_complete) => is_complete,
            Err(error) => return self.fail_sequence(id, error.into(), kv),
        };
        sequence.num_tokens_in_flight -= 1;
        // For a newborn sibling, whose prompt another sequence has computed.
        sequence.num_committed_tokens = position as usize;
        sequence.tokens.push(sampled.token);
        self.stats.num_output_tokens += 1;
        let finish = if is_stop {
            Some(FinishReason::Stop)
        } else if is_complete {
            Some(FinishReason::Complete)
        } else if sequence.tokens.len() >= sequence.max_num_tokens {
            Some(FinishReason::Length)
        } else {
            let output = &sequence.tokens.tokens()[sequence.num_prompt_tokens..];
            let is_repeating = may_stop && repetition.is_some_and(|rule| rule.matches(output));
            is_repeating.then_some(FinishReason::Repetition)
        };
        let event = TokenEvent { sample_index, token: sampled.token, extra: sampled.extra, finish };
        self.events.push(EngineEvent::Request(sequence.rank.request, RequestEvent::Token(event)));
        if finish.is_some() {
            self.end_sequence(id, Disposal::Reusable, kv);
        }
    }

    /// Why no token could be chosen, if it is the constraint's doing.
    fn constraint_error(&mut self, id: SequenceId) -> Option<RowError> {
        let sequence = &self.sequences[&id];
        let request = self.requests.get_mut(&sequence.rank.request).expect("a sequence has a request");
        request.constraints.take_error(sequence.sample_index).map(RowError::from)
    }

    /// A row of the sequence failed; what it computed is not to be shared.
    fn fail_sequence(&mut self, id: SequenceId, error: RowError, kv: &mut KvCacheManager) {
        let sequence = &self.sequences[&id];
        let (request, sample_index) = (sequence.rank.request, sequence.sample_index);
        for sample_index in self.samples_of(id, sample_index) {
            let event = RequestEvent::SequenceFailed { sample_index, error: error.clone() };
            self.events.push(EngineEvent::Request(request, event));
        }
        self.end_sequence(id, Disposal::Doubtful, kv);
    }

    /// Full blocks become matchable. A sequence of which only the prompt was wanted ends here.
    fn commit_blocks(&mut self, id: SequenceId, kv: &mut KvCacheManager) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        kv.commit(&mut sequence.table, &sequence.tokens, sequence.num_committed_tokens);
        let is_complete = sequence.num_committed_tokens == sequence.num_prompt_tokens;
        if is_complete && !sequence.wants_output() {
            let (request, sample_index) = (sequence.rank.request, sequence.sample_index);
            for sample_index in self.samples_of(id, sample_index) {
                let event = RequestEvent::Finished { sample_index, reason: FinishReason::Length };
                self.events.push(EngineEvent::Request(request, event));
            }
            self.end_sequence(id, Disposal::Reusable, kv);
        }
    }

    /// The samples that end with a sequence: its own, or all unborn ones if it is the carrier.
    fn samples_of(&self, id: SequenceId, sample_index: u32) -> Vec<u32> {
        let request = &self.requests[&self.sequences[&id].rank.request];
        if request.carrier != Some(id) {
            return vec![sample_index];
        }
        let samples = request.samples.iter().enumerate();
        samples.filter(|(_, sample)| **sample == Sample::Unborn).map(|(index, _)| index as u32).collect()
    }
}
