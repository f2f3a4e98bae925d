//! What can go wrong on a device.

/// A device refused. `Fatal` means that no further step can run on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// An allocation failed; the flag that makes the need smaller belongs into the caller's message.
    #[error("out of memory: {needed_bytes} bytes needed for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// Bytes asked for.
        needed_bytes: u64,
    },
    /// The backend cannot multiply by weights of this format.
    #[error("weight format {0} is not supported by this backend")]
    UnsupportedFormat(crate::WeightFormat),
    /// Shapes or numbers that this backend has no code for (a head dimension, a block size).
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The device would not do one thing (no memory for it, a launch that asks for too much) and is as it was.
    #[error("the device refused: {0}")]
    Refused(String),
    /// The device is lost.
    #[error("device failure: {0}")]
    Fatal(String),
}
