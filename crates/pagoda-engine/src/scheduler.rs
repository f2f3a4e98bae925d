//! Who runs next. Owns the sequences and their order; writes step plans and digests their results. Deterministic: no
//! clock, no randomness, no device.

mod admit;
mod check;
mod commit;
mod constraints;
mod plan_rows;
mod rank;
mod request_state;
mod schedule;
mod sequence;

use std::collections::BTreeSet;

use crate::ids::IdMap;
use crate::kv::{Disposal, HashedTokens, KvCacheManager};
use crate::{
    EngineConfig, EngineEvent, EngineStats, Request, RequestError, RequestEvent, RequestId, SequenceId,
    StepPlan, TokenId,
};
use rank::Rank;
use request_state::{RequestState, Sample};
use sequence::Sequence;

/// The scheduler.
///
/// - One token budget per step. Every running sequence wants `num_tokens - num_computed_tokens` tokens; those that want
///   one (decoding) come first, the rest goes to the others in the order of their admission. There is no prefill mode.
/// - Admission takes the best-ranked waiting sequence, if its whole prompt fits beside what the running sequences still
///   need for theirs, plus a watermark. Nobody is skipped, so that a large prompt does not starve.
/// - Out of blocks, the worst-ranked running sequence is preempted: its blocks are taken back, its tokens stay, and it is
///   computed again later (mostly from the prefix cache).
///
/// # Laws (1 to 9 are the block manager's)
///
/// 10. At least one prompt token is always computed; a request with prompt logprobs matches nothing.
/// 11. Every step with runnable work schedules at least one token; some sequence gets an output token within
///     `ceil(longest prompt / budget) + 64` steps; after `max_preemptions` preemptions a sequence is no victim any more.
pub(crate) struct Scheduler<X> {
    limits: BatchLimits,
    requests: IdMap<RequestId, RequestState>,
    sequences: IdMap<SequenceId, Sequence>,
    /// Sequences without blocks, best first.
    waiting: BTreeSet<Rank>,
    /// Sequences with blocks, best first.
    running: Vec<Rank>,
    /// `[running]` tokens granted to each in the step that is being planned; kept to reuse its memory.
    grants: Vec<usize>,
    next_step_id: u64,
    next_sequence_id: u64,
    num_admissions: u64,
    /// Whether a running sequence has blocks set aside; kept while a step is planned.
    has_protected: bool,
    /// A sequence found no block while steps are in flight: they must end before anything else is planned.
    is_stalled: bool,
    /// Committed plans whose memory is used again.
    spare_plans: Vec<StepPlan>,
    nothing_banned: std::sync::Arc<[TokenId]>,
    events: Vec<EngineEvent<X>>,
    stats: EngineStats,
}

/// The sizes the scheduler works with.
#[derive(Clone, Copy, Debug)]
struct BatchLimits {
    block_size: usize,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    max_model_len: usize,
    watermark_blocks: usize,
    aging_steps: u64,
    max_preemptions: u32,
    vocab_size: usize,
    mask_time_limit: std::time::Duration,
}

impl<X> Scheduler<X> {
    /// A scheduler without requests.
    pub(crate) fn new(config: &EngineConfig) -> Self {
        Scheduler {
            limits: BatchLimits {
                block_size: config.block_size,
                max_num_seqs: config.max_num_seqs,
                max_num_batched_tokens: config.max_num_batched_tokens,
                max_model_len: config.max_model_len,
                watermark_blocks: config.watermark_blocks,
                aging_steps: config.aging_steps,
                max_preemptions: config.max_preemptions,
                vocab_size: config.vocab_size,
                mask_time_limit: config.mask_time_limit,
            },
            requests: IdMap::default(),
            sequences: IdMap::default(),
            waiting: BTreeSet::new(),
            running: Vec::new(),
            grants: Vec::new(),
            next_step_id: 0,
            next_sequence_id: 0,
            num_admissions: 0,
            has_protected: false,
            is_stalled: false,
            spare_plans: Vec::new(),
            nothing_banned: std::sync::Arc::new([]),
            events: Vec::new(),
            stats: EngineStats::default(),
        }
    }

    /// Takes a request that respects the limits. Its first sequence waits; the others are born when the prompt is
    /// computed.
    pub(crate) fn add_request(&mut self, id: RequestId, mut request: Request) {
        let tokens = HashedTokens::new(
            std::mem::take(&mut request.prompt),
            &request.cache_salt,
            self.limits.block_size,
        );
        let first = SequenceId(self.next_sequence_id);
        // Siblings have consecutive ids, so that equal ranks keep them together.
        self.next_sequence_id += u64::from(request.num_sequences);
        let rank = Rank::new(request.priority, self.next_step_id, self.limits.aging_steps, id, first);
        let sequence = Sequence::new(rank, tokens, &request, self.limits.max_model_len);
        let state = RequestState::new(request, first, sequence.num_prompt_tokens);
        self.sequences.insert(first, sequence);
        self.waiting.insert(rank);
        let previous = self.requests.insert(id, state);
        assert!(previous.is_none(), "request {id} exists already");
    }

    /// Ends a request on the client's wish. Unknown ids are ignored: the request may have ended by itself.
    pub(crate) fn abort(&mut self, id: RequestId, kv: &mut KvCacheManager) {
        if self.requests.contains_key(&id) {
            self.stats.num_aborted_requests += 1;
            self.end_request(id, Disposal::Reusable, kv);
        }
    }

    /// Ends one sequence on the client's wish; the last one ends the request.
    pub(crate) fn finish_sequence(&mut self, id: RequestId, sample_index: u32, kv: &mut KvCacheManager) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        match request.samples.get(sample_index as usize) {
            Some(&Sample::Live(sequence)) => self.end_sequence(sequence, Disposal::Reusable, kv),
            Some(Sample::Unborn) => {
                request.samples[sample_index as usize] = Sample::Ended;
                if request.is_ended() {
                    self.end_request(id, Disposal::Reusable, kv);
                }
            }
            Some(Sample::Ended) | None => {}
        }
    }

    /// Ends a request with an error.
    pub(crate) fn fail_request(&mut self, id: RequestId, error: RequestError, kv: &mut KvCacheManager) {
        if self.requests.contains_key(&id) {
            self.events.push(EngineEvent::Request(id, RequestEvent::Failed(error)));
            self.end_request(id, Disposal::Doubtful, kv);
        }
    }

    /// Ends every request with an error.
    pub(crate) fn fail_all(&mut self, error: &RequestError, kv: &mut KvCacheManager) {
        let mut ids: Vec<_> = self.requests.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.fail_request(id, error.clone(), kv);
        }
    }

    /// Whether there is no request.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether the steps in flight must end before the next one is planned.
    pub(crate) fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Steps planned so far.
    pub(crate) fn num_steps(&self) -> u64 {
        self.next_step_id
    }

    /// Sequences with blocks, and without.
    pub(crate) fn num_sequences(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<EngineEvent<X>> {
        std::mem::take(&mut self.events)
    }

    /// The counters, and the gauges that the scheduler knows.
    pub(crate) fn stats(&self) -> EngineStats {
        // Siblings stand together in the order of ranks.
        let num_running = self.running.chunk_by(|a, b| a.request == b.request).count() as u64;
        EngineStats {
            num_requests_running: num_running,
            num_requests_waiting: (self.requests.len() as u64).saturating_sub(num_running),
            ..self.stats
        }
    }

    /// Ends every sequence of a request, the unborn ones included.
    fn end_request(&mut self, id: RequestId, disposal: Disposal, kv: &mut KvCacheManager) {
        let request = self.requests.remove(&id).expect("the caller has looked the request up");
        for sequence in request.live_sequences() {
            self.remove_sequence(sequence, disposal, kv);
        }
        self.events.push(EngineEvent::Ended(id));
    }

    /// Ends one sequence, and its request with the last one.
    fn end_sequence(&mut self, id: SequenceId, disposal: Disposal, kv: &mut KvCacheManager) {
        let request_id = self.sequences[&id].rank.request;
        let request = self.requests.get_mut(&request_id).expect("a sequence has a request");
        request.end_sample_of(id);
        self.remove_sequence(id, disposal, kv);
        let request = self.requests.get_mut(&request_id).expect("a sequence has a request");
        if request.is_ended() {
            self.end_request(request_id, disposal, kv);
        }
    }

    fn remove_sequence(&mut self, id: SequenceId, disposal: Disposal, kv: &mut KvCacheManager) {
        let mut sequence = self.sequences.remove(&id).expect("a live sequence is in the map");
        if !self.waiting.remove(&sequence.rank) {
            self.stop_running(sequence.rank);
        }
        kv.free(&mut sequence.table, &sequence.tokens, sequence.num_committed_tokens, disposal);
    }

    fn stop_running(&mut self, rank: Rank) {
        let place = self.running.binary_search(&rank).expect("a sequence either waits or runs");
        self.running.remove(place);
    }
}
