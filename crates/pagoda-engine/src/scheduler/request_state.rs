//! What the sequences of one request have in common: how to sample, when to stop, which of them are left.

use std::sync::Arc;

use super::constraints::Constraints;
use crate::{Request, SamplingParams, SequenceId, StopCriteria};

/// Where one of a request's n sequences stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sample {
    /// Waits for the prompt, which one sequence computes for all.
    Unborn,
    /// Grows.
    Live(SequenceId),
    /// Finished, failed or given up.
    Ended,
}

/// A request.
pub(super) struct RequestState {
    pub(super) sampling: Arc<SamplingParams>,
    pub(super) stop: StopCriteria,
    pub(super) prompt_logprobs: Option<u32>,
    pub(super) constraints: Constraints,
    /// The sequence that computes the prompt; `None` once it is computed and every sample has its own sequence.
    pub(super) carrier: Option<SequenceId>,
    /// `[num_sequences]`
    pub(super) samples: Vec<Sample>,
    /// The id of sample `i` if it is not the carrier's: siblings have consecutive ids.
    first_sequence: SequenceId,
    /// Whether the client knows that its request runs.
    pub(super) is_announced: bool,
    /// Prompt positions whose logprob has been planned, from position 1 on; a preempted prompt is not reported twice.
    pub(super) num_prompt_logprobs_planned: usize,
    pub(super) num_prompt_tokens: usize,
}

impl RequestState {
    pub(super) fn new(request: Request, carrier: SequenceId, num_prompt_tokens: usize) -> Self {
        RequestState {
            sampling: request.sampling,
            stop: request.stop,
            prompt_logprobs: request.prompt_logprobs,
            constraints: Constraints::new(request.constraint, request.num_sequences),
            carrier: Some(carrier),
            samples: vec![Sample::Unborn; request.num_sequences as usize],
            first_sequence: carrier,
            is_announced: false,
            num_prompt_logprobs_planned: 0,
            num_prompt_tokens,
        }
    }

    /// Seats that a sequence of this request takes: the carrier holds those of the unborn, so that all are admitted at
    /// once or not at all.
    pub(super) fn num_seats(&self, sequence: SequenceId) -> usize {
        if self.carrier == Some(sequence) { self.num_unborn() } else { 1 }
    }

    pub(super) fn num_unborn(&self) -> usize {
        self.samples.iter().filter(|&&sample| sample == Sample::Unborn).count()
    }

    /// Whether the prefix cache may serve the prompt: not if every position must be computed.
    pub(super) fn may_match(&self) -> bool {
        self.prompt_logprobs.is_none()
    }

    /// The prompt is computed: each unborn sample gets its sequence, the first one the carrier. Returns them in order.
    pub(super) fn give_birth(&mut self) -> Vec<(u32, SequenceId)> {
        let mut carrier = self.carrier.take();
        assert!(carrier.is_some(), "a request's samples are born once");
        let mut born = Vec::new();
        for (index, sample) in self.samples.iter_mut().enumerate() {
            if *sample == Sample::Unborn {
                // The carrier has the first id and the first birth, so that the ids of the later ones are free.
                let sequence = carrier.take().unwrap_or(SequenceId(self.first_sequence.0 + index as u64));
                *sample = Sample::Live(sequence);
                born.push((index as u32, sequence));
            }
        }
        self.constraints.give_birth(born.iter().map(|&(sample_index, _)| sample_index));
        born
    }

    /// Marks the samples of a sequence as ended: one, or all unborn ones if it is the carrier.
    pub(super) fn end_sample_of(&mut self, sequence: SequenceId) {
        let ended = if self.carrier == Some(sequence) { Sample::Unborn } else { Sample::Live(sequence) };
        self.samples.iter_mut().filter(|sample| **sample == ended).for_each(|sample| *sample = Sample::Ended);
        if ended == Sample::Unborn {
            self.carrier = None;
        }
    }

    /// Sequences that exist.
    pub(super) fn live_sequences(&self) -> impl Iterator<Item = SequenceId> + '_ {
        let live = self.samples.iter().filter_map(|sample| match sample {
            Sample::Live(sequence) => Some(*sequence),
            Sample::Unborn | Sample::Ended => None,
        });
        self.carrier.into_iter().chain(live)
    }

    pub(super) fn is_ended(&self) -> bool {
        self.samples.iter().all(|&sample| sample == Sample::Ended)
    }
}
