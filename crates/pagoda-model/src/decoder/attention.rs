//! Multi-head attention with grouped KV heads over the paged cache: one fused QKV product, rotation and KV write, attention,
//! output product.

use pagoda_backend::{Backend, BackendError, HeadLayout, Linear, PagedAttention, QkNorm, RopeStoreKv};

use super::LayerInput;
use super::weights::WeightLoader;
use crate::ModelError;
use crate::architecture::{Presence, TensorNames};
use crate::runner::Workspace;

/// The attention of one layer.
pub(super) struct Attention<B: Backend> {
    /// `[qkv_width, hidden]`: Q, K, V stacked.
    qkv: B::Weight,
    /// `[qkv_width]`
    qkv_bias: Option<B::Vector>,
    qk_norm: Option<QkNormWeights<B>>,
    /// `[hidden, q_width]`
    output: B::Weight,
    /// `[hidden]`
    output_bias: Option<B::Vector>,
    heads: HeadLayout,
    window: Option<u32>,
    scale: f32,
}

struct QkNormWeights<B: Backend> {
    /// `[head_dim]`
    q: B::Vector,
    /// `[head_dim]`
    k: B::Vector,
    eps: f32,
}

impl<B: Backend> Attention<B> {
    pub(super) fn load(loader: &mut WeightLoader<'_, B>, layer: usize) -> Result<Self, ModelError> {
        let checkpoint = loader.checkpoint();
        let (config, names) = (checkpoint.config(), checkpoint.names());
        let heads = config.heads();
        let hidden = config.hidden_size;
        let name = |pattern: &str| TensorNames::of_layer(pattern, layer);
        let qkv = loader.pack(&[
            checkpoint.qk_matrix(&name(&names.q), heads.num_q_heads, hidden)?,
            checkpoint.qk_matrix(&name(&names.k), heads.num_kv_heads, hidden)?,
            checkpoint.matrix(&name(&names.v), heads.num_kv_heads * heads.head_dim, hidden)?,
        ])?;
        let output = loader.pack(&[checkpoint.matrix(&name(&names.output), hidden, heads.q_width())?])?;
        Ok(Attention {
            qkv,
            qkv_bias: Self::load_qkv_bias(loader, layer)?,
            qk_norm: Self::load_qk_norm(loader, layer)?,
            output,
            output_bias: loader.bias(config.architecture.output_bias, &names.output, layer, hidden)?,
            heads,
            window: config.sliding_window,
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
        })
    }

    fn load_qkv_bias(
        loader: &mut WeightLoader<'_, B>,
        layer: usize,
    ) -> Result<Option<B::Vector>, ModelError> {
        let checkpoint = loader.checkpoint();
        let (config, names) = (checkpoint.config(), checkpoint.names());
        let name = |pattern: &str| WeightLoader::<B>::bias_name(pattern, layer);
        if !checkpoint.has(config.architecture.qkv_bias, &name(&names.q)) {
            return Ok(None);
        }
        let stacked = [
            checkpoint.qk_vector(&name(&names.q), config.num_q_heads)?,
            checkpoint.qk_vector(&name(&names.k), config.num_kv_heads)?,
            checkpoint.vector(&name(&names.v), config.num_kv_heads * config.head_dim)?,
        ]
        .concat();
        loader.upload(&stacked).map(Some)
    }

    fn load_qk_norm(
        loader: &mut WeightLoader<'_, B>,
        layer: usize,
    ) -> Result<Option<QkNormWeights<B>>, ModelError> {
        let (config, names) = (loader.checkpoint().config(), loader.checkpoint().names());
        if config.architecture.qk_norm == Presence::Never {
            return Ok(None);
        }
        Ok(Some(QkNormWeights {
            q: loader.layer_vector(&names.q_norm, layer, config.head_dim)?,
            k: loader.layer_vector(&names.k_norm, layer, config.head_dim)?,
            eps: config.rms_norm_eps,
        }))
    }

    /// `normed` to `delta`.
    pub(super) fn forward(
        &self,
        backend: &mut B,
        input: &LayerInput<'_, B>,
        kv: &mut B::KvCache,
        work: &mut Workspace<B>,
    ) -> Result<(), BackendError> {
        let &LayerInput { batch, num_rows, rope, layer } = input;
        let heads = self.heads;
        backend.linear(Linear {
            x: &work.normed,
            weight: &self.qkv,
            bias: self.qkv_bias.as_ref(),
            num_rows,
            out: &mut work.qkv,
        })?;
        let qk_norm = self.qk_norm.as_ref();
        let qk_norm = qk_norm.map(|norm| QkNorm { q_weight: &norm.q, k_weight: &norm.k, eps: norm.eps });
        backend.rope_store_kv(RopeStoreKv { batch, qkv: &mut work.qkv, heads, qk_norm, rope, kv, layer })?;
        backend.paged_attention(PagedAttention {
            batch,
            qkv: &work.qkv,
            heads,
            kv,
            layer,
            scale: self.scale,
            window: self.window,
            softcap: None,
            out: &mut work.attention,
        })?;
        backend.linear(Linear {
            x: &work.attention,
            weight: &self.output,
            bias: self.output_bias.as_ref(),
            num_rows,
            out: &mut work.delta,
        })
    }
}
