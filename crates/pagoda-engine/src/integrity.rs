//! The verdict of a check of all laws: the numbers if they hold, the law and the numbers if one does not.

/// The state of the engine at a moment when every law held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntegrityReport {
    /// Blocks that can be handed out: the pool without block 0.
    pub kv_blocks_total: usize,
    /// Blocks held by a sequence or by a launched copy.
    pub kv_blocks_referenced: usize,
    /// Blocks that nobody holds but that can be matched.
    pub kv_blocks_cached: usize,
    /// Blocks that nobody holds and that hold nothing.
    pub kv_blocks_free: usize,
    /// Sequences with blocks.
    pub num_sequences_running: usize,
    /// Sequences without blocks.
    pub num_sequences_waiting: usize,
    /// Steps launched and not yet committed.
    pub num_steps_in_flight: usize,
}

/// A law does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntegrityError {
    /// A law of the block manager or the scheduler is broken.
    #[error("law {law} is broken: {detail}")]
    Broken {
        /// The number of the law.
        law: u8,
        /// What was found.
        detail: String,
    },
    /// The engine has stopped and cannot be asked.
    #[error("the engine has stopped")]
    EngineStopped,
}

impl IntegrityError {
    /// A broken law with its numbers.
    pub(crate) fn broken(law: u8, detail: String) -> Self {
        IntegrityError::Broken { law, detail }
    }
}

/// `Err` naming the law, unless the condition holds.
macro_rules! hold {
    ($law:literal, $condition:expr, $($detail:tt)+) => {
        if !$condition {
            return Err($crate::IntegrityError::broken($law, format!($($detail)+)));
        }
    };
}
pub(crate) use hold;
