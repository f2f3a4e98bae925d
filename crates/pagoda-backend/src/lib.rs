//! The op vocabulary that every device implements: what an op means, never how it is done.
//!
//! An activation is a row-major `[num_tokens, width]` matrix. The flattened token axis removes batch dimensions, padding
//! and views, so a dozen ops are enough for a decoder. Weights are opaque: each backend packs them as it likes.
//!
//! Owns: [`Backend`], the parameter struct of each op, weight formats, the KV layout, the attention metadata, the sampling
//! contract. Does not know: how any op is done, models, scheduling, HTTP.
//!
//! Invariants: an op reads and writes only the rows its parameters name; a result depends on its inputs alone, never on
//! the other rows of the batch (the law that makes an answer independent of its neighbours).

mod batch;
mod error;
mod kv;
mod ops;
mod rope;
mod sampling;
mod weights;

pub use batch::{BatchMetadata, BlockCopy, GraphKey, HeadLayout, InputToken, KvLayout};
pub use error::BackendError;
pub use kv::KvFormat;
pub use ops::{
    Activation, AddRmsNorm, Backend, Embed, GatedActivation, GatherRows, Linear, PagedAttention, QkNorm,
    RmsNorm, RopeStoreKv, Sample, StepLimits,
};
pub use rope::RopeTable;
pub use sampling::{NonFiniteLogits, SampleRow, Sampled, TokenCount};
pub use weights::{HostMatrix, WeightFormat};
