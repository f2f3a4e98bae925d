//! Grammars as the engine takes them: compiles what a request asks for, and hands each sequence a matcher.

use pagoda_engine::{ConstraintError, TokenConstraint, TokenId};
use pagoda_text::{Grammar, GrammarError, GrammarSource, MatchError, Matcher};

use crate::error::ApiError;
use crate::model::ServedModel;
use crate::submit::SubmitContext;

/// What the answer must be, and the field that says so.
#[derive(Clone, Debug)]
pub(crate) struct ConstraintSpec {
    pub(crate) source: GrammarSource,
    /// The field to blame; paths within a schema are appended to it.
    pub(crate) param: String,
}

/// Compiles a constraint for answers of at most `room` tokens. Blocks for as long as that takes: not for the reactor.
pub(crate) fn compile(
    spec: &ConstraintSpec,
    model: &ServedModel,
    room: usize,
    context: SubmitContext,
) -> Result<Grammar, ApiError> {
    let Some(compiler) = &model.grammars else {
        return Err(ApiError::unsupported(&*spec.param, "this model's vocabulary cannot follow a grammar"));
    };
    let bounds = compiler.bounds_within(room);
    compiler.compile_within(&spec.source, &bounds).map_err(|error| match error {
        GrammarError::Schema(error) => {
            let path = error.path.strip_prefix('$').unwrap_or(&error.path);
            ApiError::invalid(format!("{}{path}", spec.param), error.reason)
        }
        GrammarError::Busy => ApiError::QueueFull { retry_after: context.retry_after },
        error => ApiError::invalid(&*spec.param, format_args!("cannot be followed: {error}")),
    })
}

/// A matcher as the engine drives it.
struct GrammarConstraint(Matcher);

/// The constraint of a new sequence.
pub(crate) fn constraint(grammar: &Grammar) -> Box<dyn TokenConstraint> {
    Box::new(GrammarConstraint(grammar.matcher()))
}

impl TokenConstraint for GrammarConstraint {
    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        self.0.advance(token).map_err(failed)
    }

    fn fill_mask(&mut self, bits: &mut [u32]) -> Result<(), ConstraintError> {
        self.0.fill_mask(bits).map_err(failed)
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(GrammarConstraint(self.0.clone()))
    }

    fn is_complete(&self) -> bool {
        self.0.is_complete()
    }
}

fn failed(error: MatchError) -> ConstraintError {
    let message = match error {
        MatchError::Rejected => "the token does not follow the grammar",
        MatchError::DeadEnd => "no token of the vocabulary continues the grammar",
        MatchError::TooComplex => "the grammar became too complex",
        _ => "the grammar matcher failed",
    };
    ConstraintError { message }
}
