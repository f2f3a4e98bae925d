//! Where one sequence stands in its grammar.

use llguidance::TokenParser;
use llguidance::api::StopReason;

use super::error::MatchError;
use crate::guard::guarded;

/// Memory of one item of the parser, with the room that its list grows by.
const ITEM_BYTES: usize = 16;

/// What one sequence may grow to.
#[derive(Clone, Copy)]
pub(super) struct StepLimits {
    /// [`GrammarLimits::max_sequence_bytes`](super::GrammarLimits::max_sequence_bytes)
    pub(super) max_bytes: usize,
    /// Most items of the parser at one place of the text.
    pub(super) max_row_items: usize,
}

/// The state of one sequence in a grammar. Cloning copies everything, the lexer's states too: two matchers never wait for
/// each other, and what one computes, exhausts or breaks never touches another.
pub struct Matcher {
    parser: TokenParser,
    eos_ids: Vec<u32>,
    limits: StepLimits,
    /// At most this many items of the parser are kept for the text so far.
    num_items: usize,
    /// The error that ended this matcher.
    failed: Option<MatchError>,
}

impl Matcher {
    pub(super) fn new(parser: TokenParser, limits: StepLimits) -> Self {
        let eos_ids = parser.token_env.tok_trie().eos_tokens().to_vec();
        Self { parser, eos_ids, limits, num_items: 0, failed: None }
    }

    /// An estimate of the memory that belongs to this sequence alone, in bytes.
    pub fn num_bytes(&self) -> usize {
        self.parser.parser.lexer_stats().num_bytes + ITEM_BYTES * self.num_items
    }

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// [`MatchError`]; every later call gives the same.
    pub fn advance(&mut self, id: u32) -> Result<(), MatchError> {
        if self.is_complete() && self.eos_ids.contains(&id) {
            return Ok(());
        }
        let before = self.parser.parser.stats().clone();
        self.attempt(|parser| {
            match parser.consume_token(id) {
                Ok(0) => {}
                Ok(_) => return Err(MatchError::Failed),
                Err(_) => return Err(reason(parser, MatchError::Rejected)),
            }
            parser.check_stop().map(drop).map_err(|_| reason(parser, MatchError::Failed))
        })?;
        let added = self.parser.parser.stats().delta(&before);
        self.num_items += added.all_items;
        if added.all_items > self.limits.max_row_items * added.rows {
            self.failed = Some(MatchError::TooComplex);
        }
        self.failed.map_or(Ok(()), Err)
    }

    /// Sets the bit of each id that may come next and clears every other: bit `i % 32` of `bits[i / 32]`. Words beyond the
    /// vocabulary are cleared. Of a complete value only the ids that end an answer may follow.
    ///
    /// # Errors
    /// [`MatchError`]; every later call gives the same.
    pub fn fill_mask(&mut self, bits: &mut [u32]) -> Result<(), MatchError> {
        let complete = self.is_complete();
        let mask = self.attempt(|parser| {
            if complete {
                return Ok(parser.token_env.tok_trie().eos_token_set());
            }
            parser.compute_mask().map_err(|_| reason(parser, MatchError::DeadEnd))
        })?;
        let words = mask.as_slice();
        let num_words = words.len().min(bits.len());
        bits[..num_words].copy_from_slice(&words[..num_words]);
        bits[num_words..].fill(0);
        let num_ids = self.parser.token_env.tok_trie().vocab_size();
        clear_from(bits, num_ids);
        Ok(())
    }

    /// Whether the value has ended: the grammar accepts the text and nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.failed.is_none()
            && matches!(
                self.parser.stop_reason(),
                StopReason::NoExtension | StopReason::NoExtensionBias | StopReason::EndOfSentence
            )
    }

    /// Whether the answer may end here, though more could follow.
    pub fn is_accepting(&mut self) -> bool {
        self.is_complete() || self.attempt(|parser| Ok(parser.is_accepting())) == Ok(true)
    }

    fn attempt<T>(
        &mut self,
        body: impl FnOnce(&mut TokenParser) -> Result<T, MatchError>,
    ) -> Result<T, MatchError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let parser = &mut self.parser;
        let mut outcome = guarded(|| body(parser)).unwrap_or(Err(MatchError::Failed));
        if outcome.is_ok() && self.num_bytes() > self.limits.max_bytes {
            outcome = Err(MatchError::TooComplex);
        }
        self.failed = outcome.as_ref().err().copied();
        outcome
    }
}

impl Clone for Matcher {
    fn clone(&self) -> Self {
        Self { parser: self.parser.deep_clone(), eos_ids: self.eos_ids.clone(), ..*self }
    }
}

/// What the parser says it stopped for.
fn reason(parser: &TokenParser, otherwise: MatchError) -> MatchError {
    match parser.stop_reason() {
        StopReason::LexerTooComplex | StopReason::ParserTooComplex => MatchError::TooComplex,
        StopReason::InternalError => MatchError::Failed,
        _ => otherwise,
    }
}

/// Clears every bit from `num_ids` on.
fn clear_from(bits: &mut [u32], num_ids: usize) {
    let (word, bit) = (num_ids / 32, num_ids % 32);
    if let Some(last) = bits.get_mut(word) {
        *last &= (1 << bit) - 1;
    }
    if let Some(rest) = bits.get_mut(word + 1..) {
        rest.fill(0);
    }
}
