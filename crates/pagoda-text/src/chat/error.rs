//! Why a template could not be used.

use thiserror::Error;

/// What went wrong with a chat template or with rendering it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("chat template, line {line}: {reason}")]
    Syntax {
        /// Line in the template, counted from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// The template called `raise_exception`: it does not accept this conversation. The client can act on the message.
    #[error("the chat template refused the conversation: {message}")]
    Raised {
        /// The argument of `raise_exception`.
        message: String,
    },
    /// The template failed on this conversation.
    #[error("chat template, line {line}: {reason}")]
    Render {
        /// Line in the template, counted from 1; 0 where unknown.
        line: usize,
        /// What the engine said.
        reason: String,
    },
    /// A keyword argument takes the name of something that the conversation gives.
    #[error("chat template argument {name:?} is reserved")]
    ReservedArgument {
        /// The name.
        name: String,
    },
    /// The final message cannot be continued.
    #[error("the final message cannot be continued: {reason}")]
    ContinueFinalMessage {
        /// Why.
        reason: &'static str,
    },
    /// A cap was reached.
    #[error("the chat template exceeded its limit of {limit} {unit}")]
    LimitExceeded {
        /// The cap.
        limit: u64,
        /// What the cap counts.
        unit: &'static str,
    },
    /// The engine panicked; the template itself is intact.
    #[error("the chat template engine failed")]
    Panicked,
}
