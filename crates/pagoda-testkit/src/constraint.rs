//! A constraint without a grammar: what it allows depends on every token so far, so that a token that it never saw, saw
//! twice or saw in another sequence changes what follows.

use pagoda_engine::{ConstraintError, TokenConstraint, TokenId};

use crate::random::mix;

/// Allows about half of the tokens at each place, and ends after a given number of them.
#[derive(Clone, Debug)]
pub struct WalkConstraint {
    vocab_size: u32,
    state: u64,
    num_left: u32,
    fault: Option<ConstraintFault>,
}

/// How a [`WalkConstraint`] fails, at its last token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConstraintFault {
    /// `fill_mask` returns an error.
    Fill,
    /// `advance` returns an error.
    Advance,
    /// `fill_mask` panics.
    FillPanic,
    /// `advance` panics.
    AdvancePanic,
}

impl WalkConstraint {
    /// A value of `len` tokens, at least one.
    pub fn new(seed: u64, vocab_size: u32, len: u32) -> Self {
        assert!(len > 0 && vocab_size > 0, "a value has at least one token");
        WalkConstraint { vocab_size, state: mix(seed), num_left: len, fault: None }
    }

    /// Fails at the last token.
    pub fn with_fault(mut self, fault: ConstraintFault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Whether `token` may come next.
    pub fn allows(&self, token: TokenId) -> bool {
        let forced = self.state % u64::from(self.vocab_size);
        u64::from(token) == forced || (token < self.vocab_size && mix(self.state ^ u64::from(token)) & 1 == 0)
    }

    fn fail_at_last(&self, error: ConstraintFault, panics: ConstraintFault) -> Result<(), ConstraintError> {
        assert!(self.num_left != 1 || self.fault != Some(panics), "a constraint panics on demand");
        if self.num_left == 1 && self.fault == Some(error) {
            return Err(ConstraintError { message: "a constraint fails on demand" });
        }
        Ok(())
    }
}

impl TokenConstraint for WalkConstraint {
    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        self.fail_at_last(ConstraintFault::Advance, ConstraintFault::AdvancePanic)?;
        if self.num_left == 0 || !self.allows(token) {
            return Err(ConstraintError { message: "the token is not allowed" });
        }
        self.state = mix(self.state.wrapping_mul(31).wrapping_add(u64::from(token) + 1));
        self.num_left -= 1;
        Ok(())
    }

    fn fill_mask(&mut self, bits: &mut [u32]) -> Result<(), ConstraintError> {
        self.fail_at_last(ConstraintFault::Fill, ConstraintFault::FillPanic)?;
        bits.fill(0);
        for token in (0..self.vocab_size).filter(|&token| self.allows(token)) {
            bits[token as usize / 32] |= 1 << (token % 32);
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }

    fn is_complete(&self) -> bool {
        self.num_left == 0
    }
}
