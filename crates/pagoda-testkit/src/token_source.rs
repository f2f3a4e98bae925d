//! How a fake executor chooses the next token.

use pagoda_engine::{RowError, SampleRow, TokenId};

use crate::random::mix;

/// What a choice may depend on.
#[derive(Clone, Copy, Debug)]
pub struct SampleContext<'a> {
    /// The sequence so far, read back through its block table.
    pub tokens: &'a [TokenId],
    /// The plan's row.
    pub row: &'a SampleRow,
    /// Output tokens that the sequence has already.
    pub num_output_tokens: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
}

/// Chooses tokens.
pub trait TokenSource: Send {
    /// The next token of a sequence. An error ends the sequence, as a row of NaN does.
    fn choose(&mut self, context: SampleContext<'_>) -> Result<TokenId, RowError>;

    /// The chosen token may not be chosen. `Ok` leaves it to the executor, which takes the next one that may.
    fn forbidden(&mut self, _chosen: TokenId, _context: SampleContext<'_>) -> Result<(), RowError> {
        Ok(())
    }
}

impl<F: FnMut(SampleContext<'_>) -> TokenId + Send> TokenSource for F {
    fn choose(&mut self, context: SampleContext<'_>) -> Result<TokenId, RowError> {
        Ok(self(context))
    }
}

/// The next token is a hash of the whole sequence, the request's seed and the sample index: a wrong token anywhere in the
/// past changes the future.
#[derive(Clone, Copy, Debug, Default)]
pub struct HashSource;

impl TokenSource for HashSource {
    fn choose(&mut self, context: SampleContext<'_>) -> Result<TokenId, RowError> {
        Ok(hash_token(context.tokens, context.row.params.seed, context.row.sample_index, context.vocab_size))
    }
}

/// What [`HashSource`] chooses.
pub fn hash_token(tokens: &[TokenId], seed: u64, sample_index: u32, vocab_size: u32) -> TokenId {
    let start = mix(seed ^ (u64::from(sample_index) << 32));
    let hash = tokens
        .iter()
        .fold(start, |hash, &token| mix(hash.wrapping_mul(31).wrapping_add(u64::from(token) + 1)));
    (hash % u64::from(vocab_size)) as TokenId
}

/// Every sequence says the same tokens one after the other, and then the last one for ever.
#[derive(Clone, Debug)]
pub struct ScriptSource(pub Vec<TokenId>);

impl TokenSource for ScriptSource {
    fn choose(&mut self, context: SampleContext<'_>) -> Result<TokenId, RowError> {
        let last = self.0.len().checked_sub(1).expect("a script has at least one token");
        Ok(self.0[context.num_output_tokens.min(last)])
    }
}

/// Counts up: the next token is the last one plus one. For timelines that are read by people.
#[derive(Clone, Copy, Debug, Default)]
pub struct SuccessorSource;

impl TokenSource for SuccessorSource {
    fn choose(&mut self, context: SampleContext<'_>) -> Result<TokenId, RowError> {
        let last = context.tokens.last().expect("a sequence that samples has tokens");
        Ok((last + 1 + 10 * context.row.sample_index * u32::from(context.num_output_tokens == 0))
            % context.vocab_size)
    }
}
