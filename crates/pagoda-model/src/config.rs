//! The numbers of one model, whatever file they came from. Invariant: a `ModelConfig` that exists has been checked, so that
//! shapes computed from it neither overflow nor divide by zero.

mod gguf;
mod hf;

use pagoda_backend::HeadLayout;

use crate::ModelError;
use crate::architecture::{Architecture, WindowKind};
use crate::rope::RopeConfig;

pub(crate) use gguf::GgufMetadata;
pub(crate) use hf::{HfConfig, OneOrMany};

/// No width or count of a real model is larger (vocabularies reach 2^18); products of two fit easily in 64 bits.
const MAX_DIMENSION: usize = 1 << 24;

/// One model's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Its family.
    pub architecture: &'static Architecture,
    /// Decoder layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_q_heads: usize,
    /// KV heads.
    pub num_kv_heads: usize,
    /// Channels per head; even.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The longest context the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Rotation by position.
    pub rope: RopeConfig,
    /// A query sees this many keys, itself included.
    pub sliding_window: Option<u32>,
    /// The embedding is the lm_head.
    pub tie_word_embeddings: bool,
}

impl ModelConfig {
    /// How a fused QKV row is cut.
    pub fn heads(&self) -> HeadLayout {
        HeadLayout { num_q_heads: self.num_q_heads, num_kv_heads: self.num_kv_heads, head_dim: self.head_dim }
    }

    /// Checks every number and what must hold between them.
    fn validated(mut self) -> Result<Self, ModelError> {
        let dimensions = [
            ("number of layers", self.num_layers),
            ("hidden size", self.hidden_size),
            ("number of query heads", self.num_q_heads),
            ("number of KV heads", self.num_kv_heads),
            ("head dimension", self.head_dim),
            ("intermediate size", self.intermediate_size),
            ("vocabulary size", self.vocab_size),
            ("maximum position", self.max_position_embeddings),
            ("QKV width", self.heads().num_q_heads.saturating_mul(3).saturating_mul(self.head_dim)),
        ];
        for (key, value) in dimensions {
            if value == 0 || value > MAX_DIMENSION {
                return Err(ModelError::config(key, format!("{value} is not between 1 and {MAX_DIMENSION}")));
            }
        }
        if !self.num_q_heads.is_multiple_of(self.num_kv_heads) {
            let problem =
                format!("{} is no multiple of the {} KV heads", self.num_q_heads, self.num_kv_heads);
            return Err(ModelError::config("number of query heads", problem));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ModelError::config("head dimension", format!("{} is odd", self.head_dim)));
        }
        let rotary_dim = self.rope.rotary_dim;
        if rotary_dim == 0 || rotary_dim > self.head_dim || !rotary_dim.is_multiple_of(2) {
            let problem =
                format!("{rotary_dim} is not an even part of the {} channels of a head", self.head_dim);
            return Err(ModelError::config("rotated channels", problem));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(ModelError::config(
                "rms norm epsilon",
                format!("{} is no epsilon", self.rms_norm_eps),
            ));
        }
        if !(self.rope.theta.is_finite() && self.rope.theta >= 1.0) {
            return Err(ModelError::config("rope theta", format!("{} is no base", self.rope.theta)));
        }
        if self.rope.inverse_frequencies().iter().any(|f| !f.is_finite()) {
            return Err(ModelError::config("rope scaling", "gives frequencies that are not finite"));
        }
        if self.architecture.window == WindowKind::None {
            self.sliding_window = None;
        }
        if self.sliding_window == Some(0) {
            return Err(ModelError::config("sliding window", "0 lets a query see nothing"));
        }
        Ok(self)
    }
}
