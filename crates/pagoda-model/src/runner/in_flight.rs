//! Steps that have been launched and not yet waited for: what of their choices is on its way, and what has arrived early.

use std::collections::VecDeque;

use pagoda_backend::{Backend, BackendError, Sampled};
use pagoda_engine::{ExecutorError, RowError, SampledToken, StepOutput, TokenLogprobs};

use super::StepError;

type Output = StepOutput<Option<TokenLogprobs>>;

/// A launched step.
#[derive(Debug)]
pub struct StepTicket(u64);

/// Oldest first.
pub(super) struct StepsInFlight<B: Backend> {
    steps: VecDeque<Step<B>>,
    num_launched: u64,
}

struct Step<B: Backend> {
    id: u64,
    num_samples: usize,
    progress: Progress<B>,
}

enum Progress<B: Backend> {
    /// One entry per slice of logits, in order.
    Pending(Vec<B::Pending>),
    /// Read before it was waited for.
    Done(Result<Output, ExecutorError>),
}

impl<B: Backend> Default for StepsInFlight<B> {
    fn default() -> Self {
        StepsInFlight { steps: VecDeque::new(), num_launched: 0 }
    }
}

impl<B: Backend> StepsInFlight<B> {
    /// Takes a step whose first `num_samples` choices answer `StepPlan::samples`; the rest are prompt logprobs.
    pub(super) fn push(&mut self, pending: Vec<B::Pending>, num_samples: usize) -> StepTicket {
        let id = self.num_launched;
        self.num_launched += 1;
        self.steps.push_back(Step { id, num_samples, progress: Progress::Pending(pending) });
        StepTicket(id)
    }

    /// Samples of the newest step in flight, whose tokens the next step may name.
    pub(super) fn num_last_samples(&self) -> usize {
        self.steps.back().map_or(0, |step| step.num_samples)
    }

    /// The tokens of the newest step in flight; waits for them. A row that failed counts as token 0: the step after it runs for
    /// nothing.
    pub(super) fn last_tokens(&mut self, backend: &mut B) -> Result<Vec<u32>, StepError> {
        let Some(step) = self.steps.back_mut() else { return Ok(Vec::new()) };
        match step.read(backend) {
            Ok(output) => {
                Ok(output.samples.iter().map(|sample| sample.as_ref().map_or(0, |s| s.token)).collect())
            }
            Err(error) => Err(StepError::StepBefore(error.clone())),
        }
    }

    /// Waits for a step.
    pub(super) fn finish(&mut self, ticket: StepTicket, backend: &mut B) -> Result<Output, ExecutorError> {
        let mut step = self.steps.pop_front().expect("a ticket is waited for once");
        assert_eq!(step.id, ticket.0, "steps are waited for in their order");
        // Read first, so that what is taken out is there.
        let _ = step.read(backend);
        match step.progress {
            Progress::Done(result) => result,
            Progress::Pending(_) => unreachable!("it was just read"),
        }
    }
}

impl<B: Backend> Step<B> {
    fn read(&mut self, backend: &mut B) -> Result<&Output, &ExecutorError> {
        if let Progress::Pending(pending) = &mut self.progress {
            let output = read_all(std::mem::take(pending), self.num_samples, backend);
            self.progress = Progress::Done(output.map_err(|error| StepError::from(error).into()));
        }
        match &self.progress {
            Progress::Done(result) => result.as_ref(),
            Progress::Pending(_) => unreachable!("it was just read"),
        }
    }
}

fn read_all<B: Backend>(
    pending: Vec<B::Pending>,
    num_samples: usize,
    backend: &mut B,
) -> Result<Output, BackendError> {
    let mut output = StepOutput { samples: Vec::with_capacity(num_samples), prompt_logprobs: Vec::new() };
    for pending in pending {
        for chosen in backend.read_back(pending)? {
            let chosen = chosen.map(into_token).map_err(|error| RowError { message: error.to_string() });
            if output.samples.len() < num_samples {
                output.samples.push(chosen);
            } else {
                output.prompt_logprobs.push(chosen.map(|chosen| chosen.extra));
            }
        }
    }
    Ok(output)
}

/// A rank of 0 means that no logprobs were asked for.
fn into_token(chosen: Sampled) -> SampledToken<Option<TokenLogprobs>> {
    let Sampled { token, logprob, top, rank } = chosen;
    SampledToken { token, extra: (rank > 0).then_some(TokenLogprobs { logprob, rank, top }) }
}
