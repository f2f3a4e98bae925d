//! Why a grammar could not be compiled or could not go on. No variant quotes the grammar or the text.

use std::time::Duration;

use thiserror::Error;

/// A schema that cannot be followed, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path}: {reason}")]
pub struct SchemaError {
    /// The place as a path from the root of the schema: `$.properties.age.maximum`.
    pub path: String,
    /// What is wrong there. Names keywords, never values.
    pub reason: String,
}

/// Why a source could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// The JSON schema cannot be followed.
    #[error("the JSON schema cannot be followed at {0}")]
    Schema(#[from] SchemaError),
    /// The regular expression, the choices or the Lark grammar cannot be read.
    #[error("the {what} cannot be compiled: {reason}")]
    Malformed {
        /// `regex`, `choice` or `grammar`.
        what: &'static str,
        /// What is wrong, without the text itself.
        reason: &'static str,
    },
    /// The source is larger than the limit.
    #[error("the {what} has {actual} {unit}, more than the limit of {limit}")]
    TooLarge {
        /// `schema`, `regex`, `choice` or `grammar`.
        what: &'static str,
        /// What is counted.
        unit: &'static str,
        /// How many there are.
        actual: usize,
        /// [`GrammarLimits`](super::GrammarLimits).
        limit: usize,
    },
    /// Compilation needs more than a limit on states or items allows.
    #[error("the {what} is too complex")]
    TooComplex {
        /// `schema`, `regex`, `choice` or `grammar`.
        what: &'static str,
    },
    /// Compilation did not end within the limit.
    #[error("the {what} took longer than {} ms to compile", limit.as_millis())]
    TimedOut {
        /// `schema`, `regex`, `choice` or `grammar`.
        what: &'static str,
        /// [`GrammarLimits::compile_time`](super::GrammarLimits::compile_time).
        limit: Duration,
    },
    /// Too many grammars are being compiled already.
    #[error("too many grammars are being compiled")]
    Busy,
    /// The library underneath panicked.
    #[error("the grammar compiler failed")]
    Panicked,
}

/// Why a matcher cannot go on. The matcher is of no use afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MatchError {
    /// The token does not follow the grammar.
    #[error("the token does not follow the grammar")]
    Rejected,
    /// No token of the vocabulary can continue the text.
    #[error("no token of the vocabulary continues the grammar")]
    DeadEnd,
    /// A step needs more than its limit of fuel.
    #[error("the grammar became too complex")]
    TooComplex,
    /// The library underneath panicked, now or in an earlier call.
    #[error("the grammar matcher failed")]
    Failed,
}
