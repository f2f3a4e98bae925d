//! The constraints of one request's sequences: one each, from the birth of the samples on. While a sample is being chosen
//! its constraint is lent to the mask; the commit takes it back.

use std::sync::Arc;

use crate::constraint::{MaskOrder, guarded};
use crate::{ConstraintError, TokenConstraint, TokenId, TokenMask};

/// The constraints, all absent for a request without one.
pub(super) struct Constraints {
    /// For the samples that are not born yet.
    unborn: Option<Box<dyn TokenConstraint>>,
    /// `[num_sequences]`
    of_samples: Vec<Option<Held>>,
}

/// A sample's constraint.
enum Held {
    Here(Box<dyn TokenConstraint>),
    Lent(TokenMask),
    Failed(ConstraintError),
}

/// What goes into a mask beside the constraint.
pub(super) struct MaskTerms {
    pub(super) vocab_size: usize,
    pub(super) banned: Arc<[TokenId]>,
    pub(super) time_limit: std::time::Duration,
}

impl Constraints {
    pub(super) fn new(constraint: Option<Box<dyn TokenConstraint>>, num_sequences: u32) -> Self {
        Constraints { unborn: constraint, of_samples: (0..num_sequences).map(|_| None).collect() }
    }

    /// Gives each of the samples its own. Those that have ended before get none.
    pub(super) fn give_birth(&mut self, samples: impl Iterator<Item = u32>) {
        let Some(unborn) = self.unborn.take() else { return };
        let mut heir = None;
        for sample in samples {
            // The last one inherits, the others get forks.
            if let Some(previous) = heir.replace(sample) {
                let fork = guarded(|| Ok(unborn.fork()));
                self.of_samples[previous as usize] = Some(fork.map_or_else(Held::Failed, Held::Here));
            }
        }
        if let Some(heir) = heir {
            self.of_samples[heir as usize] = Some(Held::Here(unborn));
        }
    }

    /// The mask for the sample's next token; `None` without a constraint.
    pub(super) fn lend(&mut self, sample: u32, terms: MaskTerms) -> Option<TokenMask> {
        let held = &mut self.of_samples[sample as usize];
        let MaskTerms { vocab_size, banned, time_limit } = terms;
        let mask = match held.take()? {
            Held::Here(constraint) => {
                TokenMask::order(MaskOrder { constraint, vocab_size, banned, time_limit })
            }
            Held::Failed(error) => TokenMask::failed(error),
            Held::Lent(_) => unreachable!("a constrained sequence has at most one token in flight"),
        };
        *held = Some(Held::Lent(mask.clone()));
        Some(mask)
    }

    /// Takes the sample's constraint back and on past `token`; whether nothing can follow. `Ok(false)` without a constraint.
    /// A stop token ends the sequence whatever its constraint makes of it, unless that failed.
    pub(super) fn advance(
        &mut self,
        sample: u32,
        token: TokenId,
        is_stop: bool,
    ) -> Result<bool, ConstraintError> {
        let Some(mut constraint) = self.take_back(sample)?.filter(|_| !is_stop) else { return Ok(false) };
        let is_complete = guarded(|| constraint.advance(token).map(|()| constraint.is_complete()))?;
        self.of_samples[sample as usize] = Some(Held::Here(constraint));
        Ok(is_complete)
    }

    /// Why the sample's mask could not be filled, if that is so.
    pub(super) fn take_error(&mut self, sample: u32) -> Option<ConstraintError> {
        self.take_back(sample).err()
    }

    fn take_back(&mut self, sample: u32) -> Result<Option<Box<dyn TokenConstraint>>, ConstraintError> {
        match self.of_samples[sample as usize].take() {
            Some(Held::Lent(mask)) => mask.take_back().map(Some),
            Some(Held::Here(constraint)) => Ok(Some(constraint)),
            Some(Held::Failed(error)) => Err(error),
            None => Ok(None),
        }
    }
}
