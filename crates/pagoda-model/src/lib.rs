//! Checkpoints, model families and the model runner.
//!
//! A checkpoint (GGUF, or a Hugging Face folder with safetensors) becomes weights on a device, the weights become a
//! [`Decoder`], and a [`ModelRunner`] drives it through the engine's step plans.
//!
//! Beside it stands the [`Encoder`] of embeddings.
//!
//! Owns: reading checkpoints, [`Architecture`] (families as data), the one decoder, the buffers of a step. Does not know:
//! scheduling, text, HTTP, how any op is done.
//!
//! Invariants: weights are borrowed from the mapped files until a backend packs them; a hostile file gives a
//! [`ModelError`] that names what is wrong; nothing is allocated per op once a model is loaded.

mod architecture;
mod checkpoint;
mod config;
mod decoder;
mod drawn;
mod encoder;
mod error;
mod generation;
mod mapping;
mod rope;
mod runner;
mod tensors;
mod text_assets;
pub mod tiny;

pub use architecture::{
    ActivationKind, Architecture, FfnKind, MixerKind, NormPlacement, Presence, QkRowOrder, TensorNames,
    WindowKind,
};
pub use checkpoint::{Checkpoint, CheckpointFormat};
pub use config::ModelConfig;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use error::ModelError;
pub use generation::GenerationDefaults;
pub use rope::{RopeConfig, RopeScaling};
pub use runner::{MemoryBudget, ModelRunner, RunnerConfig, StepTicket, kv_bytes_per_block};
pub use text_assets::{ChatTemplates, GgufTokenizer, TextAssets};
