//! What a client's stream receives from the engine.

use crate::{PrefixReport, RowError, TokenId};

/// One message on a request's stream. `X` is the executor's payload.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestEvent<X> {
    /// The request's first tokens were planned. Sent once, before anything else.
    Scheduled {
        /// Prompt tokens served from the prefix cache, and why no more.
        prefix: PrefixReport,
    },
    /// Logprobs of the next prompt positions, in order, from position 1 on.
    PromptLogprobs(Vec<X>),
    /// A token of one of the request's sequences.
    Token(TokenEvent<X>),
    /// A sequence ended without a further token (max_tokens 0).
    Finished {
        /// Which of the n sequences.
        sample_index: u32,
        /// Why.
        reason: FinishReason,
    },
    /// A sequence failed; the others go on.
    SequenceFailed {
        /// Which of the n sequences.
        sample_index: u32,
        /// What went wrong.
        error: RowError,
    },
    /// The whole request failed. Nothing follows.
    Failed(RequestError),
}

/// One new token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent<X> {
    /// Which of the n sequences.
    pub sample_index: u32,
    /// The token, the stop token included.
    pub token: TokenId,
    /// The executor's payload.
    pub extra: X,
    /// Present on the sequence's last token.
    pub finish: Option<FinishReason>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// One of its stop tokens was chosen (the event's token).
    Stop,
    /// The value that its constraint asks for has ended with the event's token.
    Complete,
    /// `max_tokens` or the context window was reached.
    Length,
    /// The output ended in repetitions ([`crate::RepetitionRule`]).
    Repetition,
}

/// Why a request was given up after it had been accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The executor failed in a step of this request.
    #[error("{0}")]
    Executor(#[from] crate::ExecutorError),
    /// The engine stopped (a broken invariant, a lost device, or the end of the drain).
    #[error("the engine has stopped")]
    EngineStopped,
}
