//! What can be wrong with a checkpoint. Every variant names the file, key or tensor that a user can look at.

use std::path::PathBuf;

use pagoda_backend::BackendError;

/// A checkpoint cannot be opened or loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says, or is cut off.
    #[error("{}: {problem}", path.display())]
    InvalidFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor's numbers are stored in a way that no backend reads yet.
    #[error(
        "tensor '{tensor}' is stored as {type_name}, which is not supported (f32, bf16, f16, Q8_0, Q4_0, Q4_1 are)"
    )]
    UnsupportedTensorType {
        /// Which tensor.
        tensor: String,
        /// Its type.
        type_name: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error("tensor '{tensor}' is missing")]
    MissingTensor {
        /// Which tensor.
        tensor: String,
    },
    /// The checkpoint holds a tensor that the architecture would silently ignore.
    #[error("tensor '{tensor}' is not part of architecture '{architecture}'")]
    UnexpectedTensor {
        /// Which tensor.
        tensor: String,
        /// Whose names were compared.
        architecture: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("tensor '{tensor}' has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// Which tensor.
        tensor: String,
        /// What the configuration says.
        expected: Vec<usize>,
        /// What the file says.
        found: Vec<usize>,
    },
    /// A tensor's bytes lie outside of its file, or its size is no whole number of blocks.
    #[error("tensor '{tensor}' in {}: {problem}", path.display())]
    TensorBounds {
        /// Which tensor.
        tensor: String,
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No family file names this architecture.
    #[error("architecture '{name}' is not supported (supported: {supported})")]
    UnknownArchitecture {
        /// The name in the checkpoint.
        name: String,
        /// The names that are known.
        supported: String,
    },
    /// A configuration value is missing or makes no sense.
    #[error("model configuration, {key}: {problem}")]
    InvalidConfig {
        /// Which key.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// The configuration asks for something that Pagoda has no code for.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The encoder cannot do what it was asked.
    #[error("the encoder failed: {0}")]
    Encoder(String),
    /// The device refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl ModelError {
    /// An [`ModelError::InvalidConfig`] from its parts.
    pub(crate) fn config(key: impl Into<String>, problem: impl Into<String>) -> Self {
        ModelError::InvalidConfig { key: key.into(), problem: problem.into() }
    }
}
