//! An executor that keeps the plans it passes on, so that a test can say what really happened to a request in its run: the
//! engine reports preemptions in all, not whose they were.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use pagoda_engine::{Executor, ExecutorError, SamplingParams, SequenceId, StepOutput, StepPlan};

/// Passes on every call.
pub(crate) struct Witness<E> {
    executor: E,
    testimony: Arc<Mutex<Testimony>>,
}

/// What was seen.
#[derive(Default)]
pub(crate) struct Testimony {
    steps: Vec<Vec<Share>>,
    /// By the first sample of each sequence. The parameters identify the request: every request has its own.
    owners: HashMap<SequenceId, Arc<SamplingParams>>,
}

/// One sequence's share of a step.
struct Share {
    sequence: SequenceId,
    num_computed_tokens: u32,
    num_scheduled_tokens: u32,
}

/// What happened to the sequences of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// How often one of them came back with less KV than it had had: it was preempted and computed again. One that finds all its
    /// KV in the prefix cache is not counted.
    pub(crate) num_resumptions: u64,
    /// Those of them that came after the sequence's first token.
    pub(crate) num_resumptions_midway: u64,
    /// Steps that computed a part of the prompt and left the rest to a later one.
    pub(crate) num_chunks: u64,
    /// Steps that computed tokens of other requests too.
    pub(crate) num_shared_steps: u64,
}

impl<E> Witness<E> {
    pub(crate) fn new(executor: E) -> (Self, Arc<Mutex<Testimony>>) {
        let testimony = Arc::<Mutex<Testimony>>::default();
        (Witness { executor, testimony: Arc::clone(&testimony) }, testimony)
    }
}

impl<E: Executor> Executor for Witness<E> {
    type Ticket = E::Ticket;
    type Extra = E::Extra;

    fn launch(&mut self, plan: &StepPlan) -> Result<Self::Ticket, ExecutorError> {
        self.testimony.lock().expect("no holder panics").look_at(plan);
        self.executor.launch(plan)
    }

    fn wait(&mut self, ticket: Self::Ticket) -> Result<StepOutput<Self::Extra>, ExecutorError> {
        self.executor.wait(ticket)
    }
}

impl Testimony {
    fn look_at(&mut self, plan: &StepPlan) {
        let shares = plan.sequences.iter().map(|scheduled| Share {
            sequence: scheduled.sequence,
            num_computed_tokens: scheduled.num_computed_tokens,
            num_scheduled_tokens: scheduled.num_scheduled_tokens,
        });
        self.steps.push(shares.collect());
        for sample in &plan.samples {
            self.owners.entry(sample.sequence).or_insert_with(|| Arc::clone(&sample.params));
        }
    }

    /// What happened to the request with these parameters and a prompt of `prompt_len` tokens.
    pub(crate) fn of(&self, params: &Arc<SamplingParams>, prompt_len: usize) -> Seen {
        let is_own =
            |share: &Share| self.owners.get(&share.sequence).is_some_and(|owner| Arc::ptr_eq(owner, params));
        let mut seen = Seen::default();
        let mut reached = HashMap::new();
        for step in &self.steps {
            for share in step.iter().filter(|share| is_own(share)) {
                let end = share.num_computed_tokens + share.num_scheduled_tokens;
                let before = reached.insert(share.sequence, end).unwrap_or(0);
                if share.num_computed_tokens < before {
                    seen.num_resumptions += 1;
                    seen.num_resumptions_midway += u64::from(before as usize >= prompt_len);
                }
                seen.num_chunks += u64::from((end as usize) < prompt_len);
            }
            let num_own = step.iter().filter(|share| is_own(share)).count();
            seen.num_shared_steps += u64::from(num_own > 0 && num_own < step.len());
        }
        seen
    }
}
