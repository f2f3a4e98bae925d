//! The door to the device: the engine launches a plan and waits for its tokens. Knows no model and no float.

use crate::{ConstraintError, StepPlan, TokenId};

/// Runs step plans. Production implementation: `pagoda-model`'s `ModelRunner`; tests use a token memory.
pub trait Executor: Send {
    /// A launched step.
    type Ticket: Send;
    /// What comes with each token (logprobs, pooled vectors). The engine passes it on unopened.
    type Extra: Send + 'static;

    /// Starts a step. Steps run in launch order; at pipeline depth 2 the next step is launched before the previous one
    /// has been waited for.
    fn launch(&mut self, plan: &StepPlan) -> Result<Self::Ticket, ExecutorError>;

    /// Blocks until the step has ended and hands over its results.
    fn wait(&mut self, ticket: Self::Ticket) -> Result<StepOutput<Self::Extra>, ExecutorError>;
}

/// The results of one step, in the order of the plan's rows.
#[derive(Debug)]
pub struct StepOutput<X> {
    /// One entry per entry of `StepPlan::samples`.
    pub samples: Vec<Result<SampledToken<X>, RowError>>,
    /// One entry per entry of `StepPlan::prompt_logprobs`.
    pub prompt_logprobs: Vec<Result<X, RowError>>,
}

/// One chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken<X> {
    /// The choice.
    pub token: TokenId,
    /// Its payload.
    pub extra: X,
}

/// One row failed; the others are fine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RowError {
    /// What went wrong, without any text of the request.
    pub message: String,
}

impl From<ConstraintError> for RowError {
    fn from(error: ConstraintError) -> Self {
        RowError { message: error.message.to_owned() }
    }
}

/// A whole step failed. Its sequences end with an error; the engine lives on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model step failed: {message}")]
pub struct ExecutorError {
    /// What went wrong, without any text of the requests.
    pub message: String,
    /// The device cannot run another step; the engine shuts down.
    pub is_fatal: bool,
}
