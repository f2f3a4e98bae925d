//! The door to grammars: what a constraint must do, and the mask that it fills while the model runs. Knows no text.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::TokenId;

/// Restricts the tokens of one sequence. Production implementation: the server's adapter over a grammar matcher.
///
/// The engine calls `fill_mask` before each choice (on another thread, while the forward pass runs) and `advance` with the
/// token chosen. An error, a panic or a mask that takes too long fails that sequence and no other; the constraint is
/// dropped then.
pub trait TokenConstraint: Send {
    /// Takes the token that was chosen.
    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError>;

    /// Sets bit `i % 32` of `bits[i / 32]` if token `i` may come next and clears it if not, for every token of the slice.
    fn fill_mask(&mut self, bits: &mut [u32]) -> Result<(), ConstraintError>;

    /// A constraint in the same state that goes its own way.
    fn fork(&self) -> Box<dyn TokenConstraint>;

    /// Whether nothing can follow: the sequence ends with the token that made it so.
    fn is_complete(&self) -> bool;
}

impl Clone for Box<dyn TokenConstraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

impl fmt::Debug for dyn TokenConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenConstraint")
    }
}

/// A constraint cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConstraintError {
    /// Why, without any text of the request.
    pub message: &'static str,
}

const PANICKED: ConstraintError = ConstraintError { message: "the constraint failed" };
const TIMED_OUT: ConstraintError = ConstraintError { message: "the constraint took too long" };

/// Runs `body` on a constraint that is dropped if it panics.
pub(crate) fn guarded<T>(body: impl FnOnce() -> Result<T, ConstraintError>) -> Result<T, ConstraintError> {
    // The callers drop the constraint on every error, hence AssertUnwindSafe.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(PANICKED))
}

/// The tokens that one sample may take. Whoever comes first fills it: a thread of the mask pool while the forward pass
/// runs, or the executor that needs it. Clones are the same mask.
#[derive(Clone)]
pub struct TokenMask(Arc<MaskTask>);

struct MaskTask {
    work: Mutex<Work>,
    filled: Condvar,
    /// Set once, before `work` says `Done`, or by whoever gives up waiting.
    bits: OnceLock<Result<Vec<u32>, ConstraintError>>,
    time_limit: Duration,
}

enum Work {
    /// Nobody has started.
    Queued(MaskOrder),
    /// Somebody fills it.
    Running,
    /// The constraint waits to be taken back; `None` if it failed, or has been taken.
    Done(Option<Box<dyn TokenConstraint>>),
    /// Nobody waits any more.
    GivenUp,
}

/// A mask to fill.
pub(crate) struct MaskOrder {
    pub(crate) constraint: Box<dyn TokenConstraint>,
    pub(crate) vocab_size: usize,
    /// Tokens that may not be chosen, as long as others are left.
    pub(crate) banned: Arc<[TokenId]>,
    /// How long to wait for a thread that fills it.
    pub(crate) time_limit: Duration,
}

impl TokenMask {
    pub(crate) fn order(order: MaskOrder) -> Self {
        let time_limit = order.time_limit;
        TokenMask::new(Work::Queued(order), OnceLock::new(), time_limit)
    }

    /// The mask of a constraint that has failed already.
    pub(crate) fn failed(error: ConstraintError) -> Self {
        TokenMask::new(Work::Done(None), OnceLock::from(Err(error)), Duration::ZERO)
    }

    fn new(work: Work, bits: OnceLock<Result<Vec<u32>, ConstraintError>>, time_limit: Duration) -> Self {
        TokenMask(Arc::new(MaskTask { work: Mutex::new(work), filled: Condvar::new(), bits, time_limit }))
    }

    /// The mask, one bit per token: token `i` may be chosen if bit `i % 32` of word `i / 32` is set. Waits for a thread that
    /// fills it, fills it here if none has started. Empty if the constraint failed: no token may be chosen then, and the
    /// row's failure is the sequence's alone.
    pub fn wait(&self) -> &[u32] {
        self.fill();
        self.wait_while_running();
        self.0.bits.get().and_then(|bits| bits.as_ref().ok()).map_or(&[], Vec::as_slice)
    }

    /// Fills the mask unless somebody else does or has done.
    pub(crate) fn fill(&self) {
        let mut work = self.lock();
        if !matches!(*work, Work::Queued(_)) {
            return;
        }
        let Work::Queued(order) = std::mem::replace(&mut *work, Work::Running) else {
            unreachable!("checked above")
        };
        drop(work);
        let (constraint, bits) = order.fill();
        // After a time-out the bits are an error already, and stay one.
        let _ = self.0.bits.set(bits);
        let mut work = self.lock();
        if matches!(*work, Work::Running) {
            *work = Work::Done(constraint);
        }
        drop(work);
        self.0.filled.notify_all();
    }

    /// Takes the constraint back once the mask is used. One that was never waited for comes back as it was.
    pub(crate) fn take_back(&self) -> Result<Box<dyn TokenConstraint>, ConstraintError> {
        self.wait_while_running();
        let mut work = self.lock();
        match std::mem::replace(&mut *work, Work::Done(None)) {
            Work::Queued(order) => Ok(order.constraint),
            Work::Done(Some(constraint)) => Ok(constraint),
            Work::Running | Work::Done(None) | Work::GivenUp => {
                Err(self.0.bits.get().and_then(|bits| bits.as_ref().err()).copied().unwrap_or(PANICKED))
            }
        }
    }

    fn wait_while_running(&self) {
        let work = self.lock();
        let is_running = |work: &mut Work| matches!(work, Work::Running);
        let waited = self.0.filled.wait_timeout_while(work, self.0.time_limit, is_running);
        let (mut work, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() && matches!(*work, Work::Running) {
            // It may have been filled in this very moment; then it counts as filled too late.
            let _ = self.0.bits.set(Err(TIMED_OUT));
            *work = Work::GivenUp;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        // Nothing panics under the lock; a poisoned one is as good as any.
        self.0.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenMask")
    }
}

impl MaskOrder {
    /// The constraint comes back unless it failed.
    fn fill(self) -> (Option<Box<dyn TokenConstraint>>, Result<Vec<u32>, ConstraintError>) {
        let MaskOrder { mut constraint, vocab_size, banned, .. } = self;
        let mut bits = vec![0; vocab_size.div_ceil(32)];
        match guarded(|| constraint.fill_mask(&mut bits)) {
            Ok(()) => {
                ban(&mut bits, &banned);
                (Some(constraint), Ok(bits))
            }
            Err(error) => {
                // Dropping it may panic as well.
                let _ = guarded(move || {
                    drop(constraint);
                    Ok(())
                });
                (None, Err(error))
            }
        }
    }
}

/// Clears the banned tokens, unless that would leave none: a stop token before `min_tokens` is chosen after all if the value
/// has ended.
fn ban(bits: &mut [u32], banned: &[TokenId]) {
    let bit = |token: &TokenId| (*token as usize / 32, 1 << (token % 32));
    let mut cleared: Vec<(usize, u32)> = Vec::new();
    for (word, bit) in banned.iter().map(bit) {
        if let Some(bits) = bits.get_mut(word)
            && *bits & bit != 0
        {
            *bits &= !bit;
            cleared.push((word, bit));
        }
    }
    if bits.iter().all(|&word| word == 0) {
        cleared.iter().for_each(|&(word, bit)| bits[word] |= bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allows one token; fails, panics or hangs on demand.
    struct Only(TokenId, fn());

    impl TokenConstraint for Only {
        fn advance(&mut self, _: TokenId) -> Result<(), ConstraintError> {
            Ok(())
        }

        fn fill_mask(&mut self, bits: &mut [u32]) -> Result<(), ConstraintError> {
            (self.1)();
            bits[self.0 as usize / 32] |= 1 << (self.0 % 32);
            Ok(())
        }

        fn fork(&self) -> Box<dyn TokenConstraint> {
            Box::new(Only(self.0, self.1))
        }

        fn is_complete(&self) -> bool {
            false
        }
    }

    fn mask(token: TokenId, banned: &[TokenId], body: fn(), time_limit: Duration) -> TokenMask {
        let constraint = Box::new(Only(token, body));
        TokenMask::order(MaskOrder { constraint, vocab_size: 40, banned: banned.into(), time_limit })
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn whoever_waits_for_a_mask_that_nobody_fills_fills_it() {
        let mask = mask(33, &[33, 7], || (), LONG);
        assert_eq!(mask.wait(), [0, 2], "the only token is not banned");
        assert_eq!(mask.wait(), [0, 2]);
        assert!(mask.take_back().is_ok());
        assert_eq!(mask.take_back().unwrap_err(), PANICKED, "it comes back once");
    }

    #[test]
    fn a_panic_leaves_an_empty_mask_and_no_constraint() {
        let mask = mask(1, &[], || panic!("on demand"), LONG);
        assert_eq!(mask.wait(), [0_u32; 0]);
        assert_eq!(mask.take_back().unwrap_err(), PANICKED);
    }

    #[test]
    fn a_mask_that_takes_too_long_is_given_up() {
        static HELD: Mutex<()> = Mutex::new(());
        let held = HELD.lock().unwrap();
        let mask = mask(1, &[], || drop(HELD.lock().unwrap()), Duration::from_millis(5));
        let filler = std::thread::spawn({
            let mask = mask.clone();
            move || mask.fill()
        });
        while matches!(*mask.lock(), Work::Queued(_)) {
            std::thread::yield_now();
        }
        assert_eq!(mask.wait(), [0_u32; 0]);
        assert_eq!(mask.take_back().unwrap_err(), TIMED_OUT);
        drop(held);
        filler.join().unwrap();
        assert_eq!(mask.wait(), [0_u32; 0], "too late is too late");
    }
}
