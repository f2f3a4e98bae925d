//! A token source that plays a model by the reply: when a sequence starts it is given its whole output, which it then says
//! token by token. A token that may not be chosen fails the sequence, so that a script that breaks a grammar is noticed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pagoda_engine::{RowError, SequenceId, TokenId};

use crate::{SampleContext, TokenSource};

/// What went wrong in a script, in order. Clones share it: the test keeps one while the engine's thread owns the source.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<String>>>);

impl Faults {
    /// All faults since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fail(&self, what: String) -> RowError {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        RowError { message: "the script does not fit the request".into() }
    }
}

/// Says the replies of `R`, which is asked once for each sequence, at its first token.
pub struct ReplySource<R> {
    reply_to: R,
    /// What each sequence is saying. After the last token it is said for ever (an end-of-text token, say).
    replies: HashMap<SequenceId, Vec<TokenId>>,
    faults: Faults,
}

impl<R> ReplySource<R>
where
    R: FnMut(SampleContext<'_>) -> Result<Vec<TokenId>, String> + Send,
{
    /// The closure gets the prompt as `context.tokens` and answers with at least one token, or says why it has none.
    pub fn new(reply_to: R) -> Self {
        ReplySource { reply_to, replies: HashMap::new(), faults: Faults::default() }
    }

    /// Where the script's faults are collected.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

impl<R> TokenSource for ReplySource<R>
where
    R: FnMut(SampleContext<'_>) -> Result<Vec<TokenId>, String> + Send,
{
    fn choose(&mut self, context: SampleContext<'_>) -> Result<TokenId, RowError> {
        let sequence = context.row.sequence;
        if context.num_output_tokens == 0 {
            let reply = (self.reply_to)(context).map_err(|what| self.faults.fail(what))?;
            self.replies.insert(sequence, reply);
        }
        let reply = &self.replies[&sequence];
        let last = reply.len().checked_sub(1).ok_or_else(|| self.faults.fail("an empty reply".into()))?;
        Ok(reply[context.num_output_tokens.min(last)])
    }

    fn forbidden(&mut self, chosen: TokenId, context: SampleContext<'_>) -> Result<(), RowError> {
        let reply = &self.replies[&context.row.sequence];
        let position = context.num_output_tokens;
        Err(self.faults.fail(format!("token {chosen}, number {position} of {reply:?}, may not be chosen")))
    }
}
